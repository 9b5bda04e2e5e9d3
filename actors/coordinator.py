"""Who runs which range: starts shards, holds and publishes the map, restarts what dies.

Plain asyncio without Ray: shards are reached through the `ShardHandle` protocol. The catalogue's
order of updates is decided here, so that an item has the same number on every shard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import time

import msgspec

from actors.budget_desk import BudgetDesk
from actors.catalogue import Catalogue, decode_items
from actors.custody import Custody
from actors.document_desk import DocumentDesk
from actors.documents import Stored
from actors.messages import BATCH_MAX, Item, Problem
from actors.shard_handle import NewShard, ShardHandle, Slot
from actors.supervision import Supervision
from cluster.config import Config
from cluster.errors import ReadOnly, RequestError, Unavailable
from cluster.keys import split_evenly
from cluster.partition_map import PartitionMap, owner

LOG = logging.getLogger("onehop.actors")

UPDATE_S = 30.0
"""How long an update may take that all shards must have."""
IMPORT_POLL_S = 0.1
# Between two looks at what shards have left of their budgets.
BUDGET_ROUND_S = 0.5
# Items that shards take in one call, and log as one record.
REGISTER_MAX = 10_000


class ItemResult(msgspec.Struct, omit_defaults=True):
    """What became of one item of a batch: 200, or the problem."""

    id: str
    status: int = 200
    error: Problem | None = None


class Coordinator:
    """One per cluster. `new_shard(shard_id, key_range, place)` makes a handle, or finds the living
    one. custody: of the copies on disk; None: nothing is on disk.
    """

    def __init__(self, config: Config, new_shard: NewShard, custody: Custody | None = None) -> None:
        self._config = config
        self._custody = custody
        self.slots = [
            Slot(f"{i}", key_range) for i, key_range in enumerate(split_evenly(config.shards))
        ]
        """The shards that own ranges, in order of these."""
        self._arriving: dict[str, Slot] = {}
        """Shards that are to be: they are told what all shards are told."""
        self.importing = 0
        """Imports under way: no range begins to move meanwhile."""
        self.reshaping = 0
        """Reshapes under way: no import begins meanwhile."""
        self._gone: dict[str, Slot] = {}
        """Shards whose ranges are others' now; they say so for a moment."""
        self._catalogues: dict[str, Catalogue] = {}
        self._epoch = 0
        self._changed = asyncio.Condition()
        # Item updates reach all shards in one order; a new shard is seeded between two of them.
        self._updates = asyncio.Lock()
        self.documents = DocumentDesk(self._updates, self._spread_documents, time, self._check_room)
        self.budgets = BudgetDesk()
        self.supervision = Supervision(new_shard, custody, self._seed_again, self._publish)
        self._started = False
        self._handing_out: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Learn which shards there are. Raises ConfigError, Unavailable."""
        if self._custody is not None and not self._started:
            table = await self._custody.open()
            known = {slot.shard_id: slot for slot in self.slots}
            self.slots = [
                known.get(claim.shard_id) or Slot(claim.shard_id, claim.range)
                for claim in table.claims
            ]
            for slot, claim in zip(self.slots, table.claims, strict=True):
                slot.key_range = claim.range

    async def start(self) -> None:
        """Start all shards, or adopt those that outlived a coordinator, and publish the map.

        May be called again after it failed. Raises ConfigError if the data folder was made with
        other settings, Unavailable or what else a shard failed with.
        """
        await self.open()
        last_epoch = 0 if self._custody is None else self._custody.map_epoch
        # All of them end before one's failure is told: a repeated start must find none under way.
        launches = (self.supervision.launch(slot) for slot in self.slots)
        for outcome in await asyncio.gather(*launches, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        started = [slot.started for slot in self.slots if slot.started]
        for tenant in {name for one in started for name in one.catalogues}:
            dumps = (one.catalogues[tenant] for one in started if tenant in one.catalogues)
            # The latest, not the longest: taking an item down makes none longer.
            self._catalogue(tenant).load(max(dumps, key=lambda dump: dump.version))
        for one in started:
            for tenant, versions in one.documents.items():
                self.documents.adopt(tenant, versions)
        self._epoch = max(last_epoch, *(one.epoch for one in started))
        for slot in self.slots:
            await self._seed(slot)
        await self._publish()
        self._started = True
        for slot in self.slots:
            self.supervision.begin(slot)
        self._handing_out = asyncio.create_task(self._hand_out_budgets())

    async def begin_import(self) -> None:
        """Returns when ranges rest, and will until `importing` is counted down again."""
        while self.reshaping:
            await asyncio.sleep(IMPORT_POLL_S)
        self.importing += 1

    # Shards that come and go.

    async def adopt(self, slot: Slot) -> None:
        """Tell a shard that is to be all that shards are told, from now on."""
        async with self._updates:
            await self._seed(slot)
            self._arriving[slot.shard_id] = slot

    def forsake(self, slot: Slot) -> None:
        """It is not to be."""
        self._arriving.pop(slot.shard_id, None)

    async def replace(self, sources: Sequence[str], targets: Sequence[Slot]) -> None:
        """The table names `targets` in place of `sources`: publish that, and look after them."""
        async with self._updates:
            for slot in self.slots:
                if slot.shard_id in sources:
                    self.supervision.stop(slot)
                    self._gone[slot.shard_id] = slot
            kept = [slot for slot in self.slots if slot.shard_id not in sources]
            self.slots = sorted([*kept, *targets], key=lambda slot: slot.key_range.start)
            for slot in targets:
                self.forsake(slot)
            self.budgets.moved(sources, [slot.shard_id for slot in targets])
        # The swap was one of the table's: its version is no map's epoch yet.
        assert self._custody is not None
        await self._custody.read()
        await self._announce(self._custody.map_epoch)
        for slot in targets:
            self.supervision.begin(slot)

    async def end(self, sources: Sequence[str]) -> None:
        """End shards that were replaced."""
        for shard_id in sources:
            slot = self._gone.pop(shard_id, None)
            if slot is not None and slot.handle is not None:
                await slot.handle.kill()

    @property
    def names(self) -> list[str]:
        """All shards that live: owners, those that are to be, and those that were."""
        return [slot.shard_id for slot in self.slots] + [*self._arriving, *self._gone]

    @property
    def map(self) -> PartitionMap:
        """The map of this epoch. Raises Unavailable before the shards are up."""
        owners = [
            owner(s.shard_id, s.key_range, s.started.host, s.started.port, s.started.node_id)
            for s in self.slots
            if s.started is not None
        ]
        if self._epoch == 0 or len(owners) < len(self.slots):
            raise Unavailable("the shards are starting")
        return PartitionMap(self._epoch, tuple(owners))

    async def wait_map(self, epoch: int, timeout_s: float) -> PartitionMap:
        """The map once its epoch is above `epoch`, or the present one after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._epoch > epoch)
        except TimeoutError:
            pass
        return self.map

    def restarts(self) -> dict[str, int]:
        """How often each shard was started again."""
        return {slot.shard_id: slot.restarts for slot in self.slots}

    async def put_items(self, tenant: str, items_json: bytes) -> list[ItemResult]:
        """Put items into every shard's catalogue; returns when all have applied them.

        Raises RequestError if the body is not a list of at most BATCH_MAX items, ReadOnly while
        a shard's disk is full; nothing has changed then.
        """
        return await self.put_many(tenant, decode_items(items_json, BATCH_MAX))

    async def put_many(self, tenant: str, entries: list[Item | RequestError]) -> list[ItemResult]:
        """As `put_items`, for items that are decoded already."""
        async with self._updates:
            await self._check_room()
            catalogue = self._catalogue(tenant)
            results, accepted = [], []
            for entry in entries:
                try:
                    if isinstance(entry, RequestError):
                        raise entry
                    catalogue.put(entry)
                    accepted.append(entry)
                    results.append(ItemResult(entry.id))
                except RequestError as error:
                    item_id = entry.id if isinstance(entry, Item) else ""
                    results.append(ItemResult(item_id, error.status, _problem(error)))
            if accepted:
                await self._on_all(lambda handle: handle.put_items(tenant, accepted))
        return results

    async def take_down(self, tenant: str, ids: list[str]) -> list[bool]:
        """Take items down on every shard; whether each was there. Raises ReadOnly."""
        async with self._updates:
            await self._check_room()
            catalogue = self._catalogue(tenant)
            taken = [catalogue.take_down(item_id) for item_id in ids]
            await self._on_all(lambda handle: handle.take_down(tenant, ids))
        return taken

    async def register_items(self, tenant: str, ids: list[str]) -> int:
        """Add items known only by id, for a warm start without a catalogue; how many are new."""
        known = self._catalogue(tenant).numbers
        fresh: list[Item | RequestError] = [Item(i) for i in dict.fromkeys(ids) if i not in known]
        for start in range(0, len(fresh), REGISTER_MAX):
            await self.put_many(tenant, fresh[start : start + REGISTER_MAX])
        return len(fresh)

    def item_ids(self, tenant: str) -> list[str]:
        """Item ids by number."""
        return self._catalogue(tenant).ids

    async def shutdown(self) -> None:
        """End all shards; they are not started again."""
        await self.supervision.close()
        if self._handing_out is not None:
            self._handing_out.cancel()
            await asyncio.gather(self._handing_out, return_exceptions=True)
        everybody = [*self.slots, *self._arriving.values(), *self._gone.values()]
        handles = [slot.handle for slot in everybody if slot.handle is not None]
        await asyncio.gather(*(handle.kill() for handle in handles), return_exceptions=True)

    def _catalogue(self, tenant: str) -> Catalogue:
        if tenant not in self._catalogues:
            self._catalogues[tenant] = Catalogue(self._config.items_max)
        return self._catalogues[tenant]

    async def _check_room(self) -> None:
        """Raises ReadOnly if a shard's disk is full: asked before a change, not in its middle, so
        that no shard has it and none has not. What a shard takes after that still fits its log."""
        await self._on_all(lambda handle: handle.check_room())

    async def _spread_documents(self, tenant: str, versions: list[Stored]) -> None:
        await self._on_all(lambda handle: handle.put_documents(tenant, versions))

    async def _seed(self, slot: Slot) -> None:
        """Bring a shard's catalogues and documents up to ours. It is `up` from here on."""
        assert slot.handle is not None
        assert slot.started is not None
        for tenant, catalogue in self._catalogues.items():
            dump = catalogue.dump()
            if slot.started.catalogues.get(tenant) != dump:
                await slot.handle.load_catalogue(tenant, dump)
        for tenant in self.documents.tenants:
            missing = self.documents.missing(tenant, slot.started.documents.get(tenant, []))
            if missing:
                await slot.handle.put_documents(tenant, missing)
        slot.up.set()

    async def _seed_again(self, slot: Slot) -> None:
        async with self._updates:
            await self._seed(slot)

    async def _publish(self) -> None:
        version = 0
        try:
            version = await self._custody.publish() if self._custody is not None else 0
        except Unavailable as error:
            # A full disk keeps nobody from being served; the next epoch is saved again.
            LOG.error("epoch %d is not saved: %s", self._epoch + 1, error)
        await self._announce(version)
        await self._tell_epoch()

    async def _announce(self, version: int) -> None:
        """Let the map that is true now be seen, at an epoch that no map had before."""
        async with self._changed:
            self._epoch = max(self._epoch + 1, version)
            self._changed.notify_all()

    async def _tell_epoch(self) -> None:
        epoch = self._epoch
        await self._on_all(lambda handle: handle.set_epoch(epoch))

    async def _on_all(self, act: Callable[[ShardHandle], Awaitable[None]]) -> None:
        """Do the same on every shard that is up; one that dies meanwhile is seeded when back."""
        told = [*self.slots, *self._arriving.values()]
        handles = [slot.handle for slot in told if slot.up.is_set() and slot.handle]

        async def within(handle: ShardHandle) -> None:
            async with asyncio.timeout(UPDATE_S):
                await act(handle)

        for outcome in await asyncio.gather(*map(within, handles), return_exceptions=True):
            if isinstance(outcome, TimeoutError):
                raise Unavailable(f"a shard did not answer within {UPDATE_S} s")
            gone = isinstance(outcome, Unavailable) and not isinstance(outcome, ReadOnly)
            if isinstance(outcome, BaseException) and not gone:
                raise outcome

    async def _hand_out_budgets(self) -> None:
        while True:
            up = {s.shard_id: s.handle for s in self.slots if s.up.is_set() and s.handle}
            try:
                await self.budgets.round(self.documents.tenants, up)
            except Exception:
                # Shards go on with what they have; the next round may be luckier.
                LOG.exception("budgets were not handed out")
            await asyncio.sleep(BUDGET_ROUND_S)


def _problem(error: RequestError) -> Problem:
    return Problem(
        error.title,
        error.status,
        detail=str(error),
        field=error.field,
        seen=error.seen,
        wanted=error.wanted,
    )
