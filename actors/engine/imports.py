"""What came in batches: it is handed to a base, to a delta and to the tuning, to each of them once.

An import is neither logged event by event nor learned in the call. It waits here until somebody
builds a base or takes a delta; then its end teaches the stacker, in another thread if need be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actors.engine import features, history, tuning
from actors.engine.history import History
from actors.engine.stacker import Stacker
from actors.engine.sums import Sums


class Imports:
    """The batches of one engine.

    keys        int64 [rows], hash of the person at each row; read when a batch is taken
    gap_s       a pause this long ends a sequence
    events_max  bound of the history that tuning merges
    """

    def __init__(self, keys: NDArray[np.int64], gap_s: int, events_max: int) -> None:
        self._keys = keys
        self._gap_s = gap_s
        self._events_max = events_max
        self._waiting: list[tuning.Stream] = []
        # Batches that are in the base here, but in no delta yet.
        self._untaken: list[History] = []
        self._untuned: tuple[History, tuning.Stream] | None = None
        self._tuned: Sums | None = None

    def add(self, stream: tuning.Stream) -> None:
        """A batch has come; its arrays must not change any more."""
        self._waiting.append(stream)

    def enter(self, known: History) -> list[History]:
        """What waits, as sequences, now that a base on top of `known` is to hold it."""
        if not self._waiting:
            return []
        columns = zip(*self._waiting, strict=True)
        self._waiting = []
        stream = tuning.Stream(*(np.concatenate(column) for column in columns))
        self._untaken.append(self._sequences(stream))
        self._untuned = (known, stream)
        return self._untaken[-1:]

    def take(self, known: History) -> list[History]:
        """All that is in no delta yet, what waits included."""
        self.enter(known)
        taken, self._untaken = self._untaken, []
        return taken

    def tune(self, sums: Sums, attributes: NDArray[np.int32], items_n: int) -> None:
        """Learn from the tail of what was entered last, starting at `sums`; then free it."""
        if self._untuned is None:
            return
        known, stream = self._untuned
        self._untuned = None
        start = tuning.tail_start(len(stream.rows))
        if start == 0:
            return
        # The base must end where the tail starts, or the answers would be known beforehand.
        merged = history.merge([known, self._sequences(stream.head(start))], self._events_max)
        stacker = Stacker(features.PRIOR)
        stacker.install(sums)
        tuning.tune(stacker, merged, stream, start, attributes, items_n)
        self._tuned = stacker.sums().minus(sums)

    def tuned(self) -> Sums | None:
        """What `tune` learned, once: the difference to the sums that it started at."""
        change, self._tuned = self._tuned, None
        return change

    @property
    def bytes_used(self) -> int:
        return sum(column.nbytes for stream in self._waiting for column in stream)

    def _sequences(self, stream: tuning.Stream) -> History:
        people = int(stream.rows.max()) + 1
        return History(
            *history.sequences_of(
                stream.rows,
                self._keys,
                stream.items,
                stream.times,
                self._gap_s,
                np.full(people, -1, np.int64),
                np.zeros(people, np.uint32),
            )
        )
