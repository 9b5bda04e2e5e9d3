"""The engine: what the next action will be. Base (immutable) plus log (what came since).

`NextAction` learns an event in about a microsecond, because it only appends to the log; counts
and indexes are built from the history, here (`consolidate`) or by whoever merges the deltas of
several shards (`take_delta`, `install`), and the new base is swapped in between two calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.engine import base as bases
from actors.engine import delta, features, history, kernels, scoring, tuning
from actors.engine.base import Base
from actors.engine.build import Build
from actors.engine.candidates import Candidates, Live
from actors.engine.history import History
from actors.engine.imports import Imports
from actors.engine.interface import Items, People, Ranking
from actors.engine.shown import Shown
from actors.engine.stacker import Stacker
from actors.engine.sums import EVERYWHERE, Sums

LOG_EVENTS = 1 << 18
"""Events that the log holds; at half of it decisions wait for a new base."""
BUILD_EVERY = 64
"""Events between two looks at whether a new base is due."""
BUILD_EVENTS_MIN = 1024
BUILD_SHARE = 8
"""A new base is due after so many events, and 1/BUILD_SHARE of the history: 3 us per event."""
POPULAR_EVERY = 1024
"""Events between two looks at which items are the most popular."""
TUNE_EVERY = 128
"""Of so many events one teaches the stacker: it costs as much as a decision."""
RESULTS_MAX = 1024
EVENTS_MAX = 16_000_000
RING_MAX = 256


class Delta(NamedTuple):
    """What one shard learned since the delta before. Deltas of all shards add up, in any order.

    number   counts this shard's deltas; `install` says up to which one a base includes them
    history  the sequences, or parts of them
    sums     what the stacker learned, as differences
    """

    number: int
    history: History
    sums: Sums


class NextAction:
    """The engine of one tenant on one shard. `people` and `items` are read, never written.

    items_max, profiles_max  bounds of item numbers and rows
    events_max               events of history kept, the newest sequences
    session_gap_s            a pause this long ends a sequence
    """

    policy_id = "next-action"

    def __init__(
        self,
        people: People,
        items: Items,
        items_max: int,
        profiles_max: int,
        events_max: int = EVENTS_MAX,
        session_gap_s: int = 1800,
    ) -> None:
        self._people = people
        self._items = items
        self._keys = people.rows["key_hi"]
        self._acted = people.rows["session_events"]
        self._events_max = events_max
        self._gap_s = session_gap_s
        self._base = bases.build(history.empty(), 0)
        self._name = "0"
        self._imports = Imports(self._keys, session_gap_s, events_max)
        # Zeroed memory costs nothing until it is touched.
        self._live = Live(
            delta.new_log(LOG_EVENTS),
            np.zeros(delta.STATE_SLOTS, np.int64),
            np.zeros(items_max, np.int64),
            np.zeros(items_max, np.float32),
            np.zeros(items_max, np.float32),
            np.zeros(2, np.float64),
        )
        self._state = self._live.state
        self._last = np.zeros(profiles_max, np.int64)
        self._popular = np.zeros(0, np.int32)
        self._candidates = Candidates(items_max)
        self.stacker = Stacker(features.PRIOR)
        self._shown = Shown()
        self._blocked = np.zeros(items_max, np.uint8)
        self._logits = np.zeros(kernels.CANDIDATES_MAX, np.float32)
        self._recent = np.zeros(RING_MAX, np.int32)
        self._out = scoring.new_results(RESULTS_MAX)
        self._build: Build | None = None
        self._marks: dict[int, tuple[int, Sums]] = {}
        self._deltas = 0
        self._taken_sums = self.stacker.sums()

    @property
    def version(self) -> str:
        """Name of the base, and how many events were learned on top of it."""
        return f"{self._name}+{self._state[delta.NEXT] - self._state[delta.INCLUDED]}"

    @property
    def counts(self) -> NDArray[np.float32]:
        """Events per item, float32 [items_max]; a view that is written by `learn`."""
        return self._live.counts

    def learn(self, row: int, item: int, event_type: int, value: float, now_s: int) -> None:
        live, state = self._live, self._state
        position = int(state[delta.NEXT])
        if position % BUILD_EVERY == 0:
            self._renew(position)
        if position % TUNE_EVERY == 0 and row >= 0:
            self._teach(row, item)
        key = int(self._keys[row]) if row >= 0 else 0
        delta.append(live.log, state, self._last, live.newest, row, key, item, now_s, self._gap_s)
        delta.count(live.counts, live.recent, live.sums, item)
        if (position + 1) % POPULAR_EVERY == 0:
            self._refresh_popular()

    def learn_batch(
        self,
        rows: NDArray[np.int32],
        items: NDArray[np.int32],
        event_types: NDArray[np.uint8],
        values: NDArray[np.float32],
        times_s: NDArray[np.uint32],
    ) -> None:
        if len(rows):
            self._imports.add(tuning.Stream(rows.copy(), items.copy(), times_s.copy()))

    def _teach(self, row: int, item: int) -> None:
        """Let the stacker learn that `item` was the next action of the person at `row`."""
        surface = self._shown.surface(int(self._keys[row]), item)
        length = self._read_ring(row)
        if length == 0:
            return
        found = self._collect(row, length, tuning.NOTHING)
        chosen = self._candidates.slot(item, found)
        self.stacker.observe(self._candidates.features, found, chosen, length, surface)

    def _read_ring(self, row: int) -> int:
        """Read the person's last items, newest first, into `_recent`. Returns how many."""
        if row < 0:
            return 0
        people = self._people
        return int(kernels.recent_items(people.rows, people.words, row, RING_MAX, self._recent))

    def _collect(self, row: int, length: int, wanted: NDArray[np.int32]) -> int:
        return self._candidates.collect(
            self._base,
            self._live,
            self._popular,
            self._items.attribute_ids,
            self._items.n,
            self._recent,
            length,
            row,
            wanted,
        )

    def rank(
        self,
        row: int,
        candidates: NDArray[np.int32] | None,
        k: int,
        now_s: int,
        excluded: NDArray[np.int32],
        exclude_seen: bool,
        surface: int = EVERYWHERE,
    ) -> Ranking:
        self._adopt_tuning()
        length = self._read_ring(row)
        wanted = tuning.NOTHING if candidates is None else candidates
        found = self._collect(row, length, wanted)
        seen = self._recent[:length] if exclude_seen else tuning.NOTHING
        out = self._out
        chosen = scoring.select(
            self._candidates.features,
            self._candidates.items,
            self._candidates.of,
            found,
            self._candidates.n,
            wanted,
            candidates is None,
            self.stacker.weights_of[surface],
            self._logits,
            self._items.alive,
            self._blocked,
            excluded,
            seen,
            min(k, RESULTS_MAX),
            self.stacker.sharpness(length, surface),
            self.stacker.missed_share(length, surface),
            self._live.counts,
            self._live.sums[0] + scoring.SMOOTHING * self._items.n,
            out.items,
            out.scores,
            out.probabilities,
        )
        acted = int(self._acted[row]) if row >= 0 else 0
        return Ranking(
            out.items[:chosen].copy(),
            out.scores[:chosen].copy(),
            out.probabilities[:chosen].copy(),
            float(self._base.quits[min(acted, bases.QUITS - 1)]) if acted else 0.0,
        )

    def showed(self, key: bytes, surface: int, items: NDArray[np.int32]) -> None:
        self._shown.note(int.from_bytes(key[:8], "big", signed=True), surface, items)

    def explain(
        self, row: int, items: NDArray[np.int32], surface: int = EVERYWHERE
    ) -> NDArray[np.float32]:
        """What each component adds to the scores of `items`: float32 [n, FEATURES].

        Columns are `features.FEATURE_NAMES`; each row sums to the item's score in `rank`.
        """
        length = self._read_ring(row)
        self._collect(row, length, items)
        slots = self._candidates.of[items]
        weights = self.stacker.weights_of[surface][:, None]
        added: NDArray[np.float32] = self._candidates.features[:, slots] * weights
        return added.T

    def explain_events(
        self, row: int, items: NDArray[np.int32], surface: int = EVERYWHERE
    ) -> NDArray[np.float32]:
        """What each of the person's last events did to the scores of `items` when it came.

        float32 [n, e]: the newest event first, at most kernels.RECENT_MAX. Column j is the score
        with the events from j on less that with those from j + 1 on, so all columns together are
        the score less that of somebody of whom nothing is known. Costs e decisions.
        """
        length = min(self._read_ring(row), kernels.RECENT_MAX)
        weights = self.stacker.weights_of[surface]
        scores = np.empty((len(items), length + 1), np.float32)
        for j in range(length + 1):
            self._candidates.collect(
                self._base,
                self._live,
                self._popular,
                self._items.attribute_ids,
                self._items.n,
                self._recent[j:],
                length - j,
                row,
                items,
            )
            scores[:, j] = weights @ self._candidates.features[:, self._candidates.of[items]]
        return scores[:, :-1] - scores[:, 1:]

    def _refresh_popular(self) -> None:
        """Let the items of the last events compete with the popular ones; no scan of all items."""
        live = self._live
        stop = int(self._state[delta.NEXT])
        slots = np.arange(stop - POPULAR_EVERY, stop) % LOG_EVENTS
        fresh = live.log[slots, delta.ITEM].astype(np.int32)
        pool = np.unique(np.concatenate([self._popular, fresh]))
        order = np.lexsort((-live.counts[pool], -live.recent[pool]))
        self._popular = pool[order[: bases.POPULAR_MAX]]

    # Building and exchanging bases.

    def _renew(self, position: int) -> None:
        """Swap in a base that is ready; begin one when enough has come since the last."""
        if self._build is not None and self._build.done:
            self._swap(self._build)
        fresh = position - int(self._state[delta.INCLUDED])
        if fresh >= LOG_EVENTS // 2:
            # The log would lose events that no base holds.
            self._swap(self._build or self._new_build())
        elif self._deltas == 0 and self._build is None and self._due(fresh):
            self._build = self._new_build()
            self._build.start()

    def _due(self, fresh: int) -> bool:
        """Whether `fresh` events on top of the base are enough for a new one."""
        wanted = max(BUILD_EVENTS_MIN, len(self._base.history.items) // BUILD_SHARE)
        return fresh >= min(wanted, LOG_EVENTS // 4)

    def _swap(self, build: Build) -> None:
        base = build.result()
        self._build = None
        self._set_base(base, build.included)
        self._name = f"local-{build.included}-{len(base.history.items)}"

    def settle(self) -> None:
        """Wait for a base that is being built, or build one if much is missing; answer from it."""
        if self._build is None:
            fresh = int(self._state[delta.NEXT]) - int(self._state[delta.INCLUDED])
            if not self._due(fresh):
                return
            self._build = self._new_build()
        self._swap(self._build)

    def consolidate(self) -> None:
        """Build the base over all that was learned. Takes 0.3 s per million events of history."""
        if self._build is not None:
            self._swap(self._build)
        self._swap(self._new_build())

    def _new_build(self) -> Build:
        """A build of all that was learned up to now; `learn_batch` events are now its own."""
        self._adopt_tuning()
        parts = [self._base.history, *self._imports.enter(self._base.history)]
        included, stop = int(self._state[delta.INCLUDED]), int(self._state[delta.NEXT])
        parts.append(delta.events(self._live.log, included, stop))
        half_life_s = self.stacker.sums().half_life_s
        return Build(parts, self._events_max, self._items.n, stop, half_life_s)

    def tune(self) -> None:
        """Learn the stacker's weights on the tail of what `learn_batch` brought, then free it.

        How fast counts should fade is tried there too, and heeded by the next base. It takes as
        long as six times `consolidate` and a second, and may run in another thread meanwhile.
        """
        items = self._items
        self._imports.tune(self.stacker.sums(), items.attribute_ids, items.n)

    def _adopt_tuning(self) -> None:
        """Take over what `tune` learned in another thread, between two calls of this one."""
        change = self._imports.tuned()
        if change is not None:
            # What live events taught meanwhile stays.
            self.stacker.install(self.stacker.sums().plus(change))

    def _set_base(self, base: Base, included: int) -> None:
        """Answer from `base`, which holds the log's events before position `included`."""
        live = self._live
        n = len(base.counts)
        self._candidates.prepare(base)
        self._base = base
        self._state[delta.INCLUDED] = included
        for own, counts in ((live.counts, base.counts), (live.recent, base.recent)):
            own[: self._items.n] = 0
            own[:n] = counts
        stop = int(self._state[delta.NEXT])
        slots = np.arange(included, stop) % LOG_EVENTS
        rest = live.log[slots, delta.ITEM]
        np.add.at(live.counts, rest, 1)
        np.add.at(live.recent, rest, 1)
        live.sums[:] = base.counts.sum() + len(rest), base.recent.sum() + len(rest)
        self._popular = base.popular

    def take_delta(self) -> Delta:
        """What was learned since the last `take_delta`, to be merged with other shards'."""
        self._adopt_tuning()
        first = int(self._state[delta.TAKEN])
        stop = int(self._state[delta.NEXT])
        parts = self._imports.take(self._base.history)
        parts.append(delta.events(self._live.log, first, stop))
        sums = self.stacker.sums()
        change = sums.minus(self._taken_sums)
        self._taken_sums = sums
        self._state[delta.TAKEN] = stop
        self._deltas += 1
        self._marks[self._deltas] = (stop, change)
        return Delta(self._deltas, history.merge(parts, self._events_max), change)

    def install(self, base: Base, sums: Sums, name: str, included: int) -> None:
        """Answer from a merged base, which includes this shard's deltas up to `included`.

        What was learned since stays on top of it. Takes milliseconds: the arrays are not copied.
        Raises KeyError if the delta `included` is not known here (0: none is included).
        """
        position = self._marks[included][0] if included else 0
        own = self.stacker.sums().minus(self._taken_sums)
        for number, (_, change) in list(self._marks.items()):
            if number <= included:
                if number < included:
                    del self._marks[number]
            else:
                own = own.plus(change)
        self.stacker.install(sums.plus(own))
        self._taken_sums = self.stacker.sums().minus(own)
        # A build from before would bring an older base back; its events are in a delta.
        self._build = None
        self._set_base(base, max(position, int(self._state[delta.NEXT]) - LOG_EVENTS))
        self._name = name

    def forget(self, row: int) -> None:
        """The person at `row` is gone: what comes next in that row is another's."""
        self._last[row] = 0

    def bytes_used(self) -> int:
        touched = min(int(self._state[delta.NEXT]), LOG_EVENTS) * delta.LOG_COLUMNS * 8
        return self._base.bytes_used + self._imports.bytes_used + touched + self._items.n * 21
