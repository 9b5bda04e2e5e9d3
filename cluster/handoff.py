"""Handing key ranges from shards to others while both live: who may do what, and when. Pure.

    copy -> stream -> freeze -> catch up -> swap -> forward -> done
                 any of them before the swap -> abort

Shards side by side (sources) are replaced by new ones (targets) that cover the same keys: a split,
a merge, a move and a shift are one and the same. Targets follow the sources' logs while these
serve. Then the sources freeze: what arrives is held, neither applied nor answered. The targets take
in the rest, and one compare-and-swap of the table gives all their ranges away at once. That swap is
all that counts: before it everything can be thrown away, after it all find it in the table.

The one rule that makes it safe: **a frozen owner goes on only with a new epoch.** It may not know
whether the swap that deposes it is under way. The swap holds only for the epochs at which the
sources froze, so whichever of the two comes first makes the other impossible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec.structs import replace

from cluster.errors import IllegalTransition
from cluster.ownership import Claim, NotEntitled, Table

FREEZE_S_MAX = 1.0
"""How long a source holds what arrives; then it claims its range again."""


class Step(StrEnum):
    """How far a handoff is."""

    COPY = "copy"
    STREAM = "stream"
    FREEZE = "freeze"
    CATCH_UP = "catch up"
    SWAP = "swap"
    FORWARD = "forward"
    DONE = "done"
    ABORT = "abort"
    ABORTED = "aborted"


STEPS: Mapping[tuple[Step, str], Step] = {
    (Step.COPY, "copied"): Step.STREAM,
    (Step.STREAM, "near"): Step.FREEZE,
    (Step.FREEZE, "frozen"): Step.CATCH_UP,
    (Step.CATCH_UP, "caught up"): Step.SWAP,
    (Step.SWAP, "won"): Step.FORWARD,
    (Step.FORWARD, "told"): Step.DONE,
    (Step.SWAP, "lost"): Step.ABORT,
    (Step.ABORT, "undone"): Step.ABORTED,
} | {(step, "failed"): Step.ABORT for step in (Step.COPY, Step.STREAM, Step.FREEZE, Step.CATCH_UP)}
"""(step, event) -> step. A swap of which it is not known what came of it is neither won nor lost,
so it has no "failed": one asks until one knows."""


def after(step: Step, event: str) -> Step:
    """The next step. Raises IllegalTransition."""
    found = STEPS.get((step, event))
    if found is None:
        raise IllegalTransition(f"{event!r} while a handoff is at {step}")
    return found


class Gating(StrEnum):
    """What a source does with requests."""

    OPEN = "open"
    FROZEN = "frozen"
    CLAIMING = "claiming"
    GONE = "gone"


GATES: Mapping[tuple[Gating, str], Gating] = {
    (Gating.OPEN, "freeze"): Gating.FROZEN,
    (Gating.FROZEN, "claim"): Gating.CLAIMING,
    (Gating.CLAIMING, "won"): Gating.OPEN,
} | {(gating, "deposed"): Gating.GONE for gating in Gating}
"""(gating, event) -> gating. There is no way from frozen to open but through a claim."""


class Admission(StrEnum):
    """What becomes of a request: served, held until that is known, or sent elsewhere (421)."""

    SERVE = "serve"
    HOLD = "hold"
    MOVED = "moved"


class Gate:
    """A source's side. `now_s` is monotonic.

    epoch  at which this owner serves
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.gating = Gating.OPEN
        self.handoff = ""
        """Of the handoff for which it froze last."""
        self._frozen_s = 0.0

    def freeze(self, handoff: str, epoch: int, now_s: float) -> None:
        """Hold what arrives from now on. Idempotent for the same handoff.

        Raises NotEntitled if this owner is not at `epoch`, or is frozen for another handoff.
        """
        if self.gating is Gating.FROZEN and (handoff, epoch) == (self.handoff, self.epoch):
            return
        if self.gating is not Gating.OPEN or epoch != self.epoch:
            raise NotEntitled(
                f"it can't freeze for {handoff} at epoch {epoch}: it is {self.gating} at "
                f"{self.epoch}"
            )
        self._move("freeze")
        self.handoff, self._frozen_s = handoff, now_s

    @property
    def admission(self) -> Admission:
        """What to do with a request now."""
        if self.gating is Gating.OPEN:
            return Admission.SERVE
        return Admission.MOVED if self.gating is Gating.GONE else Admission.HOLD

    def must_claim(self, now_s: float) -> bool:
        """Whether it has been frozen for too long: claim the next epoch, and tell the outcome."""
        return self.gating is Gating.FROZEN and now_s - self._frozen_s >= FREEZE_S_MAX

    def claim(self) -> None:
        """A claim of the next epoch is under way: held requests go on waiting."""
        self._move("claim")

    def claimed(self, epoch: int) -> None:
        """The claim was won: it serves, at that epoch."""
        self._move("won")
        self.epoch = epoch

    def deposed(self) -> None:
        """The table names others: whoever asks is sent there."""
        self._move("deposed")

    def _move(self, event: str) -> None:
        found = GATES.get((self.gating, event))
        if found is None:
            raise IllegalTransition(f"{event!r} while {self.gating}")
        self.gating = found


def claim_again(claim: Claim, epoch: int, copy_id: str) -> Claim:
    """What a frozen owner claims to go on. Raises NotEntitled if it is not the owner any more."""
    if claim.epoch != epoch or claim.owner.copy_id != copy_id:
        raise NotEntitled(f"shard {claim.shard_id} is owned at epoch {claim.epoch}, not {epoch}")
    return replace(claim, epoch=epoch + 1)


def reshaped(table: Table, frozen: Mapping[str, int], targets: Sequence[Claim]) -> Table:
    """The table with `targets` in place of the shards in `frozen`, all at one new epoch.

    frozen   the epoch by shard at which each source froze
    targets  claims whose epoch does not matter yet
    Raises   NotEntitled if a source has another epoch by now, ValueError if the targets do not
             cover the sources' keys, or a name is taken

    >>> from cluster.keys import HASH_SPACE, KeyRange
    >>> from cluster.ownership import Copy, claim_of
    >>> whole = Table((claim_of("0", KeyRange(0, HASH_SPACE), 4, Copy("a")),), 50)
    >>> halves = [claim_of("1", KeyRange(0, 8), 0, Copy("b")),
    ...           claim_of("2", KeyRange(8, HASH_SPACE), 0, Copy("c"))]
    >>> [(c.shard_id, c.epoch) for c in reshaped(whole, {"0": 4}, halves).claims]
    [('1', 5), ('2', 5)]
    """
    for shard_id, epoch in frozen.items():
        now = table.claim(shard_id).epoch
        if now != epoch:
            raise NotEntitled(f"shard {shard_id} froze at epoch {epoch}, its claim is at {now}")
    epoch = max(frozen.values()) + 1
    kept = [claim for claim in table.claims if claim.shard_id not in frozen]
    made = [replace(target, epoch=epoch) for target in targets]
    claims = sorted((*kept, *made), key=lambda claim: claim.range.start)
    return replace(table, claims=tuple(claims))


def landed(table: Table, targets: Sequence[Claim]) -> bool:
    """Whether a swap for these targets has happened: the table names one of their shards.

    Shard names are given out once, so nothing else can have put it there."""
    names = {target.shard_id for target in targets}
    return any(claim.shard_id in names for claim in table.claims)
