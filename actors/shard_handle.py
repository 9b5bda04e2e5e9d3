"""A shard as the coordinator sees it, wherever it runs, and its place among the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from actors.budget_desk import Standing
from actors.catalogue import CatalogueDump
from actors.custody import Place, Pulse
from actors.documents import Stored
from actors.incoming import Order
from actors.messages import Item
from actors.replicator import Peer
from cluster.keys import KeyRange


class Started(msgspec.Struct, frozen=True):
    """What a shard says of itself once it listens."""

    host: str
    port: int
    node_id: str
    epoch: int
    catalogues: dict[str, CatalogueDump]
    documents: dict[str, list[Stored]] = {}


class ShardHandle(Protocol):
    """One running shard, wherever it runs. Methods raise Unavailable if it is dead."""

    async def start(self) -> Started: ...

    async def check_room(self) -> None:
        """Raises ReadOnly while its disk is full."""

    async def load_catalogue(self, tenant: str, dump: CatalogueDump) -> None: ...

    async def put_items(self, tenant: str, items: list[Item]) -> None: ...

    async def take_down(self, tenant: str, ids: list[str]) -> None: ...

    async def put_documents(self, tenant: str, versions: list[Stored]) -> None: ...

    async def budgets(self, tenant: str) -> dict[str, Standing]: ...

    async def grant(self, tenant: str, budget: str, granted: int) -> int: ...

    async def set_epoch(self, epoch: int) -> None: ...

    async def wait_gone(self) -> None:
        """Returns when the shard has died."""

    async def ping(self) -> Pulse: ...

    async def follow(self, peer: Peer, epoch: int) -> None: ...

    async def kill(self) -> None: ...


class Movable(ShardHandle, Protocol):
    """A shard that can give its range away, or take one over. Raises Unavailable if it is dead."""

    async def freeze(self, handoff: str, epoch: int) -> int: ...

    async def resume(self, handoff: str) -> None: ...

    async def release(self, handoff: str, map_epoch: int) -> None: ...

    async def prepare(self) -> None:
        """Be ready to receive."""

    async def receive(self, order: Order) -> Started: ...

    async def follow_sources(self) -> None: ...

    async def lag(self) -> int: ...

    async def finish(self, last_seqs: dict[str, int]) -> None: ...

    async def own(self) -> Started: ...


class Slot:
    """One range and the shard that has it. `up` is cleared while a successor is made."""

    def __init__(self, shard_id: str, key_range: KeyRange) -> None:
        self.shard_id = shard_id
        self.key_range = key_range
        self.up = asyncio.Event()
        self.handle: ShardHandle | None = None
        self.started: Started | None = None
        self.restarts = 0
        self.place = Place()
        self.tries = 0
        self.pid: int | None = None
        self.tending: asyncio.Task[None] | None = None


NewShard = Callable[[str, KeyRange, Place], Awaitable[ShardHandle]]
