"""The outbox against a plain model: states by the table, nothing lost, nothing twice."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.outbox import GONE, PENDING, STEPS, IllegalStep, Message, Outbox, Step

PEOPLE = [bytes([n]) * 16 for n in range(3)]


def message(
    number: int, key: bytes = PEOPLE[0], webhook: str = "esp", due_s: float = 0.0
) -> Message:
    return Message(f"m{number}", "shop", key, "email", webhook, due_s, 1000.0, b"{}" * 20)


class OutboxMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.outbox = Outbox(1 << 20)
        self.states: dict[str, tuple[str, bytes, str]] = {}
        self.number = 0
        self.now_s = 0.0

    @rule(
        key=st.sampled_from(PEOPLE), webhook=st.sampled_from(["esp", ""]), wait_s=st.integers(0, 9)
    )
    def add(self, key: bytes, webhook: str, wait_s: int) -> None:
        self.number += 1
        self.outbox.add(message(self.number, key, webhook, self.now_s + wait_s))
        self.states[f"m{self.number}"] = (PENDING, key, webhook)

    @precondition(lambda self: self.states)
    @rule(data=st.data(), what=st.sampled_from(sorted({what for _, what in STEPS})))
    def step(self, data: st.DataObject, what: str) -> None:
        message_id = data.draw(st.sampled_from(sorted(self.states)))
        state, key, webhook = self.states[message_id]
        after = STEPS.get((state, what))
        step = Step(message_id, what, self.now_s + 2, 1000.0)
        if after is None:
            with pytest.raises(IllegalStep):
                self.outbox.step(step, self.now_s)
        else:
            self.outbox.step(step, self.now_s)
            if after == GONE:
                del self.states[message_id]
            else:
                self.states[message_id] = (after, key, webhook)

    @rule(key=st.sampled_from(PEOPLE))
    def forget(self, key: bytes) -> None:
        self.outbox.forget(key)
        self.states = {i: s for i, s in self.states.items() if s[1] != key}

    @rule()
    def restart(self) -> None:
        """Through a snapshot: msgpack, and `add` one by one."""
        entries = msgspec.msgpack.decode(
            msgspec.msgpack.encode(self.outbox.entries()), type=list[Message]
        )
        before = self.outbox.dead_letters("shop", 100)
        self.outbox = Outbox(1 << 20)
        for entry in entries:
            self.outbox.add(entry)
        assert self.outbox.dead_letters("shop", 100) == before

    @rule(passed_s=st.integers(0, 5))
    def take(self, passed_s: int) -> None:
        """All that is due is given once, in its order."""
        self.now_s += passed_s
        taken = []
        while (due := self.outbox.take_due(self.now_s)) is not None:
            taken.append(due)
        ids = [one.message_id for one in taken]
        assert len(set(ids)) == len(ids)
        assert all(self.states[i][0] == PENDING for i in ids)
        for one in taken:
            self.outbox.wake(one.message_id, one.due_s)
        wanted = {
            m.message_id
            for m in self.outbox.entries()
            if m.state == PENDING and m.due_s <= self.now_s
        }
        assert set(ids) == wanted

    @invariant()
    def whole(self) -> None:
        self.outbox.check()
        states = {m.message_id: (m.state, m.key, m.webhook) for m in self.outbox.entries()}
        assert states == self.states
        for key in PEOPLE:
            found = {m.message_id for m in self.outbox.for_page(key, self.now_s + 10)}
            wanted = {i for i, s in self.states.items() if s == (PENDING, key, "")}
            assert found == wanted


OutboxMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOutbox = OutboxMachine.TestCase


def test_pending_messages_never_leave_for_room_but_dead_ones_do() -> None:
    outbox = Outbox(200_000)
    number = 0
    while outbox.has_room:
        number += 1
        outbox.add(message(number))
    for one in range(1, number + 1):
        outbox.step(Step(f"m{one}", "failed", error="gone"), 1.0)
        outbox.check()
    assert outbox.dead_bytes <= 50_000
    assert outbox.counts["dropped"] == number - outbox.dead
    # The latest are kept.
    assert outbox.get(f"m{number}") is not None
    assert outbox.get("m1") is None
