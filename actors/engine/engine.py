"""The engine: what the next action will be. Base (immutable) plus log (what came since).

`NextAction` learns an event in well under a microsecond, because it only appends to the log;
counts and indexes are built from the history by `consolidate`, or elsewhere and installed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actors.engine import base, delta, history, kernels
from actors.engine.history import History
from actors.engine.interface import Items, People, Ranking

LOG_EVENTS = 1 << 18
"""Events that the log holds; at half of it the base is built anew."""
POPULAR_EVERY = 1024
"""Events between two looks at which items are the most popular."""
RESULTS_MAX = 1024


class NextAction:
    """The engine of one shard. `people` and `items` are read, never written.

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
        events_max: int = 16_000_000,
        session_gap_s: int = 1800,
    ) -> None:
        self._people = people
        self._items = items
        self._keys = people.rows["key_hi"]
        self._events_max = events_max
        self._gap_s = session_gap_s
        self._base = base.build(history.empty(), 0)
        self._bases = 0
        self._pending: list[History] = []
        # Zeroed memory costs nothing until it is touched.
        self._log = delta.new_log(LOG_EVENTS)
        self._state = np.zeros(delta.STATE_SLOTS, np.int64)
        self._last = np.zeros(profiles_max, np.int64)
        self._newest = np.zeros(items_max, np.int64)
        self._counts = np.zeros(items_max, np.float32)
        self._popular = np.zeros(0, np.int32)
        self._slot_of = np.zeros(items_max, np.int32)
        self._blocked = np.zeros(items_max, np.uint8)
        self._candidates = np.zeros(kernels.CANDIDATES_MAX, np.int32)
        self._parts = np.zeros((kernels.CANDIDATES_MAX, kernels.PARTS), np.float32)
        self._n = np.zeros(1, np.int64)
        self._recent = np.zeros(256, np.int32)
        self._found_items = np.zeros(RESULTS_MAX, np.int32)
        self._found_scores = np.zeros(RESULTS_MAX, np.float32)

    @property
    def version(self) -> str:
        """Number of the base and of the events learned on top of it."""
        return f"next-action.{self._bases}+{self._state[delta.NEXT] - self._state[delta.INCLUDED]}"

    def learn(self, row: int, item: int, event_type: int, value: float, now_s: int) -> None:
        state = self._state
        if state[delta.NEXT] - state[delta.INCLUDED] >= LOG_EVENTS // 2:
            self.consolidate()
        key = int(self._keys[row]) if row >= 0 else 0
        delta.append(self._log, state, self._last, self._newest, row, key, item, now_s, self._gap_s)
        self._counts[item] += 1
        if state[delta.NEXT] % POPULAR_EVERY == 0:
            self._refresh_popular()

    def learn_batch(
        self,
        rows: NDArray[np.int32],
        items: NDArray[np.int32],
        event_types: NDArray[np.uint8],
        values: NDArray[np.float32],
        times_s: NDArray[np.uint32],
    ) -> None:
        if not len(rows):
            return
        people = int(rows.max()) + 1
        self._pending.append(
            History(
                *history.sequences_of(
                    rows,
                    self._keys,
                    items,
                    times_s,
                    self._gap_s,
                    np.full(people, -1, np.int64),
                    np.zeros(people, np.uint32),
                )
            )
        )

    def consolidate(self) -> None:
        """Build the base over all that was learned."""
        included, stop = int(self._state[delta.INCLUDED]), int(self._state[delta.NEXT])
        parts = [self._base.history, *self._pending, delta.events(self._log, included, stop)]
        self._base = base.build(history.merge(parts, self._events_max), self._items.n)
        self._bases += 1
        self._pending = []
        self._state[delta.INCLUDED] = stop
        self._counts[: len(self._base.counts)] = self._base.counts
        self._popular = self._base.popular

    def _refresh_popular(self) -> None:
        """Let the items of the last events compete with the popular ones; no scan of all items."""
        stop = int(self._state[delta.NEXT])
        slots = np.arange(stop - POPULAR_EVERY, stop) % LOG_EVENTS
        fresh = self._log[slots, delta.ITEM].astype(np.int32)
        pool = np.unique(np.concatenate([self._popular, fresh]))
        order = np.argsort(-self._counts[pool], kind="stable")
        self._popular = pool[order[: base.POPULAR_MAX]]

    def rank(
        self,
        row: int,
        candidates: NDArray[np.int32] | None,
        k: int,
        now_s: int,
        excluded: NDArray[np.int32],
        exclude_seen: bool,
    ) -> Ranking:
        if self._state[delta.NEXT] < POPULAR_EVERY and not len(self._popular):
            self._popular = np.arange(min(self._items.n, base.POPULAR_MAX), dtype=np.int32)
        people, b = self._people, self._base
        length = seen = 0
        if row >= 0:
            seen = kernels.recent_items(people.rows, people.words, row, 256, self._recent)
            length = min(seen, kernels.RECENT_MAX)
        self._n[0] = 0
        kernels.collect(
            self._recent,
            length,
            row,
            b.indptr,
            b.successors,
            b.weights,
            b.totals,
            self._counts,
            self._popular,
            self._log,
            self._state,
            self._newest,
            self._slot_of,
            self._candidates,
            self._parts,
            self._n,
        )
        self._blocked[excluded] = 1
        if exclude_seen:
            self._blocked[self._recent[:seen]] = 1
        found = self._best(candidates, min(k, RESULTS_MAX))
        self._blocked[excluded] = 0
        if exclude_seen:
            self._blocked[self._recent[:seen]] = 0
        items = self._found_items[:found].copy()
        scores = self._found_scores[:found].copy()
        return Ranking(items, scores, scores)

    def _best(self, candidates: NDArray[np.int32] | None, k: int) -> int:
        """The best of `candidates` among what was collected. Returns how many were found."""
        among, parts, n = self._candidates, self._parts, int(self._n[0])
        if candidates is not None:
            parts = kernels.gather(candidates, self._slot_of, among, parts, n, self._counts)
            among, n = candidates, len(candidates)
        return int(
            kernels.best(
                among, parts, n, kernels.WEIGHTS, self._items.alive, self._blocked,
                k, self._found_items, self._found_scores,
            )
        )  # fmt: skip

    def forget(self, row: int) -> None:
        """The person at `row` is gone: what comes next in that row is another's."""
        self._last[row] = 0

    def bytes_used(self) -> int:
        touched = min(int(self._state[delta.NEXT]), LOG_EVENTS) * delta.LOG_COLUMNS * 8
        pending = sum(part.bytes_used for part in self._pending)
        return self._base.bytes_used + pending + touched + self._items.n * 17
