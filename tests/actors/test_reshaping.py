"""Reshapes beside each other, with shards that are plain objects and copies that are real files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from actors import reshaping
from actors.coordinator import Coordinator
from actors.copies import CopyState
from actors.custody import Custody, Place
from actors.epoch_store import FileEpochStore
from actors.incoming import Order
from actors.reshaping import Part, Reshaper
from actors.shard_handle import ShardHandle, Started
from cluster.config import Config
from cluster.errors import Unavailable
from cluster.handoff import Step
from cluster.keys import HASH_SPACE, KeyRange
from tests.actors.local_nodes import LocalNodes
from tests.actors.test_coordinator import FakeShard

HALF = HASH_SPACE // 2


class MovableShard(FakeShard):
    """A shard that copies nothing, for as long as it is told to."""

    def __init__(self, shard_id: str, world: World) -> None:
        super().__init__(shard_id)
        self.world = world

    async def freeze(self, handoff: str, epoch: int) -> int:
        return 0

    async def resume(self, handoff: str) -> None: ...

    async def release(self, handoff: str, map_epoch: int) -> None: ...

    async def prepare(self) -> None: ...

    async def receive(self, order: Order) -> Started:
        await self.world.copying[self.shard_id].wait()
        return await self.start()

    async def follow_sources(self) -> None: ...

    async def lag(self) -> int:
        return 0

    async def finish(self, last_seqs: dict[str, int]) -> None: ...

    async def own(self) -> Started:
        return await self.start()


class World:
    """Two shards over two nodes, each with a backup on the other."""

    def __init__(self, root: Path) -> None:
        config = Config(data_dir=str(root / "store"), shards=2, durability="replica")
        small = msgspec.structs.replace(config, profiles_max=4096, profile_bytes_max=1 << 22)
        self.nodes = LocalNodes(root, 2, small)
        self.custody = Custody(config, FileEpochStore(config), self.nodes)
        self.coordinator = Coordinator(config, self.new_shard, self.custody)
        self.reshaper = Reshaper(self.coordinator, self.custody, self.new_shard, self.on_shards)
        self.copying = {name: asyncio.Event() for name in "0123456"}

    async def new_shard(self, shard_id: str, key_range: KeyRange, place: Place) -> ShardHandle:
        if not self.nodes.folder(place.node_id, place.copy_id, shard_id).exists:
            await self.nodes.create(place.node_id, shard_id, place.copy_id, CopyState(served=True))
        return MovableShard(shard_id, self)

    async def on_shards(self, names: list[str]) -> None: ...

    async def copies(self, shard_id: str) -> int:
        found = [copy for node in self.nodes.alive() for copy in await self.nodes.copies(node)]
        return sum(copy.shard_id == shard_id for copy in found)

    async def ended(self, reshape_id: str) -> str:
        async with asyncio.timeout(10):
            while True:
                (state,) = (s for s in self.reshaper.states() if s.id == reshape_id)
                if state.ended:
                    return state.step
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.coordinator.shutdown()
        await self.nodes.close()


def test_what_one_reshape_still_copies_another_that_ends_does_not_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reshaping, "LINGER_S", 0.05)

    async def scenario() -> None:
        world = World(tmp_path)
        await world.coordinator.start()
        slow = world.reshaper.start("move", ["0"], [Part(KeyRange(0, HALF), "n1")])
        quick = world.reshaper.start("move", ["1"], [Part(KeyRange(HALF, HASH_SPACE), "n0")])
        assert [t.shard_id for s in (slow, quick) for t in s.targets] == ["2", "3"]
        world.copying["3"].set()
        assert await world.ended(quick.id) == Step.DONE.value
        # Shard 1 is removed by now, and with it whatever nobody needs.
        async with asyncio.timeout(10):
            while await world.copies("1"):
                await asyncio.sleep(0.05)
        assert await world.copies("2") == 2, "the target that still copies, and its backup"
        world.copying["2"].set()
        assert await world.ended(slow.id) == Step.DONE.value
        assert world.coordinator.names[:2] == ["2", "3"]
        await world.close()

    asyncio.run(scenario())


def test_a_target_that_can_not_copy_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: MovableShard, order: Order) -> Started:
        raise Unavailable("it is gone")

    monkeypatch.setattr(MovableShard, "receive", fails)

    async def scenario() -> None:
        world = World(tmp_path)
        await world.coordinator.start()
        begun = world.reshaper.start("move", ["0"], [Part(KeyRange(0, HALF), "n1")])
        assert await world.ended(begun.id) == Step.ABORTED.value
        async with asyncio.timeout(10):
            while await world.copies("2"):
                await asyncio.sleep(0.05)
        assert world.coordinator.names == ["0", "1"]
        await world.close()

    asyncio.run(scenario())
