"""Hands out portions of budgets to shards, so that no decision asks across the network.

A part of the coordinator. Never overspent: what all shards were granted stays within the total, and
a shard spends only what it was granted. Grants are in the shards' logs; with a log that is lost for
good, what that shard was granted counts as spent as long as this coordinator lives, and a
successor may grant it once more: at most one shard's portion and spending per lost log.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple, Protocol

from actors.books import MICROS
from actors.documents import Documents
from cluster.errors import OnehopError

LOG = logging.getLogger("onehop.actors")

PORTIONS = 100
"""A portion is this part of the total unless the document names one."""


class Standing(NamedTuple):
    """One budget on one shard, in micros: all that was granted, and what of it is used."""

    granted: int
    used: int


class BudgetShard(Protocol):
    """What the desk needs of a shard."""

    def budgets(self, tenant: str) -> Awaitable[dict[str, Standing]]: ...

    def grant(self, tenant: str, budget: str, granted: int) -> Awaitable[int]: ...


class BudgetDesk:
    """What each shard was granted of each budget, as far as is known here."""

    def __init__(self) -> None:
        self._granted: dict[tuple[str, str], dict[str, int]] = {}
        self._lost: dict[tuple[str, str], int] = {}
        self._unsure: dict[tuple[str, str], dict[str, int]] = {}
        """Grants above the known ones whose answer did not come."""
        self._successors: dict[str, list[str]] = {}
        """Shards that have what others, which are gone, were granted."""

    def moved(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """What some shards were granted is divided among others now."""
        self._successors |= {source: list(targets) for source in sources}

    async def round(
        self, documents: Mapping[str, Documents], shards: Mapping[str, BudgetShard]
    ) -> None:
        """Look at all budgets once: fill up portions, and move what lies idle to where none is.

        shards  those that can be reached; the others keep what they have
        """
        for tenant, of_tenant in documents.items():
            totals = {
                name: (round(one.total * MICROS), round((one.portion or 0) * MICROS))
                for name, one in of_tenant.of("budgets").items()
            }
            if not totals:
                continue
            standings: dict[str, dict[str, Standing]] = {}
            for shard_id, shard in shards.items():
                try:
                    standings[shard_id] = await shard.budgets(tenant)
                except OnehopError as error:
                    LOG.info("budgets of shard %s are not known: %s", shard_id, error)
            for name, (total, portion) in totals.items():
                seen = {
                    shard_id: every.get(name, Standing(0, 0))
                    for shard_id, every in standings.items()
                }
                await self._share(tenant, name, total, portion or total // PORTIONS, seen, shards)

    def granted(self, tenant: str, budget: str) -> int:
        """What all shards together were granted, lost portions included."""
        key = (tenant, budget)
        parts = (self._granted.get(key, {}), self._unsure.get(key, {}))
        return sum(sum(part.values()) for part in parts) + self._lost.get(key, 0)

    async def _share(
        self,
        tenant: str,
        budget: str,
        total: int,
        portion: int,
        seen: dict[str, Standing],
        shards: Mapping[str, BudgetShard],
    ) -> None:
        known = self._granted.setdefault((tenant, budget), {})
        # Until all heirs have said what they have, it counts as what it was: never too little.
        for gone in [one for one in known if one not in seen and self._told_by(one, seen)]:
            del known[gone]
            self._unsure.get((tenant, budget), {}).pop(gone, None)
        for shard_id, standing in seen.items():
            if standing.granted < known.get(shard_id, 0):
                # Its log is gone, and nobody knows what was spent of it.
                lost = known[shard_id] - standing.granted
                self._lost[tenant, budget] = self._lost.get((tenant, budget), 0) + lost
                LOG.error("shard %s lost %d micros of budget %s", shard_id, lost, budget)
            known[shard_id] = standing.granted
            self._unsure.get((tenant, budget), {}).pop(shard_id, None)
        for shard_id, standing in seen.items():
            free = standing.granted - standing.used
            # A budget may have been lowered: then what is not used goes back.
            left = total - self.granted(tenant, budget)
            if left < 0 and free > 0:
                wanted = standing.granted - min(free, -left)
            elif left > 0 and 2 * free < portion:
                wanted = standing.granted + min(portion - free, left)
            elif left == 0 and 2 * free > portion and _starved(seen, shard_id, portion):
                wanted = standing.granted - free // 2
            else:
                continue
            await self._grant(tenant, budget, shard_id, shards[shard_id], wanted)

    def _told_by(self, shard_id: str, seen: Mapping[str, Standing]) -> bool:
        """Whether all that have what this shard was granted are among `seen`."""
        if shard_id in seen:
            return True
        heirs = self._successors.get(shard_id, [])
        return bool(heirs) and all(self._told_by(heir, seen) for heir in heirs)

    async def _grant(
        self, tenant: str, budget: str, shard_id: str, shard: BudgetShard, wanted: int
    ) -> None:
        known = self._granted[tenant, budget]
        try:
            known[shard_id] = await shard.grant(tenant, budget, wanted)
        except OnehopError as error:
            # It may be in the shard's log: until the shard says, it counts as if it were.
            more = max(wanted - known[shard_id], 0)
            self._unsure.setdefault((tenant, budget), {})[shard_id] = more
            LOG.info("a grant did not reach shard %s: %s", shard_id, error)


def _starved(seen: dict[str, Standing], but: str, portion: int) -> bool:
    """Whether a shard has less than a quarter of a portion left."""
    return any(
        4 * (standing.granted - standing.used) < portion
        for shard_id, standing in seen.items()
        if shard_id != but
    )
