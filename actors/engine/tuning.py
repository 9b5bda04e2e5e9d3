"""Learns the stacker's weights from the tail of a stream: predict, then look, event by event.

The base must hold only what came before the tail, or the answers would be known beforehand. Several
are built, whose counts fade at different rates: how well each predicts says how fast to forget.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.engine import base as bases
from actors.engine import delta, features, kernels
from actors.engine.base import Base
from actors.engine.candidates import Candidates, Live
from actors.engine.history import History
from actors.engine.stacker import Stacker
from actors.engine.sums import HALF_LIVES_S, SLICES

TAIL_SHARE = 10
"""The last 1/10 of a stream is its tail..."""
TAIL_EVENTS_MIN = 2000
"""...or this many events, but at most half of the stream."""
SAMPLES_MAX = 4000
AGE_SAMPLES_MAX = 1000
NOTHING = np.zeros(0, np.int32)


class Stream(NamedTuple):
    """Events in the order in which they came. All arrays [n]."""

    rows: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.uint32]

    def head(self, n: int) -> Stream:
        """The first n events."""
        return Stream(self.rows[:n], self.items[:n], self.times[:n])


def tail_start(n: int) -> int:
    """Where the tail of a stream of n events starts."""
    return n - min(max(n // TAIL_SHARE, TAIL_EVENTS_MIN), n // 2)


class Lessons(NamedTuple):
    """Events of a stream from which to learn, each with what the person did before.

    picks  their positions; back  for each event the person's one before, or -1
    """

    stream: Stream
    back: NDArray[np.int64]
    picks: NDArray[np.int64]

    def few(self, n: int) -> Lessons:
        """At most n of them, evenly spread."""
        if len(self.picks) <= n:
            return self
        at = np.linspace(0, len(self.picks) - 1, n).astype(np.int64)
        return self._replace(picks=self.picks[at])


class _Pupil:
    """Looks at lessons from the side of one base, which must end before they begin."""

    def __init__(self, base: Base, attributes: NDArray[np.int32], items_n: int) -> None:
        self._base = base
        self._attributes = attributes
        self._items_n = items_n
        self._candidates = Candidates(items_n)
        self._candidates.prepare(base)
        self._live = frozen(base, items_n)
        self._recent = np.zeros(kernels.RECENT_MAX, np.int32)

    def each(self, lessons: Lessons) -> Iterator[tuple[NDArray[np.float32], int, int, int]]:
        """(features, candidates found, slot of what came or -1, recent items) of each."""
        recent, items = self._recent, lessons.stream.items
        for pick in lessons.picks.tolist():
            length = _recent_before(lessons.back, items, pick, recent)
            found = self._candidates.collect(
                self._base,
                self._live,
                self._base.popular,
                self._attributes,
                self._items_n,
                recent,
                length,
                -1,
                NOTHING,
            )
            chosen = self._candidates.slot(int(items[pick]), found)
            yield self._candidates.features, found, chosen, length


def tune(
    stacker: Stacker,
    known: History,
    stream: Stream,
    start: int,
    attributes: NDArray[np.int32],
    items_n: int,
) -> None:
    """Let `stacker` learn from up to SAMPLES_MAX events at or after `start`, evenly spread.

    known  the history of all events before `start`, and none after
    """
    back = _back_links(stream.rows, int(stream.rows.max()) + 1)
    picks = np.flatnonzero(back[start:] >= 0) + start
    lessons = Lessons(stream, back, picks)
    _try_ages(stacker, known, lessons.few(AGE_SAMPLES_MAX), attributes, items_n)
    base = bases.build(known, items_n, stacker.sums().half_life_s)
    chosen = lessons.few(SAMPLES_MAX)
    for i, lesson in enumerate(_Pupil(base, attributes, items_n).each(chosen)):
        stacker.observe(*lesson, part=1 + i * SLICES // len(chosen.picks))


def _try_ages(
    stacker: Stacker, known: History, lessons: Lessons, attributes: NDArray[np.int32], items_n: int
) -> None:
    """Note how well counts with each half-life predict the lessons (prequentially, Dawid 1984)."""
    gains = np.zeros(len(HALF_LIVES_S))
    for i, half_life_s in enumerate(HALF_LIVES_S):
        # Each with weights of its own: those of one would hold another's counts for what they
        # are not.
        trial = Stacker(features.PRIOR)
        trial.install(stacker.sums())
        base = bases.build(known, items_n, half_life_s)
        for lesson in _Pupil(base, attributes, items_n).each(lessons):
            gains[i] += trial.likelihood(*lesson)
            trial.observe(*lesson)
    stacker.note_ages(gains - gains[0])


def frozen(base: Base, items_n: int) -> Live:
    """The live part of a base on top of which nothing was learned."""
    return Live(
        delta.new_log(1),
        np.zeros(delta.STATE_SLOTS, np.int64),
        np.zeros(items_n, np.int64),
        base.counts,
        base.recent,
        np.array([base.counts.sum(), base.recent.sum()], np.float64),
    )


@njit(cache=True, nogil=True)
def _back_links(rows: Any, people: int) -> Any:
    """For each event the position of the same person's event before, or -1. int64 [n]."""
    last = np.full(people, -1, np.int64)
    back = np.empty(rows.shape[0], np.int64)
    for e in range(rows.shape[0]):
        back[e] = last[rows[e]]
        last[rows[e]] = e
    return back


@njit(cache=True, nogil=True)
def _recent_before(back: Any, items: Any, event: Any, out: Any) -> Any:
    """The person's items before `event`, newest first, as many as `out` holds. Returns how many."""
    n = 0
    event = back[event]
    while event >= 0 and n < out.shape[0]:
        out[n] = items[event]
        n += 1
        event = back[event]
    return n
