"""When an owner has more to do than time: refuse early and cheaply, so that what is taken is quick.

Controlled delay (Nichols and Jacobson 2012, "CoDel"; as a server's gate: Maurer 2015, "Fail at
scale"). A queue that empties now and then is a burst and harmless; one in which even the luckiest
waits longer than `target` for a whole `interval` is standing, and no patience will ever shorten it.
Then whoever waited longer than the target is refused when its turn comes, which costs a hundredth
of an answer, until the standing queue is gone.
"""

from __future__ import annotations


class Admission:
    """The gate of one queue. Pure: the clock is an argument.

    target_ns    a wait that is fine
    interval_ns  how long the shortest wait must be longer before anybody is refused
    """

    def __init__(self, target_ns: int, interval_ns: int) -> None:
        self._target_ns = target_ns
        self._interval_ns = interval_ns
        self._least_ns = 0
        self._until_ns = 0
        """End of the interval; 0 = none has begun."""
        self.overloaded = False
        self.shed = 0
        """How many were refused since the start."""

    def admits(self, wait_ns: int, now_ns: int) -> bool:
        """Whether to take what has waited `wait_ns` and whose turn it is now."""
        if self._until_ns == 0:
            # It begins with a turn, not with the pause before it: what gathered in a pause of ours
            # is gone in a moment.
            self._until_ns = now_ns + self._interval_ns
            self._least_ns = wait_ns
        elif wait_ns < self._least_ns:
            self._least_ns = wait_ns
        if now_ns >= self._until_ns:
            # Under the gate the standing queue is as long as the target allows; only when it is
            # half as long the pressure has gone, and the gate may open.
            bound_ns = self._target_ns // 2 if self.overloaded else self._target_ns
            self.overloaded = self._least_ns > bound_ns
            self._until_ns = 0
        if not self.overloaded or wait_ns <= self._target_ns:
            return True
        self.shed += 1
        return False

    def idle(self) -> None:
        """The queue is empty: it is not a standing one."""
        self.overloaded = False
        self._until_ns = 0
