"""What a person's events mean to the surfaces: quotes that were taken, outcomes of experiments."""

from __future__ import annotations

from collections.abc import Sequence

from actors.books import Redeemed
from actors.checked import Applied
from actors.ledger import OpenLedger
from actors.messages import Event, TrackRequest
from actors.surfaces.experiments import score
from actors.tenant import Tenant


def settle(
    tenant: Tenant,
    opened: OpenLedger,
    events: Sequence[Event | TrackRequest],
    applied: list[Applied],
    now_s: int,
) -> int:
    """Write into the person's ledger what events say; returns how many quotes are not held.

    events  as they were sent, each with its `applied`
    """
    missing = 0
    for event in events:
        if event.properties is not None and event.properties.quote_id is not None:
            missing += not _redeem(opened, event.properties.quote_id, now_s)
    if tenant.documents.of("experiments"):
        score(tenant, opened, applied, now_s)
    return missing


def _redeem(opened: OpenLedger, quote_id: str, now_s: int) -> bool:
    """Take a quote that is held: its price is paid, what it held back of the budget is spent."""
    for quote in opened.read().quotes:
        if quote.quote_id == quote_id and quote.expires_s > now_s and not quote.redeemed_s:
            opened.change()
            quote.redeemed_s = now_s
            if quote.reserved:
                opened.effects.append(Redeemed(quote.budget, quote.reserved, quote.expires_s))
            return True
    return False
