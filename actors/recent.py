"""What was answered lately: message ids with their answers, and decision records.

Both are bounded by bytes and by age, oldest out first, and say how far back they reach.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple
from zlib import crc32

# What an entry costs beside its answer: key, tuple, dictionary and queue slots, measured.
ENTRY_BYTES = 300
# What it costs to find a person's entries, each.
EVENT_BYTES = 70
PERSON_BYTES = 150


class _ByPerson(dict[bytes, list[Any]]):
    """What there is of each person, oldest first."""

    def note(self, person: bytes, entry: Any) -> None:
        self.setdefault(person, []).append(entry)

    def drop_first(self, person: bytes) -> None:
        entries = self[person]
        del entries[0]
        if not entries:
            del self[person]


def digest(op: int, body: bytes) -> int:
    """Tells one request body from another; stable across processes, not cryptographic."""
    return crc32(body, op) | len(body) << 32


class Answered(NamedTuple):
    """The first answer to a message id.

    answer  b"" once the person of whom it told was erased
    key     of the person whose decisions the answer tells; b"" = it tells of nobody
    """

    time_s: int
    digest: int
    answer: bytes
    key: bytes = b""

    @property
    def bytes_used(self) -> int:
        return ENTRY_BYTES + len(self.answer) + (PERSON_BYTES if self.key else 0)


class DedupeWindow:
    """Message ids answered within `window_s`, at most `bytes_max` bytes of them.

    Under more load than `bytes_max` holds the window is shorter; `floor_s` says where it begins.
    """

    def __init__(self, window_s: int, bytes_max: int) -> None:
        self._window_s = window_s
        self._bytes_max = bytes_max
        self._answered: dict[tuple[str, str], Answered] = {}
        self._order: deque[tuple[str, str]] = deque()
        self._of = _ByPerson()
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
        self.bytes_used += entry.bytes_used
        if entry.key:
            self._of.note(entry.key, key)
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
        self.bytes_used -= first.bytes_used
        if first.key:
            self._of.drop_first(first.key)

    def forget(self, person: bytes) -> None:
        """Erase the answers that tell of a person; their ids stay known."""
        for key in self._of.pop(person, ()):
            entry = self._answered[key]
            self._answered[key] = Answered(entry.time_s, entry.digest, b"")
            self.bytes_used += self._answered[key].bytes_used - entry.bytes_used

    def entries(self) -> list[tuple[str, str, Answered]]:
        """All that is known as (tenant, message id, answer), oldest first."""
        return [(*key, self._answered[key]) for key in self._order]

    def check(self) -> None:
        """Prove the structure whole; O(n). Raises AssertionError: only a bug can break it."""
        assert len(self._order) == len(self._answered)
        assert set(self._order) == self._answered.keys()
        assert sum(entry.bytes_used for entry in self._answered.values()) == self.bytes_used
        keyed = [(self._answered[key].key, key) for key in self._order if self._answered[key].key]
        assert sorted(keyed) == sorted((p, key) for p, keys in self._of.items() for key in keys)
        assert self.bytes_used <= self._bytes_max

    def floor_s(self, now_s: int) -> int:
        """Every id that came after this second is known; earlier ones may be forgotten."""
        return max(now_s - self._window_s, self.dropped_s)


class DecisionRecord(NamedTuple):
    """One answered decide call. `key` is the person's key hash.

    events  those of the call: (number of the type, number of the item or -1)
    """

    tenant: str
    key: bytes
    time_s: int
    answer: bytes
    events: list[tuple[int, int]] = []

    @property
    def bytes_used(self) -> int:
        person = PERSON_BYTES if self.key else 0
        return ENTRY_BYTES + len(self.answer) + EVENT_BYTES * len(self.events) + person


class DecisionLog:
    """Decision records by sequence number, the last `bytes_max` bytes of them."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._records: dict[int, DecisionRecord] = {}
        self._order: deque[int] = deque()
        """Erased ones are still in it, until they would be the oldest."""
        self._of = _ByPerson()
        self.bytes_used = 0

    def __len__(self) -> int:
        return len(self._records)

    def get(self, sequence: int) -> DecisionRecord | None:
        return self._records.get(sequence)

    def add(self, sequence: int, record: DecisionRecord) -> None:
        self._records[sequence] = record
        self._order.append(sequence)
        self.bytes_used += record.bytes_used
        if record.key:
            self._of.note(record.key, sequence)
        while self.bytes_used > self._bytes_max or (
            self._order and self._order[0] not in self._records
        ):
            dropped = self._records.pop(self._order.popleft(), None)
            if dropped is not None:
                self.bytes_used -= dropped.bytes_used
                if dropped.key:
                    self._of.drop_first(dropped.key)

    def forget(self, person: bytes) -> None:
        """Erase the records of a person."""
        for sequence in self._of.pop(person, ()):
            self.bytes_used -= self._records.pop(sequence).bytes_used

    def entries(self) -> list[tuple[int, DecisionRecord]]:
        """All records with their sequence numbers, oldest first."""
        return [
            (sequence, self._records[sequence])
            for sequence in self._order
            if sequence in self._records
        ]
