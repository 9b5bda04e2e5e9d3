"""The JSON that crosses the boundary: requests in, answers out. Types only, and their decoders.

Field names are camelCase on the wire (Segment's tracking spec). `decide` refuses unknown
fields, because a mistyped option would otherwise be dropped in silence; the Segment calls
ignore fields that onehop does not use, because Segment's libraries send many.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cluster.errors import RequestError
from cluster.levels import Level

BODY_BYTES_MAX = 1 << 20
EVENT_BYTES_MAX = 32 << 10
BATCH_MAX = 500
EVENTS_MAX = 50
DECISIONS_MAX = 16
ACTIONS_MAX = 1000
RESULTS_MAX = 100
DEPTH_MAX = 32
EMBEDDING_MAX = 512
ITEM_ATTRIBUTES_MAX = 16

Surface = Literal["content", "product"]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
MessageId = Annotated[str, Meta(min_length=1, max_length=128)]
Finite = Annotated[float, Meta(ge=-1e15, le=1e15)]


class Wire(msgspec.Struct, rename="camel", omit_defaults=True):
    """Base of what travels: camelCase names."""


class Strict(Wire, forbid_unknown_fields=True):
    """Base of what travels and refuses unknown fields."""


class Properties(Wire):
    """What an event says about itself. Other properties are accepted and not kept."""

    item_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    value: Finite | None = None
    revenue: Finite | None = None
    price: Finite | None = None
    quantity: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    query: Annotated[str, Meta(max_length=1024)] | None = None
    ms: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    depth: Annotated[float, Meta(ge=0, le=1e6)] | None = None


class Event(Wire):
    """One thing observed. `timestamp` is ISO 8601 or milliseconds since 1970."""

    event: Name
    properties: Properties | None = None
    timestamp: str | float | None = None


class Action(Strict):
    """One candidate. A plain string is short for {"id": string}."""

    id: Name


Actions = Annotated[list[str | Action], Meta(min_length=1, max_length=ACTIONS_MAX)]
# Left as JSON when a request is read: a hundred plain ids are looked up faster as text than as
# strings (actors.id_numbers), and what is not plain is decoded as Actions.
RawActions = Annotated[
    msgspec.Raw,
    Meta(
        extra_json_schema={
            "type": ["array", "null"],
            "minItems": 1,
            "maxItems": ACTIONS_MAX,
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "properties": {"id": {"type": "string", "minLength": 1, "maxLength": 256}},
                        "required": ["id"],
                        "additionalProperties": False,
                    },
                ]
            },
        }
    ),
]


class Promotion(Strict):
    """A share of the results that goes to items which pass a filter, if there are any."""

    name: Name
    filter: str
    percent_promoted_items: Annotated[int, Meta(ge=1, le=100)]


class Diversity(Strict):
    """At most `max` results with the same value of the attribute `by`."""

    by: Name
    max: Annotated[int, Meta(ge=1, le=RESULTS_MAX)] = 1


class Pin(Strict):
    """An item that stands at a place of the results, 1 = the first, whatever its score."""

    id: Name
    position: Annotated[int, Meta(ge=1, le=RESULTS_MAX)]


class DecisionSpec(Strict):
    """What is to be decided. Without `actions`, or with null, the whole catalogue is ranked.

    policy          "default" (the engine) or "vector"
    exclude_seen    True leaves out what the person has seen lately; None = the surface's rule
    exclude_bought  leaves out what the person has bought lately
    filter          as in `actors.filters`; filter_values fill in its $names
    rotation        0 = the best order; the nearer to 1, the more a reload differs from the last
    exploration     share of the results that goes to items with few events yet
    """

    surface: Surface
    actions: RawActions = msgspec.field(default_factory=msgspec.Raw)
    excluded_actions: Annotated[list[str], Meta(max_length=ACTIONS_MAX)] = []
    num_results: Annotated[int, Meta(ge=1, le=RESULTS_MAX)] = 10
    policy: Literal["default", "vector"] = "default"
    exclude_seen: bool | None = None
    exclude_bought: bool = True
    filter: str | None = None
    filter_values: dict[str, str | float | bool | list[str | float | bool]] = {}
    promotions: Annotated[list[Promotion], Meta(max_length=4)] = []
    diversity: Diversity | None = None
    pins: Annotated[list[Pin], Meta(max_length=20)] = []
    rotation: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    exploration: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.0


class DecideRequest(Strict):
    """`POST /v1/decide`: events first, then decisions that already know of them.

    durability   what the answer waits for; None = what the key or else the setting says
    deadline_ms  counted in the owner; a decision not begun by then is made the cheap way
    """

    user_id: str | None = None
    anonymous_id: str | None = None
    message_id: MessageId | None = None
    session_id: Name | None = None
    events: Annotated[list[Event], Meta(max_length=EVENTS_MAX)] = []
    context: dict[str, str | float | bool | None] = {}
    decisions: Annotated[list[DecisionSpec], Meta(max_length=DECISIONS_MAX)] = []
    explain: bool = False
    timestamp: str | float | None = None
    sent_at: str | float | None = None
    durability: Level | None = None
    deadline_ms: Annotated[float, Meta(gt=0, le=60_000)] | None = None


class Person(Wire):
    """The part of every request that the gateway reads to find the owner."""

    user_id: str | None = None
    anonymous_id: str | None = None
    message_id: str | None = None


class TrackRequest(Wire):
    """`POST /v1/track`."""

    event: Name
    user_id: str | None = None
    anonymous_id: str | None = None
    message_id: MessageId | None = None
    session_id: Name | None = None
    properties: Properties | None = None
    timestamp: str | float | None = None
    sent_at: str | float | None = None
    durability: Level | None = None


class IdentifyRequest(Wire):
    """`POST /v1/identify`: traits are merged into the profile; null removes one."""

    user_id: str | None = None
    anonymous_id: str | None = None
    message_id: MessageId | None = None
    traits: dict[str, Any] = {}
    timestamp: str | float | None = None
    sent_at: str | float | None = None
    durability: Level | None = None


class PageRequest(Wire):
    """`POST /v1/page`: an event named "Page Viewed"."""

    user_id: str | None = None
    anonymous_id: str | None = None
    message_id: MessageId | None = None
    session_id: Name | None = None
    name: str | None = None
    properties: Properties | None = None
    timestamp: str | float | None = None
    sent_at: str | float | None = None
    durability: Level | None = None


class BatchRequest(Wire):
    """`POST /v1/batch`: up to BATCH_MAX messages, each with a `type` and answered on its own."""

    batch: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=BATCH_MAX)]


class BatchItem(Wire):
    """What the gateway reads of a batch's message."""

    type: Literal["track", "identify", "page", "decide"]
    user_id: str | None = None
    anonymous_id: str | None = None
    message_id: str | None = None


