"""From a decision that is asked for to the decision that is made. Changes nothing."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.context import Codes
from actors.engine.interface import Ranking
from actors.engine.kernels import FEATURE_NAMES
from actors.messages import Decision, DecisionSpec, Ranked, Rejected
from actors.rules import Filling, Place, Rules, check_rules
from actors.store import ProfileStore
from actors.tenant import Tenant

_NO_ITEMS: NDArray[np.int32] = np.zeros(0, np.int32)


CONTEXT_CANDIDATES = 100
"""With a context at least so many are ranked, since it may lift one that stood further down."""


class Planned(NamedTuple):
    """One decision, checked and ready to be made.

    candidates  int32 [n] item numbers, or None for the whole catalogue
    excluded    int32 [n] item numbers that must not be chosen
    """

    spec: DecisionSpec
    candidates: NDArray[np.int32] | None
    excluded: NDArray[np.int32]
    rejected: list[Rejected]
    rules: Rules | None


def plan(tenant: Tenant, spec: DecisionSpec, field: str) -> Planned:
    """Numbers for the ids of a decision; an unknown candidate is rejected by rule.

    Raises RequestError if a rule can't be read; `field` is where the spec stands.
    """
    rules = check_rules(tenant, spec, field)
    numbers = tenant.catalogue.numbers
    excluded = _NO_ITEMS
    if spec.excluded_actions:
        known = [numbers[i] for i in spec.excluded_actions if i in numbers]
        excluded = np.array(known, np.int32)
    if spec.actions is None:
        return Planned(spec, None, excluded, [], rules)
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
    return Planned(spec, candidates, excluded, rejected, rules)


def decide(
    tenant: Tenant,
    decision_id: str,
    planned: Planned,
    who: Who,
    explain: bool,
) -> Decision:
    """Make one planned decision."""
    spec = planned.spec
    if who.row >= 0 and spec.exclude_bought:
        bought = who.store.bought(who.row)
        if len(bought):
            planned = planned._replace(excluded=np.concatenate([planned.excluded, bought]))
    rejected = planned.rejected
    if planned.rules is None:
        places = _places(_rank_once(tenant, planned, who))
    else:

        def rank(candidates: NDArray[np.int32] | None, k: int) -> Ranking:
            return _rank(tenant, planned, candidates, k, who)

        candidates = (
            planned.candidates if planned.candidates is None else np.unique(planned.candidates)
        )
        filling = Filling(tenant, spec, planned.rules, candidates, rank, who.rng)
        places = filling.fill()
        rejected = rejected + filling.rejected
    ids = tenant.catalogue.ids
    ranked = [Ranked(ids[p.item], p.score, p.probability, p.reason) for p in places]
    if explain:
        _explain(tenant, spec, who, places, ranked)
    policy = tenant.vector if spec.policy == "vector" else tenant.engine
    return Decision(decision_id, spec.surface, policy.policy_id, policy.version, ranked, rejected)


class Who(NamedTuple):
    """For whom, when and in which context a decision is made. row -1: a person without profile."""

    store: ProfileStore
    row: int
    now_s: int
    context: Codes
    rng: np.random.Generator


def _rank_once(tenant: Tenant, planned: Planned, who: Who) -> Ranking:
    """The best of the candidates, each named once."""
    k = planned.spec.num_results
    ranking = _rank(tenant, planned, planned.candidates, k, who)
    items = ranking.items.tolist()
    if planned.candidates is not None and len(set(items)) < len(items):
        # Only a repeat among the best shows in the answer, so only then it is worth a second look.
        ranking = _rank(tenant, planned, np.unique(planned.candidates), k, who)
    return ranking


def _places(ranking: Ranking) -> list[Place]:
    items, scores = ranking.items.tolist(), ranking.scores.tolist()
    chances = ranking.probabilities.tolist() or [None] * len(items)
    return [Place(*entry, None) for entry in zip(items, scores, chances, strict=True)]


def _explain(
    tenant: Tenant, spec: DecisionSpec, who: Who, places: list[Place], ranked: list[Ranked]
) -> None:
    """Tell of every result what its score is made of; the parts add up to it."""
    if spec.policy == "vector":
        for entry in ranked:
            entry.explanation = {"vector": entry.score}
        return
    items = np.array([place.item for place in places], np.int32)
    parts = tenant.engine.explain(who.row, items)
    lift = tenant.context.lift(who.context, items, tenant.catalogue.attribute_ids)
    for entry, values, context in zip(ranked, parts.tolist(), lift.tolist(), strict=True):
        named = zip((*FEATURE_NAMES, "context"), (*values, context), strict=True)
        entry.explanation = {name: value for name, value in named if value != 0.0}


def _rank(
    tenant: Tenant, planned: Planned, candidates: NDArray[np.int32] | None, k: int, who: Who
) -> Ranking:
    spec = planned.spec
    if spec.policy == "vector":
        return tenant.vector.rank(who.row, candidates, k, planned.excluded)
    exclude_seen = spec.exclude_seen
    if exclude_seen is None:
        # Content is read once; a product seen lately may be what the person comes back for.
        exclude_seen = spec.surface == "content"
    wanted = k if not len(who.context) else max(4 * k, CONTEXT_CANDIDATES)
    ranking = tenant.engine.rank(
        who.row, candidates, wanted, who.now_s, planned.excluded, exclude_seen
    )
    return ranking if not len(who.context) else _in_context(tenant, ranking, k, who.context)


def _in_context(tenant: Tenant, ranking: Ranking, k: int, context: Codes) -> Ranking:
    """The k best once the context is counted in; the probabilities keep their sum."""
    lift = tenant.context.lift(context, ranking.items, tenant.catalogue.attribute_ids)
    scores = ranking.scores + lift
    order = np.argsort(-scores, kind="stable")[:k]
    likelier = ranking.probabilities * np.exp(lift)
    total = float(likelier.sum())
    if total > 0.0:
        likelier *= float(ranking.probabilities.sum()) / total
    return Ranking(ranking.items[order], scores[order], likelier[order])
