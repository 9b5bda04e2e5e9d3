"""From JSON to what may be applied: decoding, and errors that name field, seen and wanted. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from actors import events
from actors.events import event_time
from actors.messages import Event, Properties, TrackRequest
from cluster.errors import RequestError

if TYPE_CHECKING:
    # What a tenant has is checked by what is here.
    from actors.tenant import Tenant


class Applied(NamedTuple):
    """One event, checked and ready to be applied. item is -1 if it has none."""

    item: int
    event_type: int
    value: float
    money: float
    time_s: int


def check_event(
    tenant: Tenant,
    event: Event | TrackRequest,
    sent_at: str | float | None,
    now_s: float,
    future_s: int,
    field: str,
) -> Applied:
    """Numbers for an event's names. Raises RequestError; `field` is where the event stands."""
    time_s = event_time(event.timestamp, sent_at, now_s, future_s, f"{field}timestamp")
    kind = tenant.event_types.number(event.event)
    properties = event.properties
    if properties is None:
        return Applied(-1, kind, 0.0, 0.0, time_s)
    item = -1
    if properties.item_id is not None:
        item = tenant.catalogue.numbers.get(properties.item_id, -1)
        if item < 0:
            raise RequestError(
                422,
                "the item is not in the catalogue",
                f"{field}properties.itemId",
                repr(properties.item_id),
                "the id of an item put before",
            )
    value = _first(properties.value, properties.revenue, properties.ms, properties.depth)
    money = _money(properties) if kind == events.PURCHASED else 0.0
    return Applied(item, kind, value, money, time_s)


def _money(properties: Properties) -> float:
    """What a purchase brought: revenue, or price times quantity, or its value."""
    if properties.revenue is None and properties.price is not None:
        return properties.price * _first(properties.quantity, 1.0)
    return _first(properties.revenue, properties.value)


def _first(*values: float | None) -> float:
    for value in values:
        if value is not None:
            return value
    return 0.0


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Decode a body whose every byte is valid UTF-8, also where no field reads it."""
    if not body.isascii():
        body.decode()
    return decoder.decode(body)


def refusal(error: Exception, body: bytes) -> RequestError:
    """The RequestError for what decoding raised."""
    if not isinstance(error, msgspec.ValidationError):
        return RequestError(400, "the body is not JSON", "", str(error), "a JSON object in UTF-8")
    text, _, path = str(error).partition(" - at `")
    field = path.rstrip("`").removeprefix("$").removeprefix(".")
    wanted = text.removeprefix("Expected ").partition(", got ")[0]
    return RequestError(
        422, text, field, _seen_at(body, field), wanted if text.startswith("Expected") else ""
    )


def _seen_at(body: bytes, field: str) -> str:
    """What stands at a path like `events[0].properties.ms`, as JSON; "" if it can't be found."""
    try:
        value = msgspec.json.decode(body)
        for part in field.replace("[", ".").replace("]", "").split("."):
            if part:
                value = value[int(part)] if isinstance(value, list) else value[part]
        return msgspec.json.encode(value)[:200].decode(errors="replace")
    except (ValueError, RecursionError, LookupError, TypeError):
        # The error message alone must do: the path is not one that can be walked.
        return ""
