"""The place a surface fills, and what it is told of the person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from actors.context import Codes
from actors.decisions import Decision
from actors.ledger import OpenLedger, Reach
from actors.store import ProfileStore
from actors.tenant import Tenant


class Who(NamedTuple):
    """For whom, when and in which context a decision is made. row -1: a person without profile.

    context  codes of the request's context; `named` is the context itself
    ledger   what surfaces remember of the person; a change of it is stored with the decisions
    key      the person's key hash, 16 bytes
    reach    the person's id, for messages
    """

    store: ProfileStore
    row: int
    now_s: int
    context: Codes
    rng: np.random.Generator
    ledger: OpenLedger
    key: bytes = b""
    named: Mapping[str, str | float | bool | None] = {}
    reach: Reach | None = None


class Plan(Protocol):
    """One decision, checked and ready to be made."""

    def decide(self, tenant: Tenant, decision_id: str, who: Who, explain: bool) -> Decision:
        """Make it. What it raises costs this decision only, changes of the ledger included."""

    def cheap(self, tenant: Tenant, decision_id: str, who: Who) -> Decision:
        """The baseline, where there is no time or `decide` failed. Changes and raises nothing."""
