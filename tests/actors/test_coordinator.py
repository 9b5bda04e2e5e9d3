"""The coordinator with shards that are plain objects: map, epochs, restarts, catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import msgspec
import pytest

from actors.books import Books
from actors.budget_desk import Standing
from actors.catalogue import Catalogue, CatalogueDump
from actors.coordinator import Coordinator
from actors.custody import Custody, Place, Pulse
from actors.documents import Documents, Stored
from actors.epoch_store import FileEpochStore
from actors.kinds import KINDS
from actors.messages import Item
from actors.replicator import Peer
from actors.shard_handle import ShardHandle, Started
from actors.wal import WalCorrupt
from cluster.config import Config
from cluster.errors import ReadOnly, RequestError, Unavailable
from cluster.keys import KeyRange
from tests.actors.local_nodes import LocalNodes

PORTS = count(1000)


class FakeShard:
    """A shard that keeps its catalogue and dies when told to."""

    def __init__(self, shard_id: str, epoch: int = 0) -> None:
        self.shard_id = shard_id
        self.epoch = epoch
        self.port = next(PORTS)
        self.catalogues: dict[str, Catalogue] = {}
        self.tenants: dict[str, Documents] = {}
        self.books: dict[str, Books] = {}
        self.gone = asyncio.Event()
        self.unreachable = asyncio.Event()
        self.broken = False
        self.full = False

    def catalogue(self, tenant: str) -> Catalogue:
        return self.catalogues.setdefault(tenant, Catalogue(100))

    def documents(self, tenant: str) -> Documents:
        return self.tenants.setdefault(tenant, Documents(KINDS))

    async def reach(self) -> None:
        await asyncio.sleep(0)
        if self.gone.is_set():
            raise Unavailable(f"shard {self.shard_id} is gone")

    async def start(self) -> Started:
        await self.reach()
        if self.broken:
            raise WalCorrupt("wal", 0, "injected")
        dumps = {name: catalogue.dump() for name, catalogue in self.catalogues.items()}
        documents = {name: one.dump() for name, one in self.tenants.items()}
        return Started("h", self.port, "n", self.epoch, dumps, documents)

    async def check_room(self) -> None:
        await self.reach()
        if self.full:
            raise ReadOnly("the disk is full")

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

    async def put_documents(self, tenant: str, versions: list[Stored]) -> None:
        await self.reach()
        for stored in versions:
            self.documents(tenant).apply(stored)

    async def budgets(self, tenant: str) -> dict[str, Standing]:
        await self.reach()
        books = self.books.setdefault(tenant, Books())
        return {name: Standing(b.granted, b.used(0)) for name, b in books.budgets.items()}

    async def grant(self, tenant: str, budget: str, granted: int) -> int:
        await self.reach()
        return self.books.setdefault(tenant, Books()).grant(budget, granted, 0)

    async def set_epoch(self, epoch: int) -> None:
        await self.reach()
        self.epoch = epoch

    async def wait_gone(self) -> None:
        await self.unreachable.wait()

    async def ping(self) -> Pulse:
        await self.reach()
        return Pulse(0)

    async def follow(self, peer: Peer, epoch: int) -> None:
        await self.reach()

    async def kill(self) -> None:
        self.die()

    def die(self) -> None:
        self.gone.set()
        self.unreachable.set()


class World:
    """Makes shards; a living one is found again under its id."""

    def __init__(self) -> None:
        self.shards: dict[str, FakeShard] = {}
        self.refuse_starts = 0
        self.fail_starts = 0
        self.made = 0

    async def new_shard(self, shard_id: str, key_range: KeyRange, place: Place) -> ShardHandle:
        if self.refuse_starts:
            self.refuse_starts -= 1
            raise Unavailable("no room")
        old = self.shards.get(shard_id)
        if old is None or old.gone.is_set():
            self.made += 1
            self.shards[shard_id] = FakeShard(shard_id)
            if self.fail_starts:
                self.fail_starts -= 1
                self.shards[shard_id].broken = True
        return self.shards[shard_id]


def with_coordinator(act: Callable[[Coordinator, World], Awaitable[None]], shards: int = 3) -> None:
    async def run() -> None:
        world = World()
        coordinator = Coordinator(
            Config(shards=shards, items_max=100, durability="memory"), world.new_shard
        )
        await coordinator.start()
        try:
            await asyncio.wait_for(act(coordinator, world), 20)
        finally:
            await coordinator.shutdown()

    asyncio.run(run())


def test_documents_reach_every_shard_and_a_new_one_before_it_serves() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        desk = coordinator.documents
        await desk.put("t", "holdouts", "h", b'{"percent": 5}', None, False)
        assert all(s.documents("t").version("holdouts", "h") == 1 for s in world.shards.values())
        world.shards["1"].die()
        await coordinator.wait_map(coordinator.map.epoch, 5)
        assert world.shards["1"].documents("t").dump() == desk.of("t").dump()

    with_coordinator(act)


def test_a_new_coordinator_learns_the_documents_of_shards_that_outlived_the_old() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        await coordinator.documents.put("t", "holdouts", "h", b'{"percent": 5}', None, False)
        second = await coordinator.documents.put(
            "t", "holdouts", "h", b'{"percent": 6}', None, False
        )
        # The old one died before the last shard had the newest version.
        behind = world.shards["2"]
        behind.tenants.clear()
        heir = Coordinator(Config(shards=3, items_max=100, durability="memory"), world.new_shard)
        await heir.start()
        try:
            assert heir.documents.get("t", "holdouts", "h", None).version == second.version
            assert behind.documents("t").version("holdouts", "h") == second.version
        finally:
            for task in heir.supervision._tasks.values():
                task.cancel()

    with_coordinator(act)


def test_an_actor_of_a_lost_node_is_not_found_again_by_its_name() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        lost = world.shards["1"]
        # Ray has not noticed, and would give this one under the name.
        lost.unreachable.set()
        await coordinator.wait_map(coordinator.map.epoch, 5)
        assert world.shards["1"] is not lost
        assert world.made == 4
        assert lost.gone.is_set()

    with_coordinator(act)


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
        dead.die()
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
            world.shards[str(number % 3)].die()

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
        second = Coordinator(Config(shards=3, items_max=100, durability="memory"), world.new_shard)
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
        second = Coordinator(Config(shards=3, items_max=100, durability="memory"), world.new_shard)
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


def test_a_shard_that_cannot_start_is_tried_again_with_an_empty_actor() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        world.fail_starts = 2
        world.shards["1"].die()
        healed = await coordinator.wait_map(1, 10)
        assert healed.epoch == 2
        assert world.made == 3 + 3
        world.shards["1"].die()
        assert (await coordinator.wait_map(2, 10)).epoch == 3

    with_coordinator(act)


def test_a_start_that_failed_may_be_called_again() -> None:
    async def act() -> None:
        world = World()
        coordinator = Coordinator(
            Config(shards=3, items_max=100, durability="memory"), world.new_shard
        )
        world.fail_starts = 1
        with pytest.raises(WalCorrupt):
            await coordinator.start()
        with pytest.raises(Unavailable, match="starting"):
            _ = coordinator.map
        await coordinator.start()
        assert (coordinator.map.epoch, world.made) == (1, 4)
        await coordinator.shutdown()

    asyncio.run(act())


def test_epochs_grow_from_life_to_life_and_a_folder_keeps_its_shards(tmp_path: Path) -> None:
    async def life(shards: int, deaths: int) -> int:
        config = Config(shards=shards, items_max=100, data_dir=str(tmp_path))
        world = World()
        custody = Custody(config, FileEpochStore(config), LocalNodes(tmp_path, 1, config))
        coordinator = Coordinator(config, world.new_shard, custody)
        try:
            await coordinator.start()
            for death in range(deaths):
                epoch = coordinator.map.epoch
                world.shards[f"{death % shards}"].die()
                await coordinator.wait_map(epoch, 10)
            return coordinator.map.epoch
        finally:
            await coordinator.shutdown()
            assert len(world.shards) in (0, 2)

    epochs = [asyncio.run(life(2, deaths)) for deaths in (0, 5, 0, 0)]
    assert epochs == [2, 8, 9, 10]
    # Data says how many shards there are; the setting is for a folder that has none yet.
    assert asyncio.run(life(3, 0)) == 11


def test_what_was_taken_down_stays_down_though_a_dead_shard_never_heard_of_it() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        await coordinator.put_items("t", items_json("a", "b"))
        for shard_id in ("1", "2"):
            await world.shards[shard_id].take_down("t", ["a"])
        second = Coordinator(Config(shards=3, items_max=100, durability="memory"), world.new_shard)
        await second.start()
        dumps = [shard.catalogue("t").dump() for shard in world.shards.values()]
        assert dumps[0] == dumps[1] == dumps[2]
        assert dumps[0].items[0] == ("a", b"")

    with_coordinator(act)


def test_nothing_changes_anywhere_while_one_shards_disk_is_full() -> None:
    async def act(coordinator: Coordinator, world: World) -> None:
        await coordinator.put_items("t", items_json("a"))
        world.shards["1"].full = True
        with pytest.raises(ReadOnly):
            await coordinator.put_items("t", items_json("b"))
        with pytest.raises(ReadOnly):
            await coordinator.take_down("t", ["a"])
        with pytest.raises(ReadOnly):
            await coordinator.documents.put("t", "holdouts", "h", b'{"percent": 5}', None, False)
        for shard in world.shards.values():
            assert shard.catalogue("t").ids == ["a"]
            assert shard.catalogue("t").alive_count == 1
        world.shards["1"].full = False
        await coordinator.put_items("t", items_json("b"))
        assert coordinator.item_ids("t") == ["a", "b"]
        for shard in world.shards.values():
            assert shard.catalogue("t").ids == ["a", "b"]
            assert shard.documents("t").version("holdouts", "h") == 0

    with_coordinator(act)
