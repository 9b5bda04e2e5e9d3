"""Content and products chosen by a policy of a document: a few actions, told apart by features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.decisions import Decision, Explanation, Ranked, RankingSpec, Rejected
from actors.ledger import opened_by
from actors.surfaces.interface import Who
from actors.surfaces.traits import features_for
from actors.tenant import Tenant
from actors.treatment.baseline import baseline_order
from actors.treatment.features import Arms
from actors.treatment.policy import PERSONALIZER, Policy, default_policy
from actors.treatment.treatment import every
from cluster.errors import RequestError

NO_ITEM = -2
"""No event has this item number; -1 is an event without an item."""


class Choosing(NamedTuple):
    """A choice among actions that came with the request.

    items     numbers of the arms that are items; NO_ITEM of others
    eligible  int32 [n], the arms that are not excluded
    allowed   bool [slots, arms], which arms a slot may take; None = each may take all
    baseline  ids by slot of what stands there where the policy does not act
    """

    spec: RankingSpec
    policy: Policy
    arms: Arms
    items: list[int]
    eligible: NDArray[np.int32]
    rejected: list[Rejected]
    allowed: NDArray[np.bool_] | None = None
    baseline: tuple[str | None, ...] = ()

    def decide(self, tenant: Tenant, decision_id: str, who: Who, explain: bool) -> Decision:
        """Fill the places by the policy."""
        spec, policy, arms = self.spec, self.policy, self.arms
        made = self.blank(tenant, decision_id)
        made.mode = policy.spec.mode
        eligible = self._left(tenant, who, made.rejected)
        if not len(eligible):
            return made
        features = features_for(who)
        remembered = who.ledger.read().memories.get(policy.id, b"")
        choice = tenant.treatment.choose(
            policy,
            features,
            arms,
            who.rng,
            slots=spec.num_results,
            eligible=eligible,
            remembered=remembered,
            allowed=self.allowed,
            baseline=self.baseline,
        )
        order = choice.order.tolist()
        columns = zip(order, choice.scores.tolist(), choice.propensities.tolist(), strict=True)
        for arm, score, propensity in columns:
            entry = Ranked(arms.ids[arm], score, propensity)
            if explain:
                parts = tenant.treatment.explain(policy, features, arms, arm, remembered)
                entry.explanation = Explanation(parts)
            made.ranking.append(entry)
        if explain:
            likely = tenant.treatment.probabilities(
                policy, features, arms, eligible, remembered, self.allowed
            )
            if not choice.acted:
                likely = np.zeros(len(likely))
                likely[order[:1]] = 1.0
            made.chances = dict(zip(arms.ids, likely.tolist(), strict=True))
        if choice.explored:
            made.reasons.append("explored")
        number, names = int(decision_id[16:], 16), [slot.id for slot in spec.slots]
        who.ledger.opened.append(opened_by(policy, number, arms.ids, choice, names))
        return made

    def _left(self, tenant: Tenant, who: Who, rejected: list[Rejected]) -> NDArray[np.int32]:
        """Eligible arms without the items that the person has bought, or seen, lately."""
        if who.row < 0 or max(self.items) < 0:
            return self.eligible
        rules: dict[int, str] = {}
        if self.spec.exclude_seen:
            seen = (event.item for event in who.store.events(who.row))
            rules = dict.fromkeys(seen, "seen")
        if self.spec.exclude_bought:
            rules |= dict.fromkeys(who.store.bought(who.row).tolist(), "bought")
        if not rules:
            return self.eligible
        ids = self.arms.ids
        found = {arm: rules.get(self.items[arm]) for arm in self.eligible.tolist()}
        rejected += [Rejected(ids[arm], rule) for arm, rule in found.items() if rule is not None]
        return np.array([arm for arm, rule in found.items() if rule is None], np.int32)

    def cheap(self, tenant: Tenant, decision_id: str, who: Who) -> Decision:
        """The baseline: what slots name, then the actions in the order in which they came."""
        made = self.blank(tenant, decision_id)
        slots = self.spec.num_results
        shown = baseline_order(
            self.policy, self.arms, slots, self.eligible, self.allowed, self.baseline
        )
        made.ranking = [Ranked(self.arms.ids[arm], 0.0, 1.0) for arm in shown.tolist()]
        return made

    def blank(self, tenant: Tenant, decision_id: str) -> Decision:
        """The decision, as long as nothing is chosen."""
        return Decision(
            decision_id,
            self.spec.surface,
            self.policy.id,
            tenant.treatment.version,
            [],
            list(self.rejected),
            reasons=[],
        )


def plan_choice(
    tenant: Tenant, spec: RankingSpec, arms: Arms | None, policy: Policy | None, field: str
) -> Choosing:
    """Check a choice among actions. Raises RequestError naming the field.

    policy  the one to choose by; None: the document that the spec names
    """
    if policy is None:
        policy = tenant.policy(spec.policy)
        if policy is None and spec.policy == PERSONALIZER:
            policy = default_policy(PERSONALIZER, spec.surface)
        if policy is None:
            wanted = "default, vector or the id of a document put to /v1/policies"
            raise RequestError(
                422, "there is no such policy", f"{field}policy", spec.policy, wanted
            )
    if arms is None:
        wanted = "actions to choose among, or the policy default"
        raise RequestError(422, "the policy ranks no catalogue", f"{field}actions", "", wanted)
    for name in ("filter", "promotions", "diversity", "pins"):
        if getattr(spec, name):
            raise RequestError(
                422, "only the policies default and vector have this", f"{field}{name}"
            )
    rules: dict[str, str] = {}
    if spec.excluded_actions:
        excluded = set(spec.excluded_actions)
        rules = {arm_id: "excluded" for arm_id in arms.ids if arm_id in excluded}
    numbers, alive = tenant.catalogue.numbers, tenant.catalogue.alive
    # An action need not be an item, and for Azure's clients none is.
    items = [numbers.get(arm_id, NO_ITEM) for arm_id in arms.ids]
    if spec.policy != PERSONALIZER:
        for arm_id, item in zip(arms.ids, items, strict=True):
            if item >= 0 and not alive[item]:
                rules.setdefault(arm_id, "taken down")
    eligible = every(len(arms.ids))
    if rules:
        eligible = np.array([i for i, one in enumerate(arms.ids) if one not in rules], np.int32)
    rejected = [Rejected(arm_id, rule) for arm_id, rule in rules.items()]
    baseline = tuple(slot.baseline_action for slot in spec.slots) or (spec.baseline_action,)
    return Choosing(
        *(spec, policy, arms, items, eligible, rejected),
        _allowed(spec, arms),
        baseline if any(baseline) else (),
    )


def _allowed(spec: RankingSpec, arms: Arms) -> NDArray[np.bool_] | None:
    """Which arms each slot may take, bool [slots, arms]; None if none excludes any of its own."""
    if not any(slot.excluded_actions for slot in spec.slots):
        return None
    without = [set(slot.excluded_actions) for slot in spec.slots]
    return np.array([[arm not in out for arm in arms.ids] for out in without], np.bool_)
