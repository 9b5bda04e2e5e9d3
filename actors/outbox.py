"""Messages that are to be sent: state of the shard, written in the record of what caused them.

A message is pending until it was delivered, ran out of time or of attempts; then it is gone, or a
dead letter, which can be redriven. Every step is one of STEPS and a record of the log, so a shard
that dies goes on where it was. What was delivered and not yet recorded is sent again, with the same
id and the same bytes.

                pending    dead
    delivered   gone
    retried     pending
    expired     gone
    failed      dead
    redriven               pending
    discarded   gone       gone
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush

import msgspec

PENDING = "pending"
DEAD = "dead"
GONE = ""
STEPS: Mapping[tuple[str, str], str] = {
    (PENDING, "delivered"): GONE,
    (PENDING, "retried"): PENDING,
    (PENDING, "expired"): GONE,
    (PENDING, "failed"): DEAD,
    (DEAD, "redriven"): PENDING,
    (PENDING, "discarded"): GONE,
    (DEAD, "discarded"): GONE,
}
"""(state, what happened) -> state. GONE: the message is forgotten."""

# What a message costs beside its body: objects, dictionary and heap slots, measured.
ENTRY_BYTES = 900
ERROR_CHARS_MAX = 200


class Message(msgspec.Struct, array_like=True):
    """One message. Changed by `Outbox` only.

    message_id  the decision's id: also what a receiver knows it by, whatever happens to it
    webhook     id of the document that says where to; "" = to the person's page
    body        the CloudEvent, the same bytes in every attempt
    """

    message_id: str
    tenant: str
    key: bytes
    channel: str
    webhook: str
    due_s: float
    expires_s: float
    body: bytes
    state: str = PENDING
    attempts: int = 0
    error: str = ""
    changed_s: float = 0.0


class Contacted(msgspec.Struct, array_like=True, frozen=True):
    """A contact that a trigger or a decision led to.

    sequence  of its decision, 0 = that stands in the answer of the request
    answer    JSON as of a decide call, for who asks why; b"" likewise
    """

    sequence: int
    answer: bytes
    message: Message


class Step(msgspec.Struct, array_like=True, frozen=True):
    """What happened to a message. due_s: when it may be tried (again)."""

    message_id: str
    what: str
    due_s: float = 0.0
    expires_s: float = 0.0
    error: str = ""


class IllegalStep(Exception):
    """A step that the state of a message does not allow. Nothing has changed."""


class Outbox:
    """Pending and dead messages of one shard, at most `bytes_max` bytes of them.

    Pending messages are never dropped for room: `has_room` says when no more may be added. Dead
    ones leave, oldest first, when they take more than a quarter.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self.dead_bytes = 0
        self.counts = dict.fromkeys(("added", "dropped", *(what for _, what in STEPS)), 0)
        """What happened since this process began."""
        self._messages: dict[str, Message] = {}
        self._dead: dict[str, None] = {}
        self._people: dict[bytes, dict[str, None]] = {}
        self._wake_s: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def pending(self) -> int:
        return len(self._messages) - len(self._dead)

    @property
    def dead(self) -> int:
        return len(self._dead)

    @property
    def has_room(self) -> bool:
        """Whether a message of any usual size fits. Ask before anything is decided."""
        return self.bytes_used + 64 * 1024 <= self.bytes_max

    def get(self, message_id: str) -> Message | None:
        return self._messages.get(message_id)

    def add(self, message: Message) -> None:
        """Take a new message; one whose id is known stays as it is."""
        if message.message_id in self._messages:
            return
        self.counts["added"] += 1
        self._put(message)

    def step(self, step: Step, now_s: float) -> None:
        """Let something happen to a message. Raises IllegalStep; unknown ids are left alone: the
        person may have been forgotten meanwhile."""
        message = self._messages.get(step.message_id)
        if message is None:
            return
        state = STEPS.get((message.state, step.what))
        if state is None:
            raise IllegalStep(f"{step.message_id} is {message.state}, it can't be {step.what}")
        self.counts[step.what] += 1
        self._take_out(message)
        if state == GONE:
            return
        message.state, message.error, message.changed_s = state, step.error, now_s
        if step.what == "redriven":
            message.attempts, message.expires_s = 0, step.expires_s
        else:
            message.attempts += 1
        message.due_s = step.due_s
        self._put(message)
        while self.dead_bytes > self.bytes_max // 4:
            self._take_out(self._messages[next(iter(self._dead))])
            self.counts["dropped"] += 1

    def forget(self, key: bytes) -> None:
        """Drop everything to a person."""
        for message_id in list(self._people.get(key, ())):
            self._take_out(self._messages[message_id])
            self.counts["dropped"] += 1

    def take_due(self, now_s: float) -> Message | None:
        """The pending message whose time came first, if one's has; it comes no more until its next
        step or `wake`. Expired ones come too."""
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            at_s, message_id = heappop(heap)
            if self._wake_s.get(message_id) == at_s:
                del self._wake_s[message_id]
                return self._messages[message_id]
        return None

    def wake(self, message_id: str, at_s: float) -> None:
        """Let `take_due` give a message again, from `at_s` on."""
        message = self._messages.get(message_id)
        if message is not None and message.state == PENDING:
            self._wake_s[message_id] = at_s
            heappush(self._heap, (at_s, message_id))

    def wake_all(self) -> None:
        """Let `take_due` give every pending message again that was taken and not put back."""
        for message_id, message in self._messages.items():
            if message_id not in self._wake_s:
                self.wake(message_id, message.due_s)

    def next_s(self) -> float | None:
        """When to look again at the latest; None: there is nothing to wait for."""
        return self._heap[0][0] if self._heap else None

    def for_page(self, key: bytes, now_s: float) -> list[Message]:
        """Messages to the page of a person whose time has come, oldest first."""
        found = [self._messages[message_id] for message_id in self._people.get(key, ())]
        return [
            message
            for message in found
            if not message.webhook
            and message.state == PENDING
            and message.due_s <= now_s < message.expires_s
        ]

    def dead_letters(self, tenant: str, limit: int) -> list[Message]:
        """Dead messages of a tenant, the latest first."""
        found = []
        for message_id in reversed(self._dead):
            message = self._messages[message_id]
            if message.tenant == tenant:
                found.append(message)
                if len(found) == limit:
                    break
        return found

    def entries(self) -> list[Message]:
        """All messages, in an order in which `add` makes the same outbox of them."""
        living = [m for m in self._messages.values() if m.state == PENDING]
        return living + [self._messages[message_id] for message_id in self._dead]

    def _put(self, message: Message) -> None:
        message_id = message.message_id
        self._messages[message_id] = message
        self._people.setdefault(message.key, {})[message_id] = None
        self.bytes_used += _size(message)
        if message.state == DEAD:
            self._dead[message_id] = None
            self.dead_bytes += _size(message)
        else:
            self.wake(message_id, message.due_s)

    def _take_out(self, message: Message) -> None:
        message_id = message.message_id
        del self._messages[message_id]
        of_person = self._people[message.key]
        del of_person[message_id]
        if not of_person:
            del self._people[message.key]
        self._wake_s.pop(message_id, None)
        self.bytes_used -= _size(message)
        if message.state == DEAD:
            del self._dead[message_id]
            self.dead_bytes -= _size(message)

    def check(self) -> None:
        """Prove the structure whole; O(n). Raises AssertionError: only a bug can break it."""
        messages = self._messages.values()
        assert sum(map(_size, messages)) == self.bytes_used
        assert {m.message_id for m in messages if m.state == DEAD} == self._dead.keys()
        assert sum(_size(m) for m in messages if m.state == DEAD) == self.dead_bytes
        of_people = [message_id for kept in self._people.values() for message_id in kept]
        assert sorted(of_people) == sorted(self._messages)
        entries = set(self._heap)
        for message_id, at_s in self._wake_s.items():
            assert self._messages[message_id].state == PENDING
            assert (at_s, message_id) in entries


def _size(message: Message) -> int:
    return ENTRY_BYTES + len(message.body)
