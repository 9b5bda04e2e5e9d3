"""Whether to contact a person, and if so what, over which channel and when.

What the rules allow is settled first; among that a policy chooses, or the first is taken. So the
policy learns from what was possible, and its propensities are exact over that.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np

from actors.contact_rules import (
    HOLD_BACK,
    IN_APP,
    Option,
    Prepared,
    Rejected,
    Threshold,
    book,
    possible,
)
from actors.ledger import Contact, Opened, Reach, opened_by
from actors.messages import Wire
from actors.outbox import Message
from actors.schedule import local_time
from actors.surfaces.interface import Who
from actors.surfaces.traits import SCALAR, traits_of
from actors.tenant import Tenant
from actors.treatment.features import Arms, Features, Value, features_of
from actors.treatment.policy import Policy
from cluster.keys import ANONYMOUS, USER

EVENT_TYPE = "onehop.message"
UNLIKELY = "the predicted success is out of bounds"
HELD_BACK = "held back by the policy"
DAY_S = 86400


class Cause(NamedTuple):
    """Why somebody is contacted. trigger "": a decision was asked for."""

    trigger: str = ""
    event: str = ""
    item: str = ""


class Choice(NamedTuple):
    """What was chosen. option None: nothing is sent, and suppressed_by says why.

    propensity  of this choice among what was allowed; 1 without a policy
    opened      for the rewards of a policy; None without one
    """

    option: Option | None
    suppressed_by: str
    rejected: list[Rejected]
    policy: Policy | None = None
    propensity: float = 1.0
    chance: float | None = None
    opened: Opened | None = None


class MessageData(Wire):
    """`data` of the CloudEvent: who, what, over which channel, when and why."""

    decision_id: str
    channel: str
    send_at: str
    user_id: str | None = None
    anonymous_id: str | None = None
    template: str | None = None
    trigger: str | None = None
    event: str | None = None
    item_id: str | None = None
    traits: dict[str, Any] = msgspec.field(default_factory=dict)


class CloudEvent(msgspec.Struct):
    """CloudEvents 1.0, structured JSON."""

    id: str
    source: str
    type: str
    subject: str
    time: str
    data: MessageData
    specversion: str = "1.0"
    datacontenttype: str = "application/json"


_encode = msgspec.json.Encoder().encode


def choose(
    tenant: Tenant,
    prepared: Prepared,
    cause: Cause,
    who: Who,
    number: int,
    chance: Threshold | None = None,
) -> Choice:
    """The contact to make; it is counted in the person's ledger.

    number  of the decision, for the rewards of a policy
    chance  of success that the policy must predict for what it chose; None: any
    """
    traits = traits_of(who)
    zone = zone_of(traits)
    ledger = who.ledger.read()
    allowed, rejected = possible(prepared, cause.trigger, ledger, zone, who.now_s)
    if not allowed:
        return Choice(None, rejected[0].rule, rejected)
    policy = tenant.policy(prepared.rules.policy) if prepared.rules.policy is not None else None
    if policy is None or prepared.arms is None:
        choice = Choice(allowed[0][1], "", rejected)
    else:
        made = (number, allowed, rejected, cause, who, traits)
        choice = _learned(tenant, prepared.arms, policy, *made)
        if chance is not None and choice.chance is not None and not chance.holds(choice.chance):
            return choice._replace(option=None, suppressed_by=UNLIKELY)
    if choice.opened is not None:
        who.ledger.opened.append(choice.opened)
    if choice.option is not None:
        contact = Contact(choice.option.send_at_s, choice.option.channel, cause.trigger)
        book(who.ledger.change(), contact)
    return choice


def _learned(
    tenant: Tenant,
    arms: Arms,
    policy: Policy,
    number: int,
    allowed: list[tuple[int, Option]],
    rejected: list[Rejected],
    cause: Cause,
    who: Who,
    traits: dict[str, Any],
) -> Choice:
    """What the policy chooses among the allowed."""
    by_arm = dict(allowed)
    eligible = list(by_arm)
    if arms.ids[-1] == HOLD_BACK:
        eligible.append(len(arms.ids) - 1)
    chosen = tenant.treatment.choose(
        policy,
        _features(cause, who, traits),
        arms,
        who.rng,
        eligible=np.array(eligible, np.int32),
        remembered=who.ledger.read().memories.get(policy.id, b""),
    )
    option = by_arm.get(int(chosen.order[0]))
    return Choice(
        option,
        "" if option is not None else HELD_BACK,
        rejected,
        policy,
        float(chosen.propensities[0]),
        float(chosen.chances[0]),
        opened_by(policy, number, arms.ids, chosen),
    )


def _features(cause: Cause, who: Who, traits: dict[str, Any]) -> Features:
    """What a policy knows: why, the moment where the person is, and what the person is like."""
    local = local_time(zone_of(traits), who.now_s)
    recent = [c for c in who.ledger.read().contacts if c.time_s > who.now_s - 7 * DAY_S]
    known: dict[str, Value] = {
        name: value for name, value in traits.items() if isinstance(value, SCALAR)
    }
    known |= dict(who.named)
    known |= {"trigger": cause.trigger or None, "event": cause.event or None}
    known |= {"hour": f"{local.hour:02d}", "weekday": local.strftime("%a"), "contacts": len(recent)}
    if who.row >= 0:
        row = who.store.rows[who.row]
        known["sessionEvents"], known["money"] = int(row["session_events"]), float(row["money"])
    return features_of(known)


def message_of(
    option: Option,
    expires_s: int,
    webhook: str | None,
    names: tuple[str, ...],
    cause: Cause,
    decision_id: str,
    who: Who,
) -> Message | None:
    """The message that says so to a webhook or the page; None if the caller sends it.

    expires_s  how long after its time it is still worth sending
    names      of the traits that it carries
    """
    page = option.channel == IN_APP
    if who.reach is None or not (page or webhook):
        return None
    reach = who.reach
    traits = traits_of(who) if names else {}
    user = reach.kind == USER
    data = MessageData(
        decision_id,
        option.channel,
        stamp(option.send_at_s),
        reach.person if user else None,
        None if user else reach.person,
        option.template or None,
        cause.trigger or None,
        cause.event or None,
        cause.item or None,
        {name: traits[name] for name in names if name in traits},
    )
    source = f"urn:onehop:{reach.tenant}"
    event = CloudEvent(decision_id, source, EVENT_TYPE, reach.person, stamp(who.now_s), data)
    return Message(
        decision_id,
        reach.tenant,
        who.key,
        option.channel,
        "" if page else webhook or "",
        float(option.send_at_s),
        float(option.send_at_s + expires_s),
        _encode(event),
    )


def zone_of(traits: dict[str, Any]) -> str:
    """The person's time zone, "" if the trait `timezone` is no text."""
    zone = traits.get("timezone")
    return zone if isinstance(zone, str) else ""


def reach_of(tenant: str, user_id: str | None, anonymous_id: str | None) -> Reach:
    """Whom a request is about, by id."""
    if user_id is not None:
        return Reach(tenant, USER, user_id)
    return Reach(tenant, ANONYMOUS, anonymous_id or "")


def stamp(at_s: float) -> str:
    """RFC 3339, UTC.

    >>> stamp(1_790_000_000)
    '2026-09-21T14:13:20Z'
    """
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
