"""A profile as an answer: `GET /v1/profiles/{id}`, and how traits merge."""

from __future__ import annotations

from typing import Any

import msgspec

from actors.ledger import shown, unpack
from actors.messages import DEPTH_MAX
from actors.store import ProfileStore
from actors.tenant import Tenant
from cluster.errors import RequestError

TRAITS_BYTES_MAX = 4000
TRAITS_MAX = 256


def describe_profile(store: ProfileStore, row: int, tenant: Tenant) -> dict[str, Any]:
    """Everything that is known of a person, with names instead of numbers."""
    entry = store.rows[row]
    names = tenant.event_types.names
    ids = tenant.catalogue.ids
    attributes = tenant.catalogue.attribute_names
    traits = store.traits(row)
    return {
        "profileVersion": int(entry["version"]),
        "firstSeen": int(entry["first_seen"]),
        "lastSeen": int(entry["last_seen"]),
        "eventsTotal": int(entry["events_total"]),
        "money": float(entry["money"]),
        "session": {
            "startedAt": int(entry["session_start"]),
            "events": int(entry["session_events"]),
        },
        "counters": {
            names[kind]: {"fast": fast, "slow": slow}
            for kind, (fast, slow) in store.counters(row).items()
        },
        "affinities": {attributes[a]: weight for a, weight in store.affinities(row).items()},
        "events": [
            {
                "itemId": ids[event.item],
                "event": names[event.event_type],
                "timestamp": event.time_s,
                "value": event.value,
            }
            for event in store.events(row)
        ],
        "vector": store.vector(row).tolist(),
        "traits": msgspec.json.decode(traits) if traits else {},
        "ledger": shown(unpack(store.ledger(row))),
    }


def merge_traits(stored: bytes, changes: dict[str, Any]) -> bytes:
    """The stored traits with `changes` laid over them; null removes one. Raises RequestError."""
    merged = (msgspec.json.decode(stored) if stored else {}) | changes
    merged = {name: value for name, value in merged.items() if value is not None}
    if _depth(changes) > DEPTH_MAX:
        raise RequestError(
            422, "the traits are nested too deep", "traits", "", f"at most {DEPTH_MAX} levels"
        )
    if len(merged) > TRAITS_MAX:
        raise RequestError(
            422, "too many traits", "traits", str(len(merged)), f"at most {TRAITS_MAX}"
        )
    document = msgspec.json.encode(merged) if merged else b""
    if len(document) > TRAITS_BYTES_MAX:
        raise RequestError(
            422,
            "the traits are too large",
            "traits",
            f"{len(document)} bytes",
            f"at most {TRAITS_BYTES_MAX} bytes with those stored before",
        )
    return document


def _depth(value: Any) -> int:
    """How deep lists and objects nest; stops counting past DEPTH_MAX."""
    depth, level = 0, [value]
    while level and depth <= DEPTH_MAX:
        children = [
            child
            for entry in level
            if isinstance(entry, (dict, list))
            for child in (entry.values() if isinstance(entry, dict) else entry)
        ]
        depth, level = depth + 1, children
    return depth
