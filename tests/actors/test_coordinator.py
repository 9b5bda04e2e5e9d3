"""The coordinator with shards that are plain objects: map, epochs, restarts, catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count

import msgspec
import pytest

from actors.catalogue import Catalogue, CatalogueDump
from actors.coordinator import Coordinator, ShardHandle, Started
from actors.messages import Item
from cluster.config import Config
from cluster.errors import RequestError, Unavailable
from cluster.keys import KeyRange

PORTS = count(1000)


class FakeShard:
    """A shard that keeps its catalogue and dies when told to."""

    def __init__(self, shard_id: str, epoch: int = 0) -> None:
        self.shard_id = shard_id
        self.epoch = epoch
        self.port = next(PORTS)
        self.catalogues: dict[str, Catalogue] = {}
        self.gone = asyncio.Event()

    def catalogue(self, tenant: str) -> Catalogue:
        return self.catalogues.setdefault(tenant, Catalogue(100))

    async def reach(self) -> None:
        await asyncio.sleep(0)
        if self.gone.is_set():
            raise Unavailable(f"shard {self.shard_id} is gone")

    async def start(self) -> Started:
        await self.reach()
        dumps = {name: catalogue.dump() for name, catalogue in self.catalogues.items()}
        return Started("h", self.port, "n", self.epoch, dumps)

    async def load_catalogue(self, tenant: str, dump: CatalogueDump) -> None:
        await self.reach()
        self.catalogue(tenant).load(dump)

    async def put_items(self, tenant: str, items: list[Item]) -> None:
        await self.reach()
        for item in items:
            self.catalogue(tenant).put(item)

    async def take_down(self, tenant: str, ids: list[str]) -> None:
        await self.reach()
        for item_id in ids:
            self.catalogue(tenant).take_down(item_id)

    async def set_epoch(self, epoch: int) -> None:
        await self.reach()
        self.epoch = epoch

    async def wait_gone(self) -> None:
        await self.gone.wait()

    async def kill(self) -> None:
        self.gone.set()


class World:
    """Makes shards; a living one is found again under its id."""

    def __init__(self) -> None:
        self.shards: dict[str, FakeShard] = {}
        self.refuse_starts = 0

    async def new_shard(self, shard_id: str, key_range: KeyRange) -> ShardHandle:
        if self.refuse_starts:
            self.refuse_starts -= 1
            raise Unavailable("no room")
        old = self.shards.get(shard_id)
        if old is None or old.gone.is_set():
            self.shards[shard_id] = FakeShard(shard_id)
        return self.shards[shard_id]


def with_coordinator(act: Callable[[Coordinator, World], Awaitable[None]], shards: int = 3) -> None:
    async def run() -> None:
        world = World()
        coordinator = Coordinator(Config(shards=shards, items_max=100), world.new_shard)
        await coordinator.start()
        try:
            await asyncio.wait_for(act(coordinator, world), 20)
        finally:
            await coordinator.shutdown()

    asyncio.run(run())


def items_json(*ids: str) -> bytes:
    return msgspec.json.encode([Item(item_id) for item_id in ids])


def test_the_map_names_every_shard_at_the_first_epoch() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        partition_map = coordinator.map
        assert partition_map.epoch == 1
        assert [o.port for o in partition_map.owners] == [s.port for s in world.shards.values()]
        assert {shard.epoch for shard in world.shards.values()} == {1}

    with_coordinator(act)


def test_a_dead_shard_is_replaced_under_a_new_epoch_with_the_whole_catalogue() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        await coordinator.put_items("t", items_json("a", "b", "c"))
        await coordinator.take_down("t", ["b"])
        dead = world.shards["1"]
        world.refuse_starts = 2
        dead.gone.set()
        healed = await coordinator.wait_map(1, 10)
        assert healed.epoch == 2
        fresh = world.shards["1"]
        assert healed.owners[1].port == fresh.port != dead.port
        assert fresh.catalogue("t").dump() == world.shards["0"].catalogue("t").dump()
        assert coordinator.restarts() == {"0": 0, "1": 1, "2": 0}

    with_coordinator(act)


def test_items_have_the_same_number_on_every_shard_whoever_dies_meanwhile() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        async def put(number: int) -> None:
            await coordinator.put_items("t", items_json(f"{number}a", f"{number}b"))

        async def die(number: int) -> None:
            await asyncio.sleep(0)
            world.shards[str(number % 3)].gone.set()

        await asyncio.gather(*(put(n) for n in range(20)), *(die(n) for n in range(4)))
        while sum(coordinator.restarts().values()) < 3:
            await asyncio.sleep(0.01)
        await coordinator.wait_map(3, 10)
        await put(99)
        dumps = [shard.catalogue("t").dump() for shard in world.shards.values()]
        assert len(dumps[0].items) == 42
        assert dumps[0] == dumps[1] == dumps[2]

    with_coordinator(act)


def test_a_new_coordinator_adopts_the_living_shards_and_their_catalogue() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        await coordinator.put_items("t", items_json("a", "b"))
        world.shards["2"].catalogues.clear()
        second = Coordinator(Config(shards=3, items_max=100), world.new_shard)
        await second.start()
        assert second.map.epoch == 2
        assert [o.port for o in second.map.owners] == [o.port for o in coordinator.map.owners]
        assert second.item_ids("t") == ["a", "b"]
        assert len(world.shards["2"].catalogue("t")) == 2

    with_coordinator(act)


def test_a_half_done_update_is_completed_by_the_next_coordinator() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        await coordinator.put_items("t", items_json("a", "b"))
        await world.shards["1"].put_items("t", [Item("c")])
        await world.shards["1"].take_down("t", ["a"])
        second = Coordinator(Config(shards=3, items_max=100), world.new_shard)
        await second.start()
        dumps = [shard.catalogue("t").dump() for shard in world.shards.values()]
        assert dumps[0] == dumps[1] == dumps[2]
        assert [item_id for item_id, _ in dumps[0].items] == ["a", "b", "c"]
        assert dumps[0].items[0] == ("a", b"")

    with_coordinator(act)


def test_a_bad_item_is_refused_alone() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        body = b'[{"id":"a","embedding":[1,2]},{"id":""},{"id":"b","embedding":[1]},{"id":"c"}]'
        results = await coordinator.put_items("t", body)
        assert [(r.id, r.status) for r in results] == [
            ("a", 200),
            ("", 422),
            ("b", 422),
            ("c", 200),
        ]
        assert world.shards["0"].catalogue("t").ids == ["a", "c"]
        with pytest.raises(RequestError, match="list"):
            await coordinator.put_items("t", b"{}")

    with_coordinator(act)


def test_wait_map_returns_the_present_map_at_the_timeout() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        assert (await coordinator.wait_map(1, 0.01)).epoch == 1

    with_coordinator(act)
