"""Decisions that fail or come too late: the answer holds the popular ones instead, and says so.

The events of the call are applied by then, so an error would invite a repeat that counts twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from actors.decide import Planned
from actors.ledger import OpenLedger
from actors.messages import Decision, Ranked
from actors.tenant import Tenant

LOG = logging.getLogger("onehop.actors")

POLICY = "popular"


def decide_each(
    tenant: Tenant,
    ids: list[str],
    planned: list[Planned],
    make: Callable[[str, Planned], Decision],
    ledger: OpenLedger,
    deadline_ns: int | None,
) -> tuple[list[Decision], int]:
    """One decision for each plan, and how many of them were made the cheap way.

    make         makes a decision; what it raises costs that decision alone, its changes of the
                 person's `ledger` included
    deadline_ns  by perf_counter_ns; a decision not begun by then is not ranked
    """
    decisions: list[Decision] = []
    cheap = 0
    for decision_id, one in zip(ids, planned, strict=True):
        made: Decision | None = None
        if deadline_ns is None or perf_counter_ns() < deadline_ns:
            mark = ledger.mark()
            try:
                made = make(decision_id, one)
            except Exception:
                ledger.back_to(mark)
                LOG.exception("a decision of tenant %s failed", tenant.name)
        if made is None:
            made = popular(tenant, decision_id, one)
            cheap += 1
        decisions.append(made)
    return decisions, cheap


def popular(tenant: Tenant, decision_id: str, planned: Planned) -> Decision:
    """The most popular of what may be shown: candidates, exclusions and filter hold, no other rule.

    Empty if that fails too.
    """
    spec = planned.spec
    try:
        items = _popular(tenant, planned)
        counts = tenant.engine.counts[items].tolist()
        ids = tenant.catalogue.ids
        ranking = [Ranked(ids[i], float(n)) for i, n in zip(items.tolist(), counts, strict=True)]
    except Exception:
        LOG.exception("the cheap decision of tenant %s failed too", tenant.name)
        ranking = []
    version = tenant.engine.version
    return Decision(decision_id, spec.surface, POLICY, version, ranking, planned.rejected)


def _popular(tenant: Tenant, planned: Planned) -> NDArray[np.int32]:
    """Item numbers int32 [<= num_results], best first."""
    count = planned.spec.num_results
    allowed = planned.rules.allowed if planned.rules is not None else None
    n = tenant.catalogue.n
    if planned.candidates is None:
        mask = np.ones(n, np.bool_) if allowed is None else allowed.copy()
        mask[planned.excluded] = False
        found = tenant.popular(mask, count)
    else:
        found = np.setdiff1d(planned.candidates, planned.excluded)
        found = found[tenant.catalogue.alive[found] != 0]
        found = found if allowed is None else found[allowed[found]]
    order = np.argsort(-tenant.engine.counts[found], kind="stable")[:count]
    best: NDArray[np.int32] = found[order]
    return best
