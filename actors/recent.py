"""What was answered lately: message ids with their answers, and decision records.

Both are bounded by bytes and by age, oldest out first, and say how far back they reach.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple
from zlib import crc32

# What an entry costs beside its answer: key, tuple, dictionary and queue slots, measured.
ENTRY_BYTES = 300


def digest(op: int, body: bytes) -> int:
    """Tells one request body from another; stable across processes, not cryptographic."""
    return crc32(body, op) | len(body) << 32


class Answered(NamedTuple):
    """The first answer to a message id."""

    time_s: int
    digest: int
    answer: bytes


class DedupeWindow:
    """Message ids answered within `window_s`, at most `bytes_max` bytes of them.

    Under more load than `bytes_max` holds the window is shorter; `floor_s` says where it begins.
    """

    def __init__(self, window_s: int, bytes_max: int) -> None:
        self._window_s = window_s
        self._bytes_max = bytes_max
        self._answered: dict[tuple[str, str], Answered] = {}
        self._order: deque[tuple[str, str]] = deque()
        self.bytes_used = 0
        self.dropped_s = 0
        """When the latest of the ids came that left for want of room."""

    def __len__(self) -> int:
        return len(self._order)

    def get(self, tenant: str, message_id: str) -> Answered | None:
        """The first answer to this id, or None."""
        return self._answered.get((tenant, message_id))

    def add(self, tenant: str, message_id: str, entry: Answered) -> None:
        """Remember the answer to an id that is not yet known.

        A known id stays as it is. It comes again only when a log is replayed with more room than
        there was when it was written.
        """
        key = (tenant, message_id)
        if key in self._answered:
            return
        self._answered[key] = entry
        self._order.append(key)
        self.bytes_used += ENTRY_BYTES + len(entry.answer)
        while self.bytes_used > self._bytes_max:
            self.dropped_s = max(self.dropped_s, self._answered[self._order[0]].time_s)
            self._drop_oldest()
        oldest_s = entry.time_s - self._window_s
        # Two out for one in: what aged in a quiet hour leaves without a pause.
        for _ in range(2):
            if self._order and self._answered[self._order[0]].time_s < oldest_s:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        first = self._answered.pop(self._order.popleft())
        self.bytes_used -= ENTRY_BYTES + len(first.answer)

    def entries(self) -> list[tuple[str, str, Answered]]:
        """All that is known as (tenant, message id, answer), oldest first."""
        return [(*key, self._answered[key]) for key in self._order]

    def check(self) -> None:
        """Prove the structure whole; O(n). Raises AssertionError: only a bug can break it."""
        assert len(self._order) == len(self._answered)
        assert set(self._order) == self._answered.keys()
        answers = (entry.answer for entry in self._answered.values())
        assert sum(ENTRY_BYTES + len(answer) for answer in answers) == self.bytes_used
        assert self.bytes_used <= self._bytes_max

    def floor_s(self, now_s: int) -> int:
        """Every id that came after this second is known; earlier ones may be forgotten."""
        return max(now_s - self._window_s, self.dropped_s)


class DecisionRecord(NamedTuple):
    """One answered decide call. `key` is the person's key hash."""

    tenant: str
    key: bytes
    time_s: int
    answer: bytes


class DecisionLog:
    """Decision records by sequence number, the last `bytes_max` bytes of them."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._records: dict[int, DecisionRecord] = {}
        self._order: deque[int] = deque()
        self.bytes_used = 0

    def __len__(self) -> int:
        return len(self._order)

    def get(self, sequence: int) -> DecisionRecord | None:
        return self._records.get(sequence)

    def add(self, sequence: int, record: DecisionRecord) -> None:
        self._records[sequence] = record
        self._order.append(sequence)
        self.bytes_used += ENTRY_BYTES + len(record.answer)
        while self.bytes_used > self._bytes_max:
            dropped = self._records.pop(self._order.popleft())
            self.bytes_used -= ENTRY_BYTES + len(dropped.answer)

    def entries(self) -> list[tuple[int, DecisionRecord]]:
        """All records with their sequence numbers, oldest first."""
        return [(sequence, self._records[sequence]) for sequence in self._order]
