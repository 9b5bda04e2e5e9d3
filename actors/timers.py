"""The timers of one shard: which is due next. Pure: the clock is an argument.

The truth is in the ledgers of the people; this is what finds the due ones among them, and it is
built anew from the ledgers whenever a shard recovers or takes over a range. At most one timer per
person and trigger. A timer that is put off leaves its place in the heap as it is and is looked at
again when that comes up: a busy visitor costs one dictionary entry, not one heap entry per event.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import NamedTuple

TimerKey = tuple[bytes, str]
"""Key hash of the person, id of the trigger."""


class Due(NamedTuple):
    """A timer that has run out."""

    key: bytes
    trigger: str
    due_s: int


class Timers:
    """Deadlines by person and trigger, at most `timers_max`.

    >>> timers = Timers(10)
    >>> timers.set(b"ada", "cart-left", 100)
    True
    >>> timers.set(b"ada", "cart-left", 160), timers.take(130)
    (True, None)
    >>> timers.take(160)
    Due(key=b'ada', trigger='cart-left', due_s=160)
    >>> timers.take(1000) is None
    True
    """

    def __init__(self, timers_max: int) -> None:
        self._timers_max = timers_max
        self._due: dict[TimerKey, int] = {}
        self._heap: list[tuple[int, TimerKey]] = []

    def __len__(self) -> int:
        return len(self._due)

    @property
    def full(self) -> bool:
        """Whether no timer may be added; one that is set may still be put off."""
        return len(self._due) >= self._timers_max

    def set(self, key: bytes, trigger: str, due_s: int) -> bool:
        """Let a timer run out at `due_s`, whatever it was before; False if there is no room."""
        timer = (key, trigger)
        before = self._due.get(timer)
        if before is None and self.full:
            return False
        self._due[timer] = due_s
        # An entry of the heap is never later than the timer it stands for.
        if before is None or due_s < before:
            heappush(self._heap, (due_s, timer))
        self._shed()
        return True

    def cancel(self, key: bytes, trigger: str) -> bool:
        """Forget a timer; whether there was one."""
        found = self._due.pop((key, trigger), None) is not None
        self._shed()
        return found

    def take(self, now_s: float) -> Due | None:
        """Take out the timer that ran out first, if one has by `now_s`."""
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            at_s, timer = heappop(heap)
            due_s = self._due.get(timer)
            if due_s is None:
                continue
            if due_s > at_s:
                heappush(heap, (due_s, timer))
            else:
                # Later entries of the same timer find nothing in the dictionary.
                del self._due[timer]
                return Due(*timer, due_s)
        return None

    def next_s(self) -> int | None:
        """When to look again at the latest, seconds since 1970; None: nothing is set."""
        return self._heap[0][0] if self._heap else None

    def rebuild(self, timers: Iterable[Due]) -> None:
        """Become exactly these timers, of the ledgers; also more than `timers_max`, which were
        accepted once."""
        self._due = {(key, trigger): due_s for key, trigger, due_s in timers}
        self._heap = [(due_s, timer) for timer, due_s in self._due.items()]
        heapify(self._heap)

    def _shed(self) -> None:
        # What was cancelled must not outweigh what is set, or memory would follow the traffic.
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(due_s, timer) for timer, due_s in self._due.items()]
            heapify(self._heap)

    def check(self) -> None:
        """Prove the structure whole; O(n). Raises AssertionError: only a bug can break it."""
        assert len(self._heap) <= 2 * len(self._due) + 64
        earliest: dict[TimerKey, int] = {}
        for at_s, timer in self._heap:
            earliest[timer] = min(at_s, earliest.get(timer, at_s))
        for timer, due_s in self._due.items():
            assert earliest[timer] <= due_s, timer
