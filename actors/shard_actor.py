"""Ray's shell around a shard: an endpoint for the data path, methods for the control path.

All methods may interleave at their awaits; each touches the shard within one turn of the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from functools import partial
from typing import Any

import msgspec
import numpy as np
import ray
from numpy.typing import NDArray

from actors.archive import RESTORE_S, Archive, Store, shard_state
from actors.backup_actor import release_backup, store_of
from actors.budget_desk import Standing
from actors.catalogue import CatalogueDump
from actors.compact import tidy
from actors.contacts import Contacts
from actors.copies import CopyFolder
from actors.custody import Place, Pulse
from actors.documents import Stored
from actors.endpoint import Endpoint
from actors.engine.base import Base
from actors.engine.shared import shared
from actors.engine.sums import Sums
from actors.incoming import Incoming, Order
from actors.lessons import Lessons
from actors.model import Taken
from actors.outgoing import Begun, Outgoing, Tail
from actors.owner import Owned, Surroundings, take_ownership
from actors.principals import Principals
from actors.quiet import come_first, quietly, settle_memory
from actors.ray_shard import RaySourceLog
from actors.replicator import Peer
from actors.shard import Shard
from actors.shard_handle import Started
from actors.warm_up import warm_up
from cluster.access import read_secret
from cluster.config import Config
from cluster.errors import Unavailable
from cluster.keys import KeyRange

LOG = logging.getLogger("onehop.actors")

SWEEP_S = 10.0
ROOM_S = 1.0
COMPACT_S = 5.0
# What failed once, for want of room say, fails again a moment later, and costs a core meanwhile.
COMPACT_RETRY_S = 60.0


@ray.remote(max_restarts=0, max_task_retries=0)
class ShardActor:
    """Owner of one range, once it was told of which: until then it is a spare.

    Restarted by the coordinator, not by Ray, so that the map is right.
    """

    def __init__(self, config_json: bytes) -> None:
        self.config = msgspec.json.decode(config_json, type=Config)
        logging.basicConfig(level=self.config.log_level)
        self.shard_id = ""
        self.loading: asyncio.Future[None] | None = None
        self.starting = asyncio.Lock()

    async def load(self) -> None:
        """Load the kernels, in nobody's way: nobody waits for it yet. Idempotent."""
        if self.loading is None:
            self.loading = asyncio.ensure_future(quietly(warm_up, self.config))
        await asyncio.shield(self.loading)

    async def become(self, shard_id: str, start: str, stop: str, place_json: bytes) -> None:
        """Be this shard from now on. All but `load` and `who` is for those that have become one."""
        self.place = msgspec.json.decode(place_json, type=Place)
        key_range = KeyRange(int(start, 16), int(stop, 16))
        self.shard = Shard(shard_id, key_range, self.config, epoch=0)
        self.endpoint = Endpoint(self.shard, Principals(self.config).secret_of)
        self.address: tuple[str, int] | None = None
        self.sweeper: asyncio.Task[None] | None = None
        self.compacter: asyncio.Task[None] | None = None
        self.archiver: asyncio.Task[None] | None = None
        self.lessons = Lessons(self.shard, secrets.token_hex(8))
        self.tuning: asyncio.Task[None] | None = None
        self.contacts = Contacts(self.shard)
        self.room_keeper: asyncio.Task[None] | None = None
        self.folder = CopyFolder(self.config, shard_id, self.place.copy_id)
        self.owned: Owned | None = None
        self.outgoing: Outgoing | None = None
        self.incoming: Incoming | None = None
        self.shard_id = shard_id

    async def start(self) -> bytes:
        """Compile the kernels, listen, and say where; `Started` as msgpack. Idempotent."""
        # The call of a coordinator that died may still be under way.
        async with self.starting:
            if self.address is None:
                come_first()
                if self.incoming is not None:
                    await self.incoming.own()
                else:
                    await self._loaded()
                    await self._take_ownership()
                    settle_memory()
                await self._serve()
        assert self.address is not None
        return self._started(self.address)

    async def _loaded(self) -> None:
        """Returns once the kernels are, at the priority of who is waited for."""
        if self.loading is None:
            warm_up(self.config)
        else:
            await self.loading

    def _started(self, address: tuple[str, int]) -> bytes:
        node_id = ray.get_runtime_context().get_node_id()
        catalogues = {n: t.catalogue.dump() for n, t in self.shard.tenants.items()}
        documents = {n: t.documents.dump() for n, t in self.shard.tenants.items()}
        started = Started(*address, node_id, self.shard.epoch, catalogues, documents)
        return msgspec.msgpack.encode(started)

    async def _serve(self) -> None:
        """Let callers in, and begin what an owner does by itself."""
        host = self.config.shard_host
        if host == "node":
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        if self.owned is not None:
            self.outgoing = Outgoing(
                self.shard,
                self.endpoint,
                self.folder.path,
                self.folder.copy_id,
                self.owned.replicator,
                store_of(self.config),
                self.contacts,
            )
        self.address = await self.endpoint.start(host)
        self.sweeper = asyncio.create_task(self._sweep())
        self.compacter = asyncio.create_task(self._compact())
        self.archiver = asyncio.create_task(self._archive())
        self.room_keeper = asyncio.create_task(self._keep_room())
        self.contacts.begin()

    async def _take_ownership(self) -> None:
        """Become what the log of our copy says, and log from here on; unless nothing is logged."""
        if self.config.durability == "memory":
            return
        self.owned = await take_ownership(
            self.shard, self.folder, self.place.peer, self._surroundings()
        )

    def _surroundings(self) -> Surroundings:
        node_id = ray.get_runtime_context().get_node_id()
        shard_id, copy_id = self.shard.shard_id, self.folder.copy_id

        async def release(epoch: int) -> float:
            return await release_backup(node_id, shard_id, copy_id, epoch)

        store, secret = store_of(self.config), read_secret(self.config)
        return Surroundings(self.config, node_id, store, secret, release, self._leave)

    def _leave(self, reason: str) -> None:
        # What is in memory may be ahead of the log or behind a successor: it must never be seen.
        LOG.critical("shard %s leaves: %s", self.shard.shard_id, reason)
        os._exit(1)

    async def who(self) -> tuple[str, int]:
        """The shard's id, "" of a spare, and the epoch in which it writes, if it writes."""
        if not self.shard_id or self.owned is None:
            return self.shard_id, 0
        return self.shard_id, self.owned.replicator.primary.epoch

    async def ping(self) -> bytes:
        """`Pulse` as msgpack: that it lives, and how its backup does."""
        if self.owned is None:
            return msgspec.msgpack.encode(Pulse(os.getpid()))
        primary = self.owned.replicator.primary
        pulse = Pulse(os.getpid(), primary.epoch, primary.standing.value, primary.link.value)
        return msgspec.msgpack.encode(pulse)

    async def follow(self, peer_json: bytes, epoch: int) -> None:
        """Where the backup, or a candidate for the owner of that epoch, listens."""
        if self.owned is not None:
            self.owned.replicator.follow(msgspec.json.decode(peer_json, type=Peer), epoch)

    # Giving the range away.

    async def hand_out(self, handoff: str) -> Begun:
        return await self._giver().begin(handoff)

    async def log_piece(self, name: str, offset: int, size: int) -> bytes:
        return await asyncio.to_thread(self._giver().read, name, offset, size)

    async def log_tail(self, next_seq: int) -> Tail:
        return await self._giver().tail(next_seq)

    async def freeze(self, handoff: str, epoch: int) -> int:
        return await self._giver().freeze(handoff, epoch)

    async def resume(self, handoff: str) -> None:
        await self._giver().resume(handoff)

    async def release(self, handoff: str, map_epoch: int) -> None:
        self._giver().release(handoff, map_epoch)

    def _giver(self) -> Outgoing:
        if self.outgoing is None:
            raise Unavailable(f"shard {self.shard.shard_id} has no log to follow")
        return self.outgoing

    # Taking a range over.

    async def receive(self, order_json: bytes) -> bytes:
        """Copy what an `Order` says; `Started`, though nobody can reach it yet."""
        order = msgspec.json.decode(order_json, type=Order)
        self.incoming = Incoming(
            *(self.shard, self.folder, order.handoff, order.claim, order.peer),
            self._surroundings(),
        )
        await self.incoming.copy({one: RaySourceLog(one.shard_id) for one in order.sources})
        # Soon people wait for it.
        come_first()
        self.owned = self.incoming.owned
        settle_memory()
        return self._started(("", 0))

    async def follow_sources(self) -> None:
        self._receiver().follow()

    async def lag(self) -> int:
        return self._receiver().lag

    async def finish(self, last_seqs: dict[str, int]) -> None:
        await self._receiver().finish(last_seqs)

    async def own(self) -> bytes:
        """Serve the range, as the table says by now; `Started`, without what is known of it."""
        async with self.starting:
            if self.address is None:
                await self._receiver().own()
                await self._serve()
        assert self.address is not None
        node_id = ray.get_runtime_context().get_node_id()
        return msgspec.msgpack.encode(Started(*self.address, node_id, self.shard.epoch, {}, {}))

    def _receiver(self) -> Incoming:
        if self.incoming is None:
            raise Unavailable(f"shard {self.shard.shard_id} was not told what to copy")
        return self.incoming

    async def check_room(self) -> None:
        """Raises ReadOnly while the disk is full."""
        self.shard.check_disk()

    async def load_catalogue(self, tenant: str, dump: CatalogueDump) -> None:
        self.shard.load_catalogue(tenant, dump)
        await self._sync()

    async def put_items(self, tenant: str, items_json: bytes) -> None:
        self.shard.put_items(tenant, items_json)
        await self._sync()

    async def take_down(self, tenant: str, ids: list[str]) -> None:
        self.shard.take_down(tenant, ids)
        await self._sync()

    async def put_documents(self, tenant: str, versions: list[Stored]) -> None:
        self.shard.put_documents(tenant, versions)
        await self._sync()

    async def budgets(self, tenant: str) -> dict[str, Standing]:
        now_s = int(self.shard.now())
        books = self.shard.tenant(tenant).books
        return {n: Standing(b.granted, b.used(now_s)) for n, b in books.budgets.items()}

    async def grant(self, tenant: str, budget: str, granted: int) -> int:
        """Set what this shard was granted in all; returns what it is, once that is durable.

        While it is followed its grants stay as they are: they are being divided."""
        if self.shard.followed or not self.shard.learns:
            raise Unavailable(f"shard {self.shard.shard_id} is being handed over")
        granted = self.shard.grant(tenant, budget, granted)
        await self._sync()
        return granted

    async def set_epoch(self, epoch: int) -> None:
        self.shard.epoch = epoch

    async def load_events(self, token: str, tenant: str, chunk: dict[str, NDArray[Any]]) -> int:
        """Apply a warm start's chunk, once per token; returns how many events, once durable."""
        count = await self.shard.loads.events_in_turns(
            token, tenant, chunk, self.shard.evictor.step
        )
        await self._sync()
        return count

    async def load_profiles(self, token: str, tenant: str, chunk: dict[str, Any]) -> int:
        """Merge a warm start's traits, once per token; returns how many, once durable."""
        count = await self.shard.loads.profiles_in_turns(token, tenant, chunk)
        await self._sync()
        return count

    async def load_tokens(self, prefix: str) -> list[str]:
        """The tokens with this prefix whose chunks were applied, once they are durable."""
        tokens = [token for token in self.shard.loads.applied if token.startswith(prefix)]
        await self._sync()
        return tokens

    async def event_numbers(self, tenant: str, names: list[str]) -> list[int]:
        """Numbers of event names on this shard, given to names that are new."""
        number = self.shard.tenant(tenant).event_types.number
        numbers = [number(name) for name in names]
        await self._sync()
        return numbers

    async def end_load(self, tenant: str) -> None:
        """A warm start is over and merged: learn how far to trust which component, beside serving.

        The base comes from the model actor, built once for all shards.
        """
        engine = self.shard.tenant(tenant).engine
        self.tuning = asyncio.create_task(asyncio.to_thread(engine.tune))

    async def take_deltas(self, known_life: str, had: int) -> Taken:
        """What the engines learned since this was last asked; for the model actor."""
        self._check_read()
        return self.lessons.take(known_life, had)

    def _check_read(self) -> None:
        """Raises Unavailable before the log is read: what it says was learned before."""
        if self.address is None and self.incoming is None:
            raise Unavailable(f"shard {self.shard_id} is starting")

    async def install_model(
        self,
        tenant: str,
        published: tuple[Base, Sums, NDArray[np.float32], NDArray[np.float64]],
        name: str,
        included: int,
    ) -> None:
        """Decide with a merged base from now on; its arrays stay where Ray has mapped them."""
        self._check_read()
        base, sums, context, treatment = published
        state = self.shard.tenant(tenant)
        state.engine.install(shared(base), sums, name, included)
        state.context.install(context)
        state.treatment.install(treatment, name)

    async def stats(self) -> dict[str, Any]:
        return self.shard.stats()

    async def forever(self) -> None:
        """Never returns: the caller learns of this actor's death by its failure."""
        await asyncio.Event().wait()

    async def _sync(self) -> None:
        """Returns once all that was changed by now is durable."""
        if self.shard.journal is not None:
            await self.shard.journal.sync()

    async def _keep_room(self) -> None:
        """Stay below the mark of memory, and tell of it."""
        while True:
            while self.shard.evictor.step():
                await asyncio.sleep(0)
            self.shard.evictor.watch()
            await asyncio.sleep(ROOM_S)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.shard.mailroom.inbox.sweep(self.shard.now())
            self.endpoint.drop_revoked()
            forgotten = self.shard.sweep()
            if forgotten:
                LOG.info("shard %s forgot %d stale profiles", self.shard.shard_id, forgotten)

    async def _compact(self) -> None:
        """Let a process of its own turn sealed segments into a snapshot, then delete them."""
        folder = self.folder.path
        while self.shard.journal is not None:
            await asyncio.sleep(COMPACT_S)
            try:
                if self.owned is not None:
                    await tidy(self.shard, folder, self.config, self.owned.replicator.files)
            except (OSError, Unavailable) as error:
                LOG.error("shard %s: %s; the log grows", self.shard.shard_id, error)
                await asyncio.sleep(COMPACT_RETRY_S)

    async def _archive(self) -> None:
        """Copy what is durable to the archive, in a thread, for as long as the shard lives."""
        if not self.config.archive_uri or self.shard.journal is None:
            return
        scope = f"shards/{self.shard.shard_id}"
        folder, data_path = self.folder.path, self.config.data_path
        store = await asyncio.to_thread(Store, self.config.archive_uri)
        before_s = min(RESTORE_S, self.config.erase_within_s / 4)
        self.shard.archive = archive = Archive(store, scope, data_path, before_s)
        while True:
            # Its own epoch, and not the map's: that of what it writes.
            epoch = self.shard.journal.epoch
            await asyncio.to_thread(archive.try_step, epoch, partial(shard_state, folder))
            await asyncio.sleep(self.config.archive_s)
