"""Several nodes of one Ray cluster: a lost node and its disk, a stale owner, all at once.

No HTTP: callers reach the owners through the router, as the SDK does. Four raylets need an idle
machine, so this is not collected by itself: `python -m pytest -s tests/faults/nodes.py`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.config import Config
from cluster.errors import OnehopError
from cluster.frames import Op
from cluster.keys import USER, key_hash, place
from cluster.ownership import Table
from cluster.partition_map import PartitionMap, decode_map
from serve.auth import ensure_secret
from serve.processes import descendants
from serve.router import Router

pytestmark = [pytest.mark.cluster, pytest.mark.faults]

WAIT_S = 240.0
META = b"s:default"
PEOPLE = [f"person-{number}" for number in range(12)]


class Fleet:
    """A head node and three others; they share a file system, not a copy."""

    def __init__(self, root: Path) -> None:
        self.config = Config(
            data_dir=str(root),
            shards=2,
            profiles_max=2048,
            profile_bytes_max=1 << 22,
            items_max=64,
            map_wait_s=20.0,
            # What is where changes by faults alone.
            reshape="advise",
        )
        root.mkdir(exist_ok=True)
        self.secret = ensure_secret(self.config)
        self.cluster: Any = None
        self.coordinator: Any = None

    def start(self) -> None:
        import ray
        from ray.cluster_utils import Cluster
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from actors.backup_actor import COORDINATOR
        from actors.coordinator_actor import CoordinatorActor

        # Owners and backups go to the others, so that each of them may be killed.
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(3):
            self.cluster.add_node(num_cpus=2)
        ray.init(address=self.cluster.address, namespace="onehop", log_to_driver=False)
        self.cluster.wait_for_nodes()
        head = ray.get_runtime_context().get_node_id()
        actor: Any = CoordinatorActor
        self.coordinator = actor.options(
            name=COORDINATOR,
            lifetime="detached",
            scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False),
        ).remote(msgspec.json.encode(self.config))
        ray.get(self.coordinator.map.remote(), timeout=WAIT_S)

    def stop(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()

    def table(self) -> Table:
        import ray

        _, data = ray.get(self.coordinator.read_table.remote())
        return msgspec.json.decode(data, type=Table)

    def wait_paired(self) -> Table:
        deadline_s = time.monotonic() + WAIT_S
        while True:
            table = self.table()
            if all(claim.backup for claim in table.claims):
                return table
            assert time.monotonic() < deadline_s, table
            time.sleep(0.2)

    def folder(self, shard_id: str, copy_id: str) -> Path:
        return self.config.data_path / "shards" / shard_id / copy_id

    async def fetch_map(self, epoch: int) -> PartitionMap:
        return decode_map(await self.coordinator.wait_map.remote(epoch, 5.0))

    async def router(self) -> Router:
        router = Router(
            self.fetch_map,
            "gateway",
            self.secret,
            inflight_max=1024,
            request_timeout_s=3.0,
            map_wait_s=20.0,
        )
        await router.start()
        router.watch()
        return router


class Caller:
    """Tracks events at level replica, each until it is acknowledged."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.acknowledged = dict.fromkeys(PEOPLE, 0)

    async def ask(self, op: Op, person: str, body: Any) -> tuple[int, Any]:
        position = place(key_hash("default", USER, person))
        try:
            status, answer = await self.router.call(
                op, position, msgspec.json.encode(body), META, True
            )
        except OnehopError as error:
            return 0, str(error)
        return status, msgspec.json.decode(answer)

    async def track(self, person: str) -> None:
        """One event more. Raises AssertionError if it is not acknowledged in time."""
        number = self.acknowledged[person]
        body = {"userId": person, "event": "Seen", "messageId": f"{person}/{number}"}
        deadline_s = time.monotonic() + WAIT_S
        while True:
            status, answer = await self.ask(Op.TRACK, person, body)
            if status == 200:
                assert answer["durability"] == "replica"
                self.acknowledged[person] += 1
                return
            assert status in (0, 503), answer
            assert time.monotonic() < deadline_s, answer
            await asyncio.sleep(0.05)

    async def track_all(self, rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.gather(*map(self.track, PEOPLE))

    async def check(self) -> None:
        """Everything acknowledged is there, once."""
        for person, count in self.acknowledged.items():
            answer = await self.read(person)
            assert answer["eventsTotal"] == count, person

    async def read(self, person: str) -> Any:
        """The person's profile, as soon as somebody may tell it."""
        deadline_s = time.monotonic() + WAIT_S
        while True:
            status, answer = await self.ask(Op.PROFILE_GET, person, {"userId": person})
            if status == 200:
                return answer
            assert status in (0, 503), answer
            assert time.monotonic() < deadline_s, answer
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("nodes"))
    running.start()
    yield running
    running.stop()


def test_nothing_is_lost_with_nodes_processes_and_the_whole_cluster(fleet: Fleet) -> None:
    async def act() -> dict[str, int]:
        caller = Caller(await fleet.router())
        before = fleet.wait_paired()
        for claim in before.claims:
            assert claim.backup is not None
            assert claim.backup.node_id != claim.owner.node_id
        await caller.track_all(5)

        # A node is killed, and its disk is gone.
        victim = before.claims[0]
        node = next(
            one for one in fleet.cluster.worker_nodes if one.node_id == victim.owner.node_id
        )
        (raylet,) = node.all_processes["raylet"]
        actors = descendants(raylet.process.pid)
        killed_s = time.monotonic()
        # Its workers would outlive their raylet by seconds, and go on answering.
        for process in actors:
            os.kill(process.pid, signal.SIGKILL)
        fleet.cluster.remove_node(node, allow_graceful=False)
        for claim in before.claims:
            for copy in filter(None, (claim.owner, claim.backup)):
                if copy.node_id == victim.owner.node_id:
                    shutil.rmtree(fleet.folder(claim.shard_id, copy.copy_id))
        person = next(p for p in PEOPLE if _shard_of(caller.router, p) == victim.shard_id)
        await caller.read(person)
        print(f"first correct answer {time.monotonic() - killed_s:.1f} s after the node's loss")
        await caller.check()
        await caller.track_all(5)
        paired_s = time.monotonic()
        print(f"two copies again {paired_s - killed_s:.1f} s after the node's loss")
        await caller.check()

        # An owner stands still until another has its range, then goes on.
        stale = fleet.wait_paired().claims[1]
        status, stats = await caller.router.call_shard("1", Op.STATS, b"", META)
        assert status == 200
        pid = msgspec.json.decode(stats)["pid"]
        os.kill(pid, signal.SIGSTOP)
        await caller.track_all(2)
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # It was ended, since it stood still.
        await caller.track_all(2)
        assert fleet.table().claims[1].epoch > stale.epoch
        await caller.check()
        await caller.router.close()
        return caller.acknowledged

    acknowledged = asyncio.run(act())
    # Everything ends at once and starts anew: all nodes have other ids, and the same disks.
    fleet.stop()
    fleet.start()

    async def again() -> None:
        caller = Caller(await fleet.router())
        caller.acknowledged = dict(acknowledged)
        await caller.check()
        fleet.wait_paired()
        await caller.track_all(2)
        await caller.check()
        await caller.router.close()

    asyncio.run(again())


def _shard_of(router: Router, person: str) -> str:
    return router.map.owner_of(place(key_hash("default", USER, person))).shard_id
