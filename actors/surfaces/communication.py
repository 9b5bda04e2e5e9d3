"""Communication: whether to write to a person, what, over which channel and when."""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec.structs import replace

from actors.contact import Cause, Choice, choose, message_of, stamp
from actors.contact_rules import Prepared, check_contact_rules, prepare
from actors.decisions import CommunicationSpec, Decision, Rejected
from actors.documents import must_exist
from actors.outbox import Contacted
from actors.schedule import duration_s
from actors.surfaces.interface import Who
from actors.tenant import Tenant
from actors.triggers import Trigger
from cluster.errors import RequestError

RULES = "rules"
"""The policy of decisions that no policy made."""
DEGRADED = "degraded"


class Communication(NamedTuple):
    """A contact to decide on. trigger None: by the rules of the request."""

    spec: CommunicationSpec
    prepared: Prepared
    trigger: Trigger | None

    def decide(self, tenant: Tenant, decision_id: str, who: Who, explain: bool) -> Decision:
        """Choose, count the contact, and put the message into the outbox if we send it."""
        cause = Cause(self.spec.trigger or "")
        choice = choose(tenant, self.prepared, cause, who, int(decision_id[16:], 16))
        decision = describe(tenant, decision_id, choice, cause)
        if choice.option is not None:
            trigger = self.trigger
            message = message_of(
                choice.option,
                duration_s(self.prepared.rules.expires, "expires"),
                trigger.webhook if trigger is not None else None,
                trigger.traits if trigger is not None else (),
                cause,
                decision_id,
                who,
            )
            if message is not None:
                who.ledger.contacted.append(Contacted(0, b"", message))
            decision.queued = message is not None
        return decision

    def cheap(self, tenant: Tenant, decision_id: str, who: Who) -> Decision:
        """Nobody is written to in haste."""
        choice = Choice(None, DEGRADED, [])
        return describe(tenant, decision_id, choice, Cause(self.spec.trigger or ""))


def plan(tenant: Tenant, spec: CommunicationSpec, field: str) -> Communication:
    """Check a decision. Raises RequestError naming the field."""
    if spec.trigger is None:
        check_contact_rules(spec, field)
        must_exist(tenant.documents, "policies", spec.policy, f"{field}policy")
        return Communication(spec, prepare(spec), None)
    must_exist(tenant.documents, "triggers", spec.trigger, f"{field}trigger")
    given = [
        name
        for name in ("templates", "delays", "policy", "hold_back", "requires_consent")
        if getattr(spec, name)
    ]
    if given or spec.frequency_cap or spec.quiet_hours:
        wanted = "channels beside the trigger, whose document has the rules"
        raise RequestError(422, "the trigger has its own rules", f"{field}trigger", "", wanted)
    trigger: Any = tenant.documents.get("triggers", spec.trigger)
    if not spec.channels:
        return Communication(spec, prepare(trigger), trigger)
    channels = tuple(one for one in trigger.channels if one in spec.channels)
    if not channels:
        seen, wanted = ", ".join(spec.channels), ", ".join(trigger.channels)
        raise RequestError(422, "the trigger has no such channel", f"{field}channels", seen, wanted)
    narrowed = replace(trigger, channels=channels)
    return Communication(spec, prepare(narrowed), narrowed)


def describe(tenant: Tenant, decision_id: str, choice: Choice, cause: Cause) -> Decision:
    """A choice as a decision, whoever asked for it."""
    option, policy = choice.option, choice.policy
    return Decision(
        decision_id,
        "communication",
        policy.id if policy is not None else RULES,
        tenant.treatment.version if policy is not None else "",
        [],
        [Rejected(one.option.id, one.rule) for one in choice.rejected],
        mode=policy.spec.mode if policy is not None else None,
        send=option is not None,
        trigger=cause.trigger or None,
        channel=option.channel if option is not None else None,
        template=(option.template or None) if option is not None else None,
        send_at=stamp(option.send_at_s) if option is not None else None,
        suppressed_by=choice.suppressed_by or None,
        propensity=choice.propensity if policy is not None else None,
    )
