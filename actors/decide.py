"""From a decision that is asked for to the decision that is made. Changes nothing."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.engine.interface import Ranking
from actors.messages import Decision, DecisionSpec, Ranked, Rejected
from actors.tenant import Tenant

_NO_ITEMS: NDArray[np.int32] = np.zeros(0, np.int32)


class Planned(NamedTuple):
    """One decision, checked and ready to be made.

    candidates  int32 [n] item numbers, or None for the whole catalogue
    excluded    int32 [n] item numbers that must not be chosen
    """

    spec: DecisionSpec
    candidates: NDArray[np.int32] | None
    excluded: NDArray[np.int32]
    rejected: list[Rejected]


def plan(tenant: Tenant, spec: DecisionSpec) -> Planned:
    """Numbers for the ids of a decision; an unknown candidate is rejected by rule."""
    numbers = tenant.catalogue.numbers
    excluded = _NO_ITEMS
    if spec.excluded_actions:
        known = [numbers[i] for i in spec.excluded_actions if i in numbers]
        excluded = np.array(known, np.int32)
    if spec.actions is None:
        return Planned(spec, None, excluded, [])
    # Most requests name known items by plain strings: look them all up in one go.
    found: list[Any] = list(map(numbers.get, spec.actions))  # type: ignore[arg-type]
    rejected: list[Rejected] = []
    if None in found:
        ids = [action if isinstance(action, str) else action.id for action in spec.actions]
        found = [numbers.get(item_id) for item_id in ids]
        rejected = [
            Rejected(item_id, "unknown item")
            for item_id, number in zip(ids, found, strict=True)
            if number is None
        ]
        found = [number for number in found if number is not None]
    candidates = np.frombuffer(array("i", found), np.int32) if found else _NO_ITEMS
    return Planned(spec, candidates, excluded, rejected)


def decide(tenant: Tenant, decision_id: str, planned: Planned, row: int, now_s: int) -> Decision:
    """Make one planned decision for the person at `row` (-1: no profile)."""
    ranking = _rank(tenant, planned, planned.candidates, row, now_s)
    items = ranking.items.tolist()
    if planned.candidates is not None and len(set(items)) < len(items):
        # Only a repeat among the best shows in the answer, so only then it is worth a second look.
        ranking = _rank(tenant, planned, np.unique(planned.candidates), row, now_s)
        items = ranking.items.tolist()
    ids = tenant.catalogue.ids
    scores = ranking.scores.tolist()
    if len(ranking.probabilities):
        ranked = [
            Ranked(ids[item], score, probability)
            for item, score, probability in zip(
                items, scores, ranking.probabilities.tolist(), strict=True
            )
        ]
    else:
        ranked = [Ranked(ids[item], score) for item, score in zip(items, scores, strict=True)]
    spec = planned.spec
    policy = tenant.vector if spec.policy == "vector" else tenant.engine
    return Decision(
        decision_id, spec.surface, policy.policy_id, policy.version, ranked, planned.rejected
    )


def _rank(
    tenant: Tenant, planned: Planned, candidates: NDArray[np.int32] | None, row: int, now_s: int
) -> Ranking:
    spec = planned.spec
    if spec.policy == "vector":
        return tenant.vector.rank(row, candidates, spec.num_results, planned.excluded)
    exclude_seen = spec.exclude_seen
    if exclude_seen is None:
        # Content is read once; a product seen lately may be what the person comes back for.
        exclude_seen = spec.surface == "content"
    return tenant.engine.rank(
        row, candidates, spec.num_results, now_s, planned.excluded, exclude_seen
    )
