"""Timers in simulated time: fired once, never after a cancel, none lost over a restart."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors.timers import Due, Timers

PEOPLE = st.integers(0, 5).map(lambda n: bytes([n]) * 16)
TRIGGERS = st.sampled_from(["cart", "browse", "search"])


class TimersMachine(RuleBasedStateMachine):
    """Beside them the plainest model: a dictionary, asked as a whole at every step."""

    @initialize()
    def begin(self) -> None:
        self.now_s = 1000
        self.timers = Timers(12)
        self.model: dict[tuple[bytes, str], int] = {}

    @rule(key=PEOPLE, trigger=TRIGGERS, wait_s=st.integers(1, 50))
    def set(self, key: bytes, trigger: str, wait_s: int) -> None:
        room = (key, trigger) in self.model or len(self.model) < 12
        assert self.timers.set(key, trigger, self.now_s + wait_s) is room
        if room:
            self.model[key, trigger] = self.now_s + wait_s

    @rule(key=PEOPLE, trigger=TRIGGERS)
    def cancel(self, key: bytes, trigger: str) -> None:
        found = self.model.pop((key, trigger), None) is not None
        assert self.timers.cancel(key, trigger) is found

    @rule()
    def restart(self) -> None:
        """What the ledgers say is all there is."""
        self.timers = Timers(12)
        self.timers.rebuild(Due(*timer, due_s) for timer, due_s in self.model.items())

    @rule(passed_s=st.integers(0, 60))
    def wait(self, passed_s: int) -> None:
        self.now_s += passed_s
        fired = []
        while (due := self.timers.take(self.now_s)) is not None:
            assert self.model.pop((due.key, due.trigger)) == due.due_s <= self.now_s
            fired.append(due.due_s)
        assert fired == sorted(fired)
        assert all(due_s > self.now_s for due_s in self.model.values())

    @invariant()
    def whole(self) -> None:
        self.timers.check()
        assert len(self.timers) == len(self.model)
        if self.model:
            # Whoever sleeps until then misses none.
            next_s = self.timers.next_s()
            assert next_s is not None
            assert next_s <= min(self.model.values())


TimersMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTimers = TimersMachine.TestCase


def test_a_busy_visitor_does_not_grow_the_heap() -> None:
    timers = Timers(10)
    for second in range(10_000):
        timers.set(b"ada", "cart", second + 1800)
        timers.check()
    assert timers.take(10_000 + 1798) is None
    assert timers.take(10_000 + 1799) == Due(b"ada", "cart", 9999 + 1800)
