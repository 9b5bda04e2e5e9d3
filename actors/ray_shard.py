"""Shards as Ray's actors: what the coordinator, and shards that follow others, call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
import ray
from ray.exceptions import RayError, RayTaskError

from actors.backup_actor import NAMESPACE, ask_coordinator, reach
from actors.budget_desk import Standing
from actors.catalogue import CatalogueDump
from actors.custody import Pulse
from actors.documents import Stored
from actors.incoming import Order
from actors.messages import Item
from actors.outgoing import Begun, Tail
from actors.replicator import Peer
from actors.shard_handle import Started
from cluster.errors import OnehopError, Unavailable

LOG = logging.getLogger("onehop.actors")

SOURCE_S = 30.0
Result = TypeVar("Result")


class RayShard:
    """A `ShardHandle` over a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    async def start(self) -> Started:
        return msgspec.msgpack.decode(await _reach(self.actor.start.remote()), type=Started)

    async def check_room(self) -> None:
        await _reach(self.actor.check_room.remote())

    async def load_catalogue(self, tenant: str, dump: CatalogueDump) -> None:
        await _reach(self.actor.load_catalogue.remote(tenant, dump))

    async def put_items(self, tenant: str, items: list[Item]) -> None:
        await _reach(self.actor.put_items.remote(tenant, msgspec.json.encode(items)))

    async def take_down(self, tenant: str, ids: list[str]) -> None:
        await _reach(self.actor.take_down.remote(tenant, ids))

    async def put_documents(self, tenant: str, versions: list[Stored]) -> None:
        await _reach(self.actor.put_documents.remote(tenant, versions))

    async def budgets(self, tenant: str) -> dict[str, Standing]:
        return await _reach(self.actor.budgets.remote(tenant))

    async def grant(self, tenant: str, budget: str, granted: int) -> int:
        return await _reach(self.actor.grant.remote(tenant, budget, granted))

    async def set_epoch(self, epoch: int) -> None:
        await _reach(self.actor.set_epoch.remote(epoch))

    async def wait_gone(self) -> None:
        try:
            await self.actor.forever.remote()
        except RayError:
            return

    async def ping(self) -> Pulse:
        return msgspec.msgpack.decode(await _reach(self.actor.ping.remote()), type=Pulse)

    async def follow(self, peer: Peer, epoch: int) -> None:
        await _reach(self.actor.follow.remote(msgspec.json.encode(peer), epoch))

    async def kill(self) -> None:
        ray.kill(self.actor)

    # Moving.

    async def freeze(self, handoff: str, epoch: int) -> int:
        return await _reach(self.actor.freeze.remote(handoff, epoch))

    async def resume(self, handoff: str) -> None:
        await _reach(self.actor.resume.remote(handoff))

    async def release(self, handoff: str, map_epoch: int) -> None:
        await _reach(self.actor.release.remote(handoff, map_epoch))

    async def prepare(self) -> None:
        await _reach(self.actor.load.remote())

    async def receive(self, order: Order) -> Started:
        made = await _reach(self.actor.receive.remote(msgspec.json.encode(order)))
        return msgspec.msgpack.decode(made, type=Started)

    async def follow_sources(self) -> None:
        await _reach(self.actor.follow_sources.remote())

    async def lag(self) -> int:
        return await _reach(self.actor.lag.remote())

    async def finish(self, last_seqs: dict[str, int]) -> None:
        await _reach(self.actor.finish.remote(last_seqs))

    async def own(self) -> Started:
        return msgspec.msgpack.decode(await _reach(self.actor.own.remote()), type=Started)


class RaySourceLog:
    """A `SourceLog` over the actor of a shard."""

    def __init__(self, shard_id: str) -> None:
        self._shard_id = shard_id
        self._actor: Any = None

    async def begin(self, handoff: str) -> Begun:
        return Begun(*await self._ask("hand_out", handoff))

    async def read(self, name: str, offset: int, size: int) -> bytes:
        piece: bytes = await self._ask("log_piece", name, offset, size)
        return piece

    async def tail(self, next_seq: int) -> Tail:
        return Tail(*await self._ask("log_tail", next_seq))

    async def _ask(self, method: str, *args: Any) -> Any:
        if self._actor is None:
            name = await ask_coordinator("shard_actor", self._shard_id)
            try:
                self._actor = ray.get_actor(name, NAMESPACE)
            except ValueError:
                raise Unavailable(f"shard {self._shard_id} is gone") from None
        try:
            return await reach(getattr(self._actor, method).remote(*args), SOURCE_S)
        except Unavailable:
            # It may be another's by now.
            self._actor = None
            raise


async def _reach(call: Awaitable[Result]) -> Result:
    """The result of an actor call. Raises what it raised, Unavailable if it can't be reached."""
    try:
        return await call
    except RayTaskError as error:
        if isinstance(error.cause, OnehopError):
            raise error.cause from None
        raise
    except RayError as error:
        # Ray's first line says who; what may have been is in its own log.
        reason = str(error).partition("\n")[0]
        raise Unavailable(f"the shard's actor can't be reached: {reason}") from None
