"""From a decision that is asked for to its plan: which surface makes which kind of decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.decisions import (
    CommunicationSpec,
    ContentSpec,
    DecisionSpec,
    OfferSpec,
    ProductSpec,
    UiSpec,
)
from actors.surfaces import communication, offer, ranking, ui
from actors.surfaces.interface import Plan
from actors.tenant import Tenant
from cluster.errors import RequestError

PLANNERS: dict[type, Callable[[Tenant, Any, str], Plan]] = {
    ContentSpec: ranking.plan,
    ProductSpec: ranking.plan,
    OfferSpec: offer.plan,
    UiSpec: ui.plan,
    CommunicationSpec: communication.plan,
}


def plan(tenant: Tenant, spec: DecisionSpec, field: str) -> Plan:
    """Check a decision. Raises RequestError; `field` is where the spec stands."""
    planner = PLANNERS.get(type(spec))
    if planner is None:
        raise RequestError(422, "this surface is not served yet", f"{field}surface", spec.surface)
    return planner(tenant, spec, field)
