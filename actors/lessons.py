"""What one shard's engines learned, handed to the model actor: each delta once, none lost.

A delta is kept until whoever took it names it as had: a reply that got lost is given again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from actors.engine import history
from actors.model import Taken
from actors.tenant import Tenant


class _Counting(Protocol):
    @property
    def events_total(self) -> int: ...


class Learning(Protocol):
    """The part of a shard that learns."""

    @property
    def store(self) -> _Counting: ...

    @property
    def tenants(self) -> Mapping[str, Tenant]: ...


class Lessons:
    """life: names this life of the shard; another one learns again what is in its log."""

    def __init__(self, shard: Learning, life: str) -> None:
        self._shard = shard
        self._life = life
        self._taken_at = 0
        self._given: Taken | None = None
        self._number = 0

    def take(self, known_life: str, had: int) -> Taken:
        """What was learned since this was last asked.

        known_life  the life that the asker knows, "" = none
        had         number of the last answer that the asker has, 0 = none of this life
        """
        stale = known_life not in ("", self._life)
        if not stale and self._given is not None and self._given.number > had:
            return self._given
        self._number += 1
        self._given = self._take(stale)
        return self._given

    def _take(self, stale: bool) -> Taken:
        tenants = self._shard.tenants
        events_total = self._shard.store.events_total
        deltas = {}
        if stale or events_total != self._taken_at:
            deltas = {name: tenant.engine.take_delta() for name, tenant in tenants.items()}
            self._taken_at = events_total
        if stale:
            # Only the number counts, so the rest need not travel.
            nothing = history.empty()
            deltas = {name: delta._replace(history=nothing) for name, delta in deltas.items()}
        contexts = {}
        for name, tenant in tenants.items():
            counts = tenant.context.take() if name in deltas else None
            if counts is not None:
                contexts[name] = counts
        learned = {name: tenant.treatment.take() for name, tenant in tenants.items()}
        treatments = {name: delta for name, delta in learned.items() if delta is not None}
        items = {name: tenant.catalogue.n for name, tenant in tenants.items()}
        return Taken(self._life, stale, items, deltas, contexts, treatments, self._number)
