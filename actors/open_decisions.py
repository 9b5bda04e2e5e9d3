"""Treatment decisions that wait for a reward, and those that no longer do. Bounded, oldest out."""

from __future__ import annotations

import heapq
from collections import deque

import msgspec

from actors.recent import ENTRY_BYTES

TOKENS_MAX = 32
STARTS_MAX = 64
"""Starts of shards of whose numbers it is known how far they were dropped."""
START_BITS = 36
"""Numbers of one start of a shard differ in these bits alone."""


class OpenDecision(msgspec.Struct, array_like=True):
    """One treatment decision. New fields go to the end, with a default.

    number       the decision's, unique in its shard
    key          the person's key hash; profiled: they had a profile
    decided_s, closes_s
                 seconds since 1970; rewards count until the second
    arms, slots  ids by slot: what stood there, and what the caller calls it
    shadow       ids of what the policy would have shown, where the baseline acted
    values       by slot: the reward so far, None = none came
    active       False: nobody has seen it yet, as far as is known
    tokens       numbers of the message ids of its rewards, the last TOKENS_MAX
    version, mode
                 of the policy's document when it was decided; "" = not known any more
    got, learned, remembered
                 by slot, as bits: what got a reward, what was given to the model, and what to
                 the person's memory
    """

    number: int
    tenant: str
    key: bytes
    surface: str
    policy: str
    decided_s: int
    closes_s: int
    arms: list[str]
    slots: list[str]
    shadow: list[str]
    trace: bytes
    values: list[float | None]
    profiled: bool = True
    active: bool = True
    got: int = 0
    learned: int = 0
    remembered: int = 0
    tokens: list[int] = []
    version: int = 0
    mode: str = ""

    @property
    def place(self) -> int:
        """Where the person belongs, the first half of the decision's id."""
        return int.from_bytes(self.key[:8], "big")

    @property
    def rewarded(self) -> list[bool]:
        """By slot, whether a reward came; known once it has closed."""
        return [bool(self.got & 1 << place) for place in range(len(self.arms))]

    @property
    def bytes_used(self) -> int:
        return ENTRY_BYTES + len(self.trace) + 32 * len(self.arms)


class OpenDecisions:
    """Open ones by number and by when they close; closed ones in the order in which they did."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._open: dict[int, OpenDecision] = {}
        self._due: list[tuple[int, int]] = []
        self._closed: deque[OpenDecision] = deque()
        self._closed_at: dict[int, OpenDecision] = {}
        self.closed_total = 0
        self.open_bytes = 0
        self.closed_bytes = 0
        self.dropped: dict[int, int] = {}
        """By start of a shard: the highest number of what closed and is no longer kept."""
        self.dropped_s = 0
        """Windows that ended up to then may be of decisions that are no longer kept."""

    def __len__(self) -> int:
        return len(self._open)

    def add(self, decision: OpenDecision) -> None:
        self._open[decision.number] = decision
        self.open_bytes += decision.bytes_used
        heapq.heappush(self._due, (decision.closes_s, decision.number))

    def move(self, decision: OpenDecision, closes_s: int) -> None:
        """Let a decision close at another time."""
        decision.closes_s = closes_s
        heapq.heappush(self._due, (closes_s, decision.number))

    def get(self, number: int) -> OpenDecision | None:
        return self._open.get(number)

    def closed(self, number: int) -> OpenDecision | None:
        """A decision that has closed and is still kept."""
        return self._closed_at.get(number)

    def next_due(self) -> OpenDecision | None:
        """The open decision that closes first; it stays."""
        while self._due:
            closes_s, number = self._due[0]
            decision = self._open.get(number)
            if decision is not None and decision.closes_s == closes_s:
                return decision
            heapq.heappop(self._due)
        return None

    @property
    def full(self) -> bool:
        """Whether the first to close has to close early."""
        return self.open_bytes > self._bytes_max

    def close(self, decision: OpenDecision) -> None:
        """Move one to those that have closed."""
        del self._open[decision.number]
        self.open_bytes -= decision.bytes_used
        self._closed.append(decision)
        self._closed_at[decision.number] = decision
        self.closed_total += 1
        self.closed_bytes += decision.bytes_used
        while self.closed_bytes > self._bytes_max:
            oldest = self._closed.popleft()
            self._closed_at.pop(oldest.number, None)
            self.closed_bytes -= oldest.bytes_used
            self.note_dropped({oldest.number >> START_BITS: oldest.number}, oldest.closes_s)

    def note_dropped(self, dropped: dict[int, int], dropped_s: int) -> None:
        """Know that numbers up to these may be of decisions that closed long ago."""
        for start, number in dropped.items():
            # The start that was seen last is the last to be forgotten.
            self.dropped[start] = max(self.dropped.pop(start, 0), number)
        while len(self.dropped) > STARTS_MAX:
            del self.dropped[next(iter(self.dropped))]
        self.dropped_s = max(self.dropped_s, dropped_s)

    def was_dropped(self, number: int) -> bool:
        """Whether a number that is unknown may be of a decision that closed long ago."""
        return number <= self.dropped.get(number >> START_BITS, -1)

    def forget(self, key: bytes) -> None:
        """Drop a person's decisions, open and closed; O(n)."""
        for number in [n for n, one in self._open.items() if one.key == key]:
            self.open_bytes -= self._open.pop(number).bytes_used
        for at, one in enumerate(self._closed):
            if one.key == key:
                # Its place stays taken, so that pages count on as before.
                self.closed_bytes -= one.bytes_used
                self._closed_at.pop(one.number, None)
                self._closed[at] = erased = _erased(one)
                self.closed_bytes += erased.bytes_used

    def page(self, after: int, count: int) -> tuple[list[OpenDecision], int]:
        """At most `count` closed decisions behind the `after`th, and where the next page begins.

        Those that left for want of room are passed over.
        """
        first = self.closed_total - len(self._closed)
        start = min(max(after - first, 0), len(self._closed))
        stop = min(start + count, len(self._closed))
        page = [self._closed[i] for i in range(start, stop)]
        return [decision for decision in page if decision.arms], first + stop

    def entries(self) -> tuple[list[OpenDecision], list[OpenDecision], int]:
        """Open ones, closed ones, and how many ever closed; for a snapshot."""
        return list(self._open.values()), list(self._closed), self.closed_total

    def restore(
        self, opened: list[OpenDecision], closed: list[OpenDecision], closed_total: int
    ) -> None:
        """The inverse of `entries`, into an empty one."""
        for decision in opened:
            self.add(decision)
        for decision in closed:
            if not decision.arms:
                self._closed.append(decision)
                self.closed_bytes += decision.bytes_used
                continue
            self._open[decision.number] = decision
            self.open_bytes += decision.bytes_used
            self.close(decision)
        self.closed_total = closed_total

    def check(self) -> None:
        """Prove the structure whole; O(n). Raises AssertionError: only a bug can break it."""
        assert self.open_bytes == sum(d.bytes_used for d in self._open.values())
        assert self.closed_bytes == sum(d.bytes_used for d in self._closed)
        assert self.closed_bytes <= self._bytes_max
        due = set(self._due)
        assert all((d.closes_s, n) in due for n, d in self._open.items())
        assert len(self._closed_at) == sum(bool(one.arms) for one in self._closed)


def _erased(decision: OpenDecision) -> OpenDecision:
    return OpenDecision(decision.number, "", b"", "", "", 0, 0, [], [], [], b"", [])
