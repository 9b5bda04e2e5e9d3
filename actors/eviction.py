"""When memory runs out: whom a shard forgets first, and when it says so.

Least recently seen first, among those whom no rule protects, a bounded number in one turn. Who goes
is decided by arrays alone and logged as a rule with its numbers, so replay forgets the same people.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors import store_kernels as kernels
from actors.records import Evicted
from actors.store import ProfileStore
from cluster.config import Config

if TYPE_CHECKING:
    from actors.state import ShardState

LOG = logging.getLogger("onehop.actors")

ALARMS = (0.7, 0.9)
EVICTED_MAX = 1000
"""Profiles that go in one turn: some milliseconds."""
SAMPLE_ROWS = 1 << 16
BACK = 0.02
"""So much below the mark it stops, lest every new profile costs another survey."""
RULES = {"traits": 1, "purchases": 2, "ledger": 4}


def fill_of(store: ProfileStore, config: Config) -> float:
    """How full the memory for profiles is, 1.0 = full; by rows, parts or all, what is fullest."""
    heap = store.heap
    fills = [
        len(store) / int(heap[kernels.ROWS_LIMIT]),
        int(heap[kernels.HEAP_USED]) / int(heap[kernels.HEAP_LIMIT]),
    ]
    if config.memory_max:
        fills.append(store.bytes_used() / config.memory_max)
    return max(fills)


def alarm_of(fill: float) -> int:
    """The highest alarm that a fill has reached, in percent; 0 = none.

    >>> [alarm_of(fill) for fill in (0.5, 0.7, 0.95)]
    [0, 70, 90]
    """
    return max((round(alarm * 100) for alarm in ALARMS if fill >= alarm), default=0)


def protects_of(names: str) -> int:
    """The bits of rules that are named with commas."""
    return sum(RULES[name] for name in names.split(",") if name)


def evictable(
    store: ProfileStore, start: int, stop: int, step: int, protects: int
) -> NDArray[np.int64]:
    """Rows of every `step`-th profile from `start` to `stop` that no rule protects."""
    part = store.rows[start:stop:step]
    free = (part["flags"] & kernels.LIVE) != 0
    if protects & RULES["traits"]:
        free &= part["trait_words"] == 0
    if protects & RULES["purchases"]:
        free &= (part["flags"] & kernels.BOUGHT) == 0
    if protects & RULES["ledger"]:
        free &= part["ledger_words"] == 0
    found: NDArray[np.int64] = np.flatnonzero(free) * step + start
    return found


def evicted_rows(store: ProfileStore, record: Evicted) -> tuple[list[int], int]:
    """Whom a record names by rule, as rows; and the row behind the last one looked at."""
    stop = min(record.start + SAMPLE_ROWS, int(store.heap[kernels.ROWS_NEXT]))
    rows = evictable(store, record.start, stop, 1, record.protects)
    rows = rows[store.rows["last_seen"][rows] <= record.until_s]
    if len(rows) > record.count_max:
        rows = rows[: record.count_max]
        stop = int(rows[-1]) + 1
    return rows.tolist(), stop


class Evictor:
    """Keeps a shard below its mark. What it holds is a plan, which a crash may lose."""

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self._protects = protects_of(state.config.evict_protects)
        self._until_s = 0
        self._next = 0
        self._under_way = False
        self._alarm = 0
        self.evicted = 0
        """Profiles since the start."""

    @property
    def fill(self) -> float:
        return fill_of(self._state.store, self._state.config)

    def watch(self) -> int:
        """The alarm of now; told to the log when it changes."""
        fill = self.fill
        alarm = alarm_of(fill)
        if alarm != self._alarm:
            level = logging.WARNING if alarm else logging.INFO
            LOG.log(
                level,
                "shard %s: %.0f %% of the memory for profiles is in use",
                self._state.shard_id,
                100 * fill,
            )
        self._alarm = alarm
        return alarm

    def step(self) -> int:
        """One turn of evicting, if the mark is reached; how many went. 0 = nothing to do, or none
        that may go."""
        state = self._state
        mark = state.config.evict_from
        fill = self.fill
        if fill < (mark - BACK if self._under_way else mark):
            self._under_way = False
            return 0
        if state.paused or (state.journal is not None and not state.journal.has_room):
            return 0
        # Twice: the first plan may have been made for rows that were seen again since.
        for _ in range(2):
            if not self._under_way and not self._plan(fill - (mark - BACK)):
                return 0
            while self._next < state.store.heap[kernels.ROWS_NEXT]:
                record = Evicted(self._until_s, self._next, EVICTED_MAX, self._protects)
                count, self._next = state.forget_by_rule(record)
                if count:
                    self.evicted += count
                    return count
            self._under_way = False
        return 0

    def _plan(self, excess: float) -> bool:
        """Set until when somebody must have been seen last to go now; False if nobody may."""
        store = self._state.store
        rows_next = int(store.heap[kernels.ROWS_NEXT])
        step = max(rows_next // SAMPLE_ROWS, 1)
        rows = evictable(store, 0, rows_next, step, self._protects)
        if not len(rows):
            return False
        share = min(max(excess * len(store) / (len(rows) * step), 0.001), 1.0)
        seen = np.sort(store.rows["last_seen"][rows])
        self._until_s = int(seen[int(share * (len(seen) - 1))])
        self._next = 0
        self._under_way = True
        return True
