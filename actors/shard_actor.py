"""Ray's shell around a shard: an endpoint for the data path, methods for the control path.

All methods may interleave at their awaits; each touches the shard within one turn of the loop.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import msgspec
import numpy as np
import ray
from numpy.typing import NDArray

from actors.coordinator import CatalogueDump, Started
from actors.endpoint import Endpoint
from actors.messages import Item
from actors.principals import Principals
from actors.shard import Shard
from actors.warm_up import warm_up
from cluster.config import Config
from cluster.keys import KeyRange

LOG = logging.getLogger("onehop.actors")

SWEEP_S = 10.0
# Events applied in one turn of a warm start; more would keep requests waiting over 10 ms.
LOAD_EVENTS_MAX = 20_000


@ray.remote(max_restarts=0, max_task_retries=0)
class ShardActor:
    """Owner of one range. Restarted by the coordinator, not by Ray, so that the map is right."""

    def __init__(self, shard_id: str, start: str, stop: str, config_json: bytes) -> None:
        self.config = msgspec.json.decode(config_json, type=Config)
        logging.basicConfig(level=self.config.log_level)
        key_range = KeyRange(int(start, 16), int(stop, 16))
        self.shard = Shard(shard_id, key_range, self.config, epoch=0)
        self.endpoint = Endpoint(self.shard, Principals(self.config).secret_of)
        self.address: tuple[str, int] | None = None
        self.loaded: dict[str, int] = {}
        self.sweeper: asyncio.Task[None] | None = None

    async def start(self) -> bytes:
        """Compile the kernels, listen, and say where; `Started` as msgpack. Idempotent."""
        if self.address is None:
            warm_up(self.config)
            # What lives now lives for good, and the hot path makes no cycles: look seldom.
            gc.collect()
            gc.freeze()
            gc.set_threshold(100_000, 50, 1000)
            self.address = await self.endpoint.start(self.config.shard_host)
            self.sweeper = asyncio.create_task(self._sweep())
        node_id = ray.get_runtime_context().get_node_id()
        catalogues = {n: t.catalogue.dump() for n, t in self.shard.tenants.items()}
        return msgspec.msgpack.encode(
            Started(self.address[0], self.address[1], node_id, self.shard.epoch, catalogues)
        )

    async def load_catalogue(self, tenant: str, dump: CatalogueDump) -> None:
        self.shard.tenant(tenant).catalogue.load(dump)

    async def put_items(self, tenant: str, items_json: bytes) -> None:
        catalogue = self.shard.tenant(tenant).catalogue
        for item in msgspec.json.decode(items_json, type=list[Item]):
            catalogue.put(item)

    async def take_down(self, tenant: str, ids: list[str]) -> None:
        for item_id in ids:
            self.shard.tenant(tenant).catalogue.take_down(item_id)

    async def set_epoch(self, epoch: int) -> None:
        self.shard.epoch = epoch

    async def load_events(self, token: str, tenant: str, chunk: dict[str, NDArray[Any]]) -> int:
        """Apply a warm start's chunk, once per token; returns how many events that were."""
        if token in self.loaded:
            return self.loaded[token]
        count = len(chunk["item"])
        # Noted first: a retry that comes while this one is at an await must not apply it again.
        self.loaded[token] = count
        for start in range(0, count, LOAD_EVENTS_MAX):
            part = {name: column[start : start + LOAD_EVENTS_MAX] for name, column in chunk.items()}
            self.shard.load_events(tenant, part)
            await asyncio.sleep(0)
        return count

    async def load_profiles(
        self,
        token: str,
        tenant: str,
        key_hi: NDArray[np.int64],
        key_lo: NDArray[np.int64],
        traits: list[bytes],
    ) -> int:
        """Merge a warm start's traits, once per token."""
        if token not in self.loaded:
            self.loaded[token] = self.shard.load_profiles(tenant, key_hi, key_lo, traits)
        return self.loaded[token]

    async def end_load(self, tenant: str) -> None:
        """A warm start is over: let the engine build what it learned."""
        self.shard.tenant(tenant).engine.consolidate()

    async def stats(self) -> dict[str, Any]:
        return self.shard.stats()

    async def forever(self) -> None:
        """Never returns: the caller learns of this actor's death by its failure."""
        await asyncio.Event().wait()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            forgotten = self.shard.sweep()
            if forgotten:
                LOG.info("shard %s forgot %d stale profiles", self.shard.shard_id, forgotten)
