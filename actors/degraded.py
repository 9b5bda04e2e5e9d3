"""Decisions that fail or come too late: the answer holds the baseline instead, and says so.

The events of the call are applied by then, so an error would invite a repeat that counts twice.
"""

from __future__ import annotations

import logging
from time import perf_counter_ns

from actors.decisions import Decision
from actors.surfaces.interface import Plan, Who
from actors.tenant import Tenant

LOG = logging.getLogger("onehop.actors")


def decide_each(
    tenant: Tenant,
    planned: dict[str, Plan],
    who: Who,
    explain: bool,
    deadline_ns: int | None,
) -> tuple[list[Decision], int]:
    """One decision for each plan, and how many of them were made the cheap way.

    planned      by the ids of the decisions
    who          what a decision raises costs that decision alone, what it changed of the person's
                 ledger included
    deadline_ns  by perf_counter_ns; a decision not begun by then is not ranked
    """
    decisions: list[Decision] = []
    cheap = 0
    for decision_id, one in planned.items():
        made: Decision | None = None
        if deadline_ns is None or perf_counter_ns() < deadline_ns:
            mark = who.ledger.mark()
            try:
                made = one.decide(tenant, decision_id, who, explain)
            except Exception:
                who.ledger.back_to(mark)
                LOG.exception("a decision of tenant %s failed", tenant.name)
        if made is None:
            made = one.cheap(tenant, decision_id, who)
            cheap += 1
        decisions.append(made)
    return decisions, cheap
