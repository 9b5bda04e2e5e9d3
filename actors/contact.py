"""Whether to contact a person, and if so what, over which channel and when. Changes nothing but the
ledger it is given.

What the rules allow is settled first; among that a policy chooses, or the first is taken.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from actors.contact_rules import (
    IN_APP,
    ContactRules,
    Option,
    Rejected,
    book,
    possible,
)
from actors.ledger import Contact, Ledger, Reach
from actors.messages import Wire
from actors.outbox import Message
from actors.schedule import duration_s
from cluster.keys import USER

EVENT_TYPE = "onehop.message"
HELD_BACK = "held back by the policy"
NOTHING_SENDS = "nothing sends it"


class Choice(NamedTuple):
    """What was chosen. option None: nothing is sent, and suppressed_by says why.

    propensity  of this choice among what was allowed; 1 without a policy
    """

    option: Option | None
    suppressed_by: str
    rejected: list[Rejected]
    propensity: float = 1.0


class Cause(NamedTuple):
    """Why somebody is contacted. trigger "": a decision was asked for."""

    trigger: str = ""
    event: str = ""
    item: str = ""


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


def choose(rules: ContactRules, cause: Cause, ledger: Ledger, zone: str, now_s: int) -> Choice:
    """The contact that the rules allow, the first of them; nothing changes."""
    allowed, rejected = possible(rules, cause.trigger, ledger, zone, now_s)
    if not allowed:
        return Choice(None, rejected[0].rule, rejected)
    return Choice(allowed[0][1], "", rejected)


def commit(ledger: Ledger, choice: Choice, cause: Cause) -> None:
    """Count a chosen contact in the ledger."""
    if choice.option is not None:
        contact = Contact(choice.option.send_at_s, choice.option.channel, cause.trigger)
        book(ledger, contact)


def message_of(
    rules: ContactRules,
    option: Option,
    cause: Cause,
    decision_id: str,
    reach: Reach,
    key: bytes,
    traits: dict[str, Any],
    now_s: float,
) -> Message | None:
    """The message that says so to a webhook or the page; None if the caller sends it."""
    page = option.channel == IN_APP
    if not page and rules.webhook is None:
        return None
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
        {name: traits[name] for name in rules.traits if name in traits},
    )
    source = f"urn:onehop:{reach.tenant}"
    body = CloudEvent(decision_id, source, EVENT_TYPE, reach.person, stamp(now_s), data)
    return Message(
        decision_id,
        reach.tenant,
        key,
        option.channel,
        "" if page else rules.webhook or "",
        float(option.send_at_s),
        float(option.send_at_s + duration_s(rules.expires, "expires")),
        _encode(body),
    )


def describe(decision_id: str, choice: Choice, cause: Cause) -> dict[str, Any]:
    """A trigger's contact as a decision, for who asks why."""
    option = choice.option
    assert option is not None
    return {
        "decisionId": decision_id,
        "surface": "communication",
        "send": True,
        "channel": option.channel,
        "template": option.template or None,
        "sendAt": stamp(option.send_at_s),
        "trigger": cause.trigger or None,
        "propensity": choice.propensity,
        "rejected": [rejected_of(one) for one in choice.rejected],
    }


def rejected_of(rejected: Rejected) -> dict[str, str]:
    return {"id": rejected.option.id, "rule": rejected.rule}


def stamp(at_s: float) -> str:
    """RFC 3339, UTC.

    >>> stamp(1_790_000_000)
    '2026-09-21T14:13:20Z'
    """
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
