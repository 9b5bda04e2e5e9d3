"""What stands in each slot where no policy acts: pins, what slots name, then a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actors.treatment.features import Arms
from actors.treatment.policy import Policy
from actors.treatment.slots import SLOTS_MAX, fillable, open_at
from actors.treatment.traces import ANY


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
    kept = {arm_id for arm_id in own if arm_id is not None}
    # What another slot names for itself is left to it, while there is something else.
    order = [*policy.spec.baseline, *row_of]
    queue = [*(i for i in order if i not in kept), *(i for i in order if i in kept)]
    left, may = np.ones(free, np.bool_), np.ones(free, np.bool_)
    rows: list[int] = []
    for place, pinned in enumerate(fixed.tolist()):
        if pinned >= 0:
            rows.append(pinned)
            continue
        if len(allowed):
            open_at(place, len(fixed), allowed, left, fixed, may)
        wanted = own[place] if place < len(own) else None
        open_ids = (i for i in ([wanted, *queue] if wanted else queue) if i in row_of)
        row = next(row_of[i] for i in open_ids if left[row_of[i]] and may[row_of[i]])
        left[row] = False
        rows.append(row)
    return np.array(rows, np.int32)
