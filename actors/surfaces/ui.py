"""The page itself: which variant of a flag, or which layout of several slots, a person sees."""

from __future__ import annotations

from typing import NamedTuple

from actors.decisions import Decision, Evaluated, Explanation, FilledSlot, Ranked, UiSpec
from actors.ledger import Sticky, opened_by
from actors.surfaces.common import share_of
from actors.surfaces.experiments import arrange
from actors.surfaces.flag_documents import Compiled, compile_flags
from actors.surfaces.interface import Who
from actors.surfaces.targeting import matches
from actors.surfaces.traits import features_for, known_of
from actors.tenant import Tenant
from actors.treatment.policy import Policy
from cluster.errors import RequestError

# In OpenFeature's words.
STATIC, DISABLED, DEFAULT = "STATIC", "DISABLED", "DEFAULT"
TARGETING_MATCH, SPLIT = "TARGETING_MATCH", "SPLIT"


class FlagPlan(NamedTuple):
    """One flag to be evaluated."""

    flag: Compiled

    def decide(self, tenant: Tenant, decision_id: str, who: Who, explain: bool) -> Decision:
        """Evaluate it for the person."""
        flag = self.flag
        made = _blank(tenant, decision_id, flag)
        if not flag.flag.enabled:
            return _shown(made, flag, flag.order, DISABLED)
        arranged = arrange(tenant, "ui", flag.key, who)
        made.holdout, made.experiment = arranged.holdout, arranged.assignment
        if arranged.holdout is not None:
            return _shown(made, flag, flag.order, DEFAULT)
        if arranged.arm in flag.flag.variants:
            return _shown(made, flag, _first(flag, str(arranged.arm)), SPLIT)
        for term, variant in flag.rules:
            if matches(term, known_of(who)):
                return _shown(made, flag, _first(flag, variant), TARGETING_MATCH)
        policy = arranged.policy or flag.policy
        if policy is not None:
            return _learned(made, tenant, self.flag, policy, who, explain)
        if flag.flag.weights:
            variant = flag.weighted(share_of(f"flag/{flag.key}", who.key))
            return _shown(made, flag, _first(flag, variant), SPLIT)
        return _shown(made, flag, flag.order, STATIC)

    def cheap(self, tenant: Tenant, decision_id: str, who: Who) -> Decision:
        """The default."""
        return _shown(_blank(tenant, decision_id, self.flag), self.flag, self.flag.order, DEFAULT)


def plan(tenant: Tenant, spec: UiSpec, field: str) -> FlagPlan:
    """Check a flag that is asked for. Raises RequestError naming the field."""
    flag = tenant.documents.derived(compile_flags).get(spec.flag_key)
    if flag is None:
        raise RequestError(
            422,
            "there is no such flag",
            f"{field}flagKey",
            spec.flag_key,
            "the id of a document put to /v1/flags",
        )
    return FlagPlan(flag)


def _learned(
    made: Decision, tenant: Tenant, flag: Compiled, policy: Policy, who: Who, explain: bool
) -> Decision:
    made.policy_id, made.mode = policy.id, policy.spec.mode
    name = f"flags/{flag.key}"
    # A profile made for the ledger begins its session now.
    session = int(who.store.rows["session_start"][who.row]) if who.row >= 0 else who.now_s
    kept = who.ledger.read().sticky.get(name)
    stays = flag.flag.sticky != "none" and policy.acts
    # A policy that is stopped has no say any more, not by what it once chose either.
    if kept is not None and stays and kept.session in (0, session):
        order = [one for one in kept.variant.split("\n") if one in flag.flag.variants]
        if len(order) == min(len(flag.slots), len(flag.order)):
            made.reasons.append(f"sticky per {flag.flag.sticky}")
            return _shown(made, flag, order, SPLIT)
    features = features_for(who)
    remembered = who.ledger.read().memories.get(policy.id, b"")
    choice = tenant.treatment.choose(
        policy, features, flag.arms, who.rng, slots=len(flag.slots), remembered=remembered
    )
    order = [flag.arms.ids[i] for i in choice.order.tolist()]
    _shown(made, flag, order, SPLIT)
    columns = zip(
        made.ranking,
        choice.order.tolist(),
        choice.scores.tolist(),
        choice.propensities.tolist(),
        strict=True,
    )
    for entry, arm, score, propensity in columns:
        entry.score, entry.probability = score, propensity
        if explain:
            parts = tenant.treatment.explain(policy, features, flag.arms, arm, remembered)
            entry.explanation = Explanation(parts)
    for slot, propensity in zip(made.slots, choice.propensities.tolist(), strict=False):
        slot.probability = propensity
    if choice.explored:
        made.reasons.append("explored")
    if stays:
        until = session if flag.flag.sticky == "session" else 0
        who.ledger.change().sticky[name] = Sticky("\n".join(order), 0, until)
    number = int(made.decision_id[16:], 16)
    who.ledger.opened.append(opened_by(policy, number, flag.arms.ids, choice, flag.slots))
    return made


def _blank(tenant: Tenant, decision_id: str, flag: Compiled) -> Decision:
    policy_id = flag.policy.id if flag.policy is not None else "flag"
    return Decision(
        decision_id, "ui", policy_id, tenant.treatment.version, [], [], reasons=[], flags={}
    )


def _first(flag: Compiled, variant: str) -> list[str]:
    """All variants, this one first."""
    return [variant, *(name for name in flag.order if name != variant)]


def _shown(made: Decision, flag: Compiled, order: list[str], reason: str) -> Decision:
    """Fill the slots with variants in order, with probability 1."""
    order = order[: len(flag.slots)]
    values = flag.flag.variants
    made.ranking = [Ranked(name, 0.0, 1.0) for name in order]
    if flag.flag.slots:
        pairs = list(zip(flag.slots, order, strict=False))
        made.slots = [FilledSlot(slot, name, 1.0) for slot, name in pairs]
        value = {slot: values[name] for slot, name in pairs}
        made.flags = {flag.key: Evaluated(",".join(order), value, reason)}
    else:
        made.flags = {flag.key: Evaluated(order[0], values[order[0]], reason)}
    return made
