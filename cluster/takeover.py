"""Becoming the owner of a copy: claim -> seal -> replay -> wait -> serve. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from cluster.errors import IllegalTransition


class Step(StrEnum):
    """How far a takeover is."""

    CLAIM = "claim"
    SEAL = "seal"
    REPLAY = "replay"
    WAIT = "wait"
    SERVE = "serve"
    REFUSED = "refused"


STEPS: Mapping[tuple[Step, str], Step] = {
    (Step.CLAIM, "won"): Step.SEAL,
    (Step.CLAIM, "lost"): Step.REFUSED,
    (Step.SEAL, "sealed"): Step.REPLAY,
    (Step.REPLAY, "replayed"): Step.WAIT,
    (Step.WAIT, "lease over"): Step.SERVE,
}
"""(step, event) -> step. Sealed only after the claim is ours: else a loser would cut off the owner.
Replayed only after the seal: else what is let in meanwhile would be acknowledged and not known."""


class Takeover:
    """From the decision to take over to an owner that serves.

    served  whether an owner has served from this copy before. If not, the owner of the copy that
            was served from may still hold a lease. The copy itself must remember: who takes over
            may die while it waits, and its successor finds the copy to be the owner's.
    """

    def __init__(self, served: bool) -> None:
        self.served = served
        self.step = Step.CLAIM
        self._until_s = 0.0

    def claimed(self, won: bool) -> None:
        self._move("won" if won else "lost")

    def sealed(self, lease_s: float, now_s: float) -> None:
        """The copy lets in nobody else; a lease of the owner before may last `lease_s` yet."""
        self._move("sealed")
        self._until_s = now_s if self.served else now_s + lease_s

    def replayed(self) -> None:
        """All that the copy holds is in memory."""
        self._move("replayed")

    def wait_s(self, now_s: float) -> float:
        """How long to wait yet before serving; 0 = it may serve."""
        if self.step is Step.WAIT and now_s >= self._until_s:
            self._move("lease over")
        return max(0.0, self._until_s - now_s)

    def _move(self, event: str) -> None:
        after = STEPS.get((self.step, event))
        if after is None:
            raise IllegalTransition(f"{event} while at {self.step}")
        self.step = after