class Item(Strict):
    """One entry of the catalogue.

    attributes  text values are categories, over which affinities are learned; numbers filter
    embedding   float32 [d], d the same for all items of a tenant; for the `vector` policy
    """

    id: Name
    attributes: dict[str, str | float | bool] = {}
    embedding: Annotated[list[Finite], Meta(min_length=1, max_length=EMBEDDING_MAX)] | None = None


class Ranked(Wire):
    """One ranked item.

    probability  P(it is the next action, given that there is one); None where a policy has none
    """

    id: str
    score: float
    probability: float | None = None
    reason: str | None = None
    """Why it stands here, if not for its score: "pinned", "promoted: NAME" or "explored"."""
    explanation: dict[str, float] | None = None
    """On request: what each component added to the score."""


class Rejected(Wire):
    """One candidate that was left out, and by which rule."""

    id: str
    rule: str


class Decision(Wire, omit_defaults=False):
    """One decision of an answer, and what `GET /v1/decisions/{id}` returns of it."""

    decision_id: str
    surface: str
    policy_id: str
    model_version: str
    ranking: list[Ranked]
    rejected: list[Rejected]
    no_action: float | None = None
    """P(the session ends here, and there is no next action); None where a policy has none."""


class Took(Wire, omit_defaults=False):
    """Milliseconds by stage inside the owner: waiting, applying events, scoring."""

    queue: float
    update: float
    score: float


class DecideAnswer(Wire, omit_defaults=False):
    """The answer to `POST /v1/decide`. `duplicate` comes first: a repeat only swaps the head.

    degraded  a decision was made the cheap way: it failed, or its deadline had passed
    """

    duplicate: bool
    profile_version: int
    durability: str
    degraded: bool
    took_ms: Took
    decisions: list[Decision]


class TrackAnswer(Wire, omit_defaults=False):
    """The answer to track, identify and page."""

    duplicate: bool
    profile_version: int
    durability: str


class Problem(msgspec.Struct, omit_defaults=True):
    """RFC 9457 problem details, with the field, the value seen and the value wanted."""

    title: str
    status: int
    type: str = "about:blank"
    detail: str = ""
    field: str = ""
    seen: str = ""
    wanted: str = ""


def problem(error: RequestError) -> bytes:
    """The problem document of a RequestError, as JSON."""
    return msgspec.json.encode(
        Problem(
            error.title,
            error.status,
            detail=str(error),
            field=error.field,
            seen=error.seen,
            wanted=error.wanted,
        )
    )
