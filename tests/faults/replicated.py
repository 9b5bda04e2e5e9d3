"""An owner with a backup on another node, real files and sockets between them, and what happens
to nodes: all in this process, without Ray. What a copy holds is read from its files alone.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from actors.endpoint import Endpoint
from actors.messages import Item
from actors.recovery import recover
from actors.replicator import Peer
from actors.shard import Shard
from actors.warm_up import warm_up
from cluster.errors import OnehopError
from cluster.frames import Op
from cluster.keys import HASH_SPACE, USER, KeyRange, key_hash, place
from cluster.partition_map import PartitionMap, owner
from serve.router import Router
from tests.actors.local_nodes import SECRET
from tests.actors.test_replica import CONFIG, SERVER, World
from tests.faults.load import ITEM, Body, Load, Reply, Wire
from tests.history import Violation, check

NODES = 3
FAULTS = ("kill_owner", "lose_owner", "lose_backup", "hang_up")
START_S = 120.0
ATTEMPT_S = 0.5
TEND_S = 0.1
NOTICED_S = 0.05
EVERYTHING = KeyRange(0, HASH_SPACE)


class Replicated:
    """One range over three nodes, in a thread of its own; its owner is started again if it dies."""

    def __init__(self, root: Path) -> None:
        # Compiling in the midst of it would stand still for longer than a lease.
        warm_up(CONFIG)
        self.root = root
        self._map: PartitionMap | None = None
        self._endpoint: Endpoint | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._start())

    # Faults.

    def kill_owner(self) -> None:
        """Its process dies; its node and its copy are there."""
        self._do(self._end_owner())
        self._do(self._start_owner())

    def lose_owner(self) -> None:
        """Its node dies, and comes back with an empty disk once another serves."""
        # One node at a time is what two copies survive.
        self.wait_paired()
        node_id = self.running.node_id
        self._do(self._end_owner())
        self._do(self._lose(node_id))
        self._do(self._start_owner())
        self.world.nodes.dead.discard(node_id)

    def lose_backup(self) -> None:
        """Its node dies, and comes back with an empty disk once another is the backup."""
        self.wait_paired()
        peer = self.running.owned.replicator.peer
        assert peer is not None
        self._do(self._lose(peer.copy.node_id))
        # Until it is noticed, all looks well.
        self.wait_paired(without=peer)
        self.world.nodes.dead.discard(peer.copy.node_id)

    def hang_up(self) -> None:
        """The connection between them breaks."""

        async def act() -> None:
            for backups in self.world.nodes.backups.values():
                for wire in list(backups._wires):
                    wire.close()
            await asyncio.sleep(NOTICED_S)

        self._do(act())

    def strike(self, generator: random.Random) -> None:
        """One of FAULTS, by chance."""
        getattr(self, generator.choice(FAULTS))()

    # What they hold.

    def wait_paired(self, without: Peer | None = None) -> None:
        """Wait until a backup, and another than `without`, has all that the owner has."""

        async def act() -> None:
            async with asyncio.timeout(START_S):
                while True:
                    journal, replicator = self.running.owned.journal, self.running.owned.replicator
                    paired = "replica" in journal.levels and journal.settled
                    paired = paired and replicator.peer != without
                    if paired and replicator.report()["lagRecords"] == 0:
                        return
                    await asyncio.sleep(0.02)

        self._do(act())

    def copies(self, keys: Iterable[str]) -> dict[str, dict[str, list[int]]]:
        """By copy, the owner's first: all lists as the files of that copy alone tell them."""
        peer = self.running.owned.replicator.peer
        assert peer is not None
        own = self.running.folder.path
        other = self.world.nodes.folder(peer.copy.node_id, peer.copy.copy_id).path
        return {name: self._read(path, keys) for name, path in (("owner", own), ("backup", other))}

    def _read(self, path: Path, keys: Iterable[str]) -> dict[str, list[int]]:
        aside = self.root / "aside"
        shutil.copytree(path, aside)
        shard = Shard("0", EVERYTHING, CONFIG)
        recover(shard, aside)
        shutil.rmtree(aside)
        found = {}
        for key in keys:
            body = msgspec.json.encode({"userId": key})
            status, answer = shard.handle(Op.PROFILE_GET, SERVER, body, 0)
            events = msgspec.json.decode(answer)["events"] if status == 200 else []
            found[key] = [int(event["value"]) for event in reversed(events)]
        return found

    def check_copies(self, load: Load) -> list[Violation]:
        """Every contradiction between what callers saw and what the files of each copy tell."""
        self.wait_paired()
        keys = sorted({call.key for call in load.history})
        found = self.copies(keys)
        return [wrong for lists in found.values() for wrong in check(load.history, lists)]

    def restart(self) -> None:
        """Everything ends at once, and starts anew from the files."""
        self._do(self._stop())
        self._do(self._start())

    def close(self) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """Through a gateway's router; every append asks for two copies."""

        async def fetch(epoch: int) -> PartitionMap:
            while self._map is None or self._map.epoch <= epoch:
                await asyncio.sleep(0.02)
            return self._map

        router = Router(
            fetch,
            "gateway",
            SECRET,
            inflight_max=64,
            request_timeout_s=ATTEMPT_S,
            map_wait_s=ATTEMPT_S,
        )
        await router.start()
        router.watch()

        async def ask(op: Op, person: str, body: Body) -> Reply:
            position = place(key_hash("default", USER, person))
            content = msgspec.json.encode(body)
            return Reply(*await router.call(op, position, content, b"s:default", True))

        try:
            yield Wire(
                lambda body: ask(Op.TRACK, body["userId"], body | {"durability": "replica"}),
                lambda person: ask(Op.PROFILE_GET, person, {"userId": person}),
            )
        finally:
            await router.close()

    # In its loop.

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)

    async def _start(self) -> None:
        self.world = World(self.root, NODES)
        await self.world.custody.open()
        await self._start_owner()
        self._tending = asyncio.create_task(self._tend())

    async def _start_owner(self) -> None:
        tries = 0
        while True:
            try:
                self.running = await self.world.start(tries)
                break
            except OnehopError:
                # As the coordinator does: its copy may be lost.
                tries += 1
                await asyncio.sleep(0.05)
        self.running.shard.put_items("default", msgspec.json.encode([Item(ITEM)]))
        self._endpoint = Endpoint(self.running.shard, lambda _: (SECRET, None))
        host, port = await self._endpoint.start("127.0.0.1")
        epoch = 1 if self._map is None else self._map.epoch + 1
        self._map = PartitionMap(epoch, (owner("0", EVERYTHING, host, port, "n"),))

    async def _end_owner(self) -> None:
        assert self._endpoint is not None
        for connection in list(self._endpoint.connections):
            if connection._transport is not None:
                connection._transport.abort()
        await self._endpoint.close()
        self.running.stop()

    async def _lose(self, node_id: str) -> None:
        self.world.nodes.dead.add(node_id)
        backups = self.world.nodes.backups.pop(node_id, None)
        if backups is not None:
            await backups.close()
        shutil.rmtree(self.world.nodes.configs[node_id].data_path)

    async def _tend(self) -> None:
        while True:
            with suppress(OnehopError):
                await self.world.tend(self.running)
            await asyncio.sleep(TEND_S)

    async def _stop(self) -> None:
        self._tending.cancel()
        await self._end_owner()
        await self.world.nodes.close()
