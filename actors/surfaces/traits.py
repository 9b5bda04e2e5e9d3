"""What is known of a person and the moment, as features that a choice may rest on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from itertools import islice
from typing import Any

import msgspec

from actors.surfaces.interface import Who
from actors.treatment.features import Features, Value, features_of, without

SCALAR = (str, float, int)
"""Types of traits that can be features: text, numbers and truth values."""
FEATURES_MAX = 64
"""Names that are used; further ones are left out."""


def traits_of(who: Who) -> dict[str, Any]:
    """The person's traits, decoded once in a request; {} if there are none. Not to be changed."""
    kept = who.ledger.traits
    if kept is None:
        stored = who.store.traits(who.row) if who.row >= 0 else b""
        kept = who.ledger.traits = msgspec.json.decode(stored) if stored else {}
    return kept


def known_of(who: Who) -> Mapping[str, Value]:
    """Behaviour, traits and the request's context by name; the context counts before a trait."""
    kept = who.ledger.known
    if kept is not None:
        return kept
    known = who.ledger.known = {}
    if who.row >= 0:
        row = who.store.rows[who.row]
        known["sessionEvents"] = int(row["session_events"])
        known["eventsTotal"] = int(row["events_total"])
        known["money"] = float(row["money"])
        known["daysKnown"] = max(who.now_s - int(row["first_seen"]), 0) // 86_400
        traits = traits_of(who)
        known.update({name: value for name, value in traits.items() if isinstance(value, SCALAR)})
    known.update(who.named)
    return known


def features_for(
    who: Who,
    allowed: Collection[str] | None = None,
    forbidden: Set[str] = frozenset(),
) -> Features:
    """Features of what is known: those `allowed` (None: all), never those that are forbidden."""
    known = known_of(who)
    if allowed is None and (not forbidden or len(known) <= FEATURES_MAX):
        every = who.ledger.features
        if every is None:
            used = known
            if len(known) > FEATURES_MAX:
                used = dict(islice(known.items(), FEATURES_MAX))
            every = who.ledger.features = features_of(used)
        hidden = known.keys() & forbidden if forbidden else ()
        return without(every, known, hidden) if hidden else every
    names = [
        name for name in known if name not in forbidden and (allowed is None or name in allowed)
    ]
    return features_of({name: known[name] for name in names[:FEATURES_MAX]})
