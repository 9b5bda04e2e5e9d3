"""What stands in each slot where no policy acts: pins, what slots name, then a fixed order.

And how likely it is beside what a policy showed, so that what it would earn can be estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from actors.treatment.features import Arms
from actors.treatment.policy import Policy
from actors.treatment.slots import SLOTS_MAX, fillable, open_at
from actors.treatment.traces import ANY, Traced


def baseline_order(
    policy: Policy,
    arms: Arms,
    slots: int,
    eligible: NDArray[np.int32],
    allowed: NDArray[np.bool_] | None = None,
    baseline: Sequence[str | None] = (),
) -> NDArray[np.int32]:
    """What stands in each slot where no policy acts, int32 indices of arms; as `choose` says."""
    count = min(slots, SLOTS_MAX, len(eligible))
    may = ANY if allowed is None else allowed[:count, eligible].copy()
    fixed = np.full(count, -1, np.int32)
    if len(may):
        fixed = fixed[: fillable(may, fixed)]
    rows = baseline_rows(policy, arms, eligible, len(eligible), fixed, may, baseline)
    return eligible[rows]


def baseline_rows(
    policy: Policy,
    arms: Arms,
    candidates: NDArray[np.int32],
    free: int,
    fixed: NDArray[np.int32],
    allowed: NDArray[np.bool_],
    own: Sequence[str | None],
) -> NDArray[np.int32]:
    """Rows of candidates in the baseline's order, pins where they belong; each slot's own first."""
    row_of = {arms.ids[arm]: row for row, arm in enumerate(candidates[:free].tolist())}
    first = [row_of[one] for one in policy.spec.baseline if one in row_of]
    named = [-1 if one is None else row_of.get(one, -1) for one in own]
    return _in_order(free, first, fixed, allowed, named)


def rows_named(
    baseline: Sequence[str | None], arms: Arms, candidates: NDArray[np.int32]
) -> NDArray[np.int32]:
    """By slot the row of the arm that the call names as baseline, int32; -1 = none that is there"""
    rows = candidates.tolist()
    found: list[int] = []
    for one in baseline:
        arm = arms.ids.index(one) if one is not None and one in arms.ids else -1
        found.append(rows.index(arm) if arm in rows else -1)
    return np.array(found, np.int32)


def baseline_odds(policy: Policy, seen: Traced) -> tuple[list[float], int]:
    """Where the policy acted: by slot P(the baseline shows that) / P(the policy showed it), of the
    slots up to there; and how many slots are as the baseline's. A pin is no choice, and weighs 1.
    """
    row_of = {arm: row for row, arm in enumerate(seen.arms[: seen.free].tolist())}
    hashes = (crc32(one.encode()) for one in policy.spec.baseline)
    first = [row_of[one] for one in hashes if one in row_of]
    fixed = np.where(seen.shown >= seen.free, seen.shown, -1).astype(np.int32)
    order = _in_order(seen.free, first, fixed, seen.allowed, seen.named.tolist())
    same = order == seen.shown
    return (same / seen.propensities).cumprod().tolist(), int(same.sum())


def _in_order(
    free: int,
    first: Sequence[int],
    fixed: NDArray[np.int32],
    allowed: NDArray[np.bool_],
    own: Sequence[int],
) -> NDArray[np.int32]:
    """Rows by slot: what is fixed there, else its own (-1 = none), else those of `first`, then the
    others as they come.
    """
    # What another slot names for itself is left to it, while there is something else.
    queue = sorted(dict.fromkeys([*first, *range(free)]), key=lambda row: row in own)
    left, may = np.ones(free, np.bool_), np.ones(free, np.bool_)
    rows: list[int] = []
    for place, pinned in enumerate(fixed.tolist()):
        if pinned >= 0:
            rows.append(pinned)
            continue
        if len(allowed):
            open_at(place, len(fixed), allowed, left, fixed, may)
        wanted = own[place] if place < len(own) else -1
        turns = [wanted, *queue] if wanted >= 0 else queue
        row = next(row for row in turns if left[row] and may[row])
        left[row] = False
        rows.append(row)
    return np.array(rows, np.int32)
