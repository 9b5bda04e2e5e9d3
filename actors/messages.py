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
    quote_id: Annotated[str, Meta(max_length=32)] | None = None
    ms: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    depth: Annotated[float, Meta(ge=0, le=1e6)] | None = None


class Event(Wire):
    """One thing observed. `timestamp` is ISO 8601 or milliseconds since 1970."""

    event: Name
    properties: Properties | None = None
    timestamp: str | float | None = None


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
