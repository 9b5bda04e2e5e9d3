"""Two Ray clusters alive at once over one Lease, as during an upgrade: who claims, owns; who is
deposed acknowledges nothing; callers who try both lose nothing. Real files, sockets and HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from actors.custody import Custody
from actors.lease_store import LeaseStore
from actors.warm_up import warm_up
from cluster.ownership import EpochStore
from cluster.replication import Standing
from tests.actors.lease_server import LeaseServer
from tests.actors.local_nodes import LocalNodes
from tests.actors.test_lease_store import play
from tests.actors.test_replica import CONFIG, Running, World

PERSON = "ada"


class Part(LocalNodes):
    """The nodes that one of the clusters has."""

    def __init__(self, all_nodes: LocalNodes, names: tuple[str, ...]) -> None:
        self.configs, self.dead = all_nodes.configs, all_nodes.dead
        self.backups = all_nodes.backups
        self._names = names

    def alive(self) -> list[str]:
        return [name for name in super().alive() if name in self._names]


class OfCluster(World):
    """What one cluster's coordinator does, with its own nodes and its own way to the Lease."""

    def __init__(self, all_nodes: LocalNodes, names: tuple[str, ...], store: EpochStore) -> None:
        self.nodes = Part(all_nodes, names)
        self.store = store
        self.custody = Custody(self.nodes.configs[names[0]], store, self.nodes)


class Caller:
    """Sends each event until an owner acknowledges it on two nodes, to one cluster or the other."""

    def __init__(self, owners: list[Running]) -> None:
        self.owners = owners
        self.acknowledged = 0
        self.stop = False
        self.by_deposed = 0

    async def run(self) -> None:
        while not self.stop:
            name = f"m{self.acknowledged}"
            while not await self._sent(name):
                await asyncio.sleep(0.01)
            self.acknowledged += 1

    async def _sent(self, name: str) -> bool:
        for owner in list(self.owners):
            deposed = owner.standing is Standing.DEPOSED
            if await owner.track(PERSON, name) == 200:
                self.by_deposed += deposed
                return True
        return False


def test_a_new_cluster_s_claim_deposes_the_old_and_callers_of_both_lose_nothing(
    tmp_path: Path,
) -> None:
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        nodes = LocalNodes(tmp_path, 3, CONFIG)
        try:
            await asyncio.wait_for(upgrade(nodes, new_store(), new_store()), 90)
        finally:
            await nodes.close()

    async def upgrade(nodes: LocalNodes, first: LeaseStore, second: LeaseStore) -> None:
        old = OfCluster(nodes, ("n0", "n1"), first)
        await old.custody.open()
        serving = await old.start()
        await old.pair(serving)
        caller = Caller([serving])
        calling = asyncio.create_task(caller.run())
        while caller.acknowledged < 50:
            await asyncio.sleep(0.01)

        # The new cluster finds the table in the Lease, and the backup's copy on a node of its own.
        new = OfCluster(nodes, ("n1", "n2"), second)
        table = await new.custody.open()
        assert table.claim("0").owner.node_id == "n0"
        before = caller.acknowledged
        successor = await new.start()
        caller.owners.append(successor)
        assert successor.node_id == "n1"
        # One copy is not two: nothing is acknowledged at "replica" until there is another.
        await new.pair(successor)
        while caller.acknowledged < before + 50:
            await asyncio.sleep(0.01)
        caller.stop = True
        await calling

        assert serving.standing is Standing.DEPOSED
        assert serving.left
        assert not caller.by_deposed
        assert await serving.track(PERSON, "never") in (0, 503)
        claim = await new.custody.claim("0")
        assert (claim.owner.node_id, claim.backup and claim.backup.node_id) == ("n1", "n2")
        # Each counts once, whoever acknowledged it.
        assert successor.version(PERSON) == caller.acknowledged
        serving.stop()
        successor.stop()

    warm_up(CONFIG)
    play(tmp_path, scene)
