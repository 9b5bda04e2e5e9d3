"""Content and products chosen by a policy of a document: a few actions, told apart by features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.decisions import Decision, Explanation, Ranked, RankingSpec, Rejected
from actors.ledger import Opened
from actors.surfaces.interface import Who
from actors.surfaces.traits import features_for
from actors.tenant import Tenant
from actors.treatment.features import Arm, Arms, arms_of
from actors.treatment.policy import Policy, default_policy
from cluster.errors import RequestError

PERSONALIZER = "personalizer"
"""The policy of Azure's API, which serves also where no document says how."""


NO_ITEM = -2
"""No event has this item number; -1 is an event without an item."""


class Choosing(NamedTuple):
    """A choice among actions that came with the request.

    eligible  int32 [n], the arms that are not excluded
    """

    spec: RankingSpec
    policy: Policy
    arms: Arms
    eligible: NDArray[np.int32]
    rejected: list[Rejected]

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
            likely = tenant.treatment.probabilities(policy, features, arms, eligible, remembered)
            made.chances = dict(zip(arms.ids, likely.tolist(), strict=True))
        if choice.explored:
            made.reasons.append("explored")
        opened = Opened(
            int(decision_id[16:], 16),
            policy,
            [arms.ids[arm] for arm in order],
            [slot.id for slot in spec.slots],
            choice.trace,
            shadow=[arms.ids[arm] for arm in choice.shadow.tolist()],
        )
        who.ledger.opened.append(opened)
        return made

    def _left(self, tenant: Tenant, who: Who, rejected: list[Rejected]) -> NDArray[np.int32]:
        """Eligible arms without the items that the person has bought, or seen, lately."""
        if who.row < 0:
            return self.eligible
        numbers, rules = tenant.catalogue.numbers, {}
        if self.spec.exclude_seen:
            seen = (event.item for event in who.store.events(who.row))
            rules = dict.fromkeys(seen, "seen")
        if self.spec.exclude_bought:
            rules |= dict.fromkeys(who.store.bought(who.row).tolist(), "bought")
        if not rules:
            return self.eligible
        ids = self.arms.ids
        found = {arm: rules.get(numbers.get(ids[arm], NO_ITEM)) for arm in self.eligible.tolist()}
        rejected += [Rejected(ids[arm], rule) for arm, rule in found.items() if rule is not None]
        return np.array([arm for arm, rule in found.items() if rule is None], np.int32)

    def cheap(self, tenant: Tenant, decision_id: str, who: Who) -> Decision:
        """The actions in the order in which they came."""
        made = self.blank(tenant, decision_id)
        shown = self.eligible[: self.spec.num_results].tolist()
        made.ranking = [Ranked(self.arms.ids[arm], 0.0, 1.0) for arm in shown]
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
    tenant: Tenant, spec: RankingSpec, actions: list[Arm], policy: Policy | None, field: str
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
    if not actions:
        wanted = "actions to choose among, or the policy default"
        raise RequestError(422, "the policy ranks no catalogue", f"{field}actions", "", wanted)
    for name in ("filter", "promotions", "diversity", "pins"):
        if getattr(spec, name):
            raise RequestError(
                422, "only the policies default and vector have this", f"{field}{name}"
            )
    try:
        arms = arms_of(actions)
    except ValueError as error:
        raise RequestError(
            422, "the actions can't be told apart", f"{field}actions", str(error)
        ) from None
    excluded = set(spec.excluded_actions)
    rules = {arm_id: "excluded" for arm_id in arms.ids if arm_id in excluded}
    numbers, alive = tenant.catalogue.numbers, tenant.catalogue.alive
    for arm_id in arms.ids:
        # An action need not be an item, and for Azure's clients none is.
        down = arm_id in numbers and not alive[numbers[arm_id]]
        if down and spec.policy != PERSONALIZER:
            rules.setdefault(arm_id, "taken down")
    eligible = [i for i, arm_id in enumerate(arms.ids) if arm_id not in rules]
    rejected = [Rejected(arm_id, rule) for arm_id, rule in rules.items()]
    return Choosing(spec, policy, arms, np.array(eligible, np.int32), rejected)
