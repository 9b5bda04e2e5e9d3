"""The real autoscaler: load up -> nodes come -> ranges move there -> load down -> nodes go.

A client hammers throughout and retries nothing. Several raylets need an idle machine, so this is
not collected by itself: `python -m pytest -s tests/faults/autoscaling.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.config import Config
from cluster.errors import OnehopError
from cluster.frames import Op
from cluster.keys import USER, key_hash, place
from cluster.partition_map import PartitionMap, decode_map
from serve.auth import ensure_secret
from serve.router import Router
from tests.faults.autoscaler import Autoscaled

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(900)]

UP_S = 240.0
DOWN_S = 300.0
PEOPLE = 200
META = b"s:default"
WORKER = {"resources": {"CPU": 1}, "min_workers": 1, "max_workers": 3}


@pytest.fixture
def ray_cluster() -> Iterator[Autoscaled]:
    with Autoscaled({"worker": WORKER}, workers_max=3, idle_s=10.0) as running:
        import ray

        ray.init(address=running.address, namespace="onehop", log_to_driver=False)
        yield running
        ray.shutdown()


class Hammer:
    """Callers that track as fast as they may; what fails is counted, and nothing is repeated."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.failed: Counter[str] = Counter()
        self.counts = dict.fromkeys((f"person-{n}" for n in range(PEOPLE)), 0)
        self.pause_s = 0.0
        self._stop = False

    async def run(self, callers: int) -> None:
        people = list(self.counts)
        await asyncio.gather(*(self._call(people[n::callers]) for n in range(callers)))

    def stop(self) -> None:
        self._stop = True

    async def _call(self, people: list[str]) -> None:
        while not self._stop:
            for person in people:
                await self._track(person)
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)

    async def _track(self, person: str) -> None:
        number = self.counts[person]
        body = {"userId": person, "event": "Item Viewed", "messageId": f"{person}/{number}"}
        status, answer = await self.ask(Op.TRACK, person, body)
        if status == 200:
            self.counts[person] += 1
        else:
            self.failed[f"{status} {answer}"[:200]] += 1

    async def ask(self, op: Op, person: str, body: Any) -> tuple[int, Any]:
        position = place(key_hash("default", USER, person))
        try:
            status, answer = await self.router.call(
                op, position, msgspec.json.encode(body), META, True
            )
        except OnehopError as error:
            return 0, repr(error)
        return status, msgspec.json.decode(answer)


def test_nodes_come_with_the_load_and_go_with_it(ray_cluster: Autoscaled, tmp_path: Path) -> None:
    import ray

    from actors.backup_actor import COORDINATOR
    from actors.coordinator_actor import CoordinatorActor

    config = Config(
        data_dir=str(tmp_path),
        shards=2,
        shard_cpus=0.1,
        durability="disk",
        reshape="always",
        nodes_max=2,
        shrink_after_s=20.0,
        profiles_max=2048,
        profile_bytes_max=1 << 26,
        items_max=64,
        address=ray_cluster.address,
    )
    secret = ensure_secret(config)
    actor: Any = CoordinatorActor
    coordinator = actor.options(
        name=COORDINATOR,
        namespace="onehop",
        lifetime="detached",
        resources={"node:__internal_head__": 0.001},
    ).remote(msgspec.json.encode(config))
    ray.get(coordinator.map.remote(), timeout=120)

    async def fetch_map(epoch: int) -> PartitionMap:
        return decode_map(await coordinator.wait_map.remote(epoch, 5.0))

    async def nodes() -> list[Any]:
        found: list[Any] = msgspec.json.decode(await coordinator.nodes_with_shards.remote())
        return found

    async def until(what: str, limit_s: float, holds: Callable[[list[Any]], bool]) -> None:
        began_s = time.monotonic()
        while not holds(found := await nodes()):
            if time.monotonic() > began_s + limit_s:
                plan = msgspec.json.decode(await coordinator.plan.remote())
                reshapes = msgspec.json.decode(await coordinator.reshapes.remote())
                raise AssertionError(f"{what}: {found} {plan} {reshapes}")
            await asyncio.sleep(0.5)
        print(f"{what}: {time.monotonic() - began_s:.1f} s", flush=True)

    async def act() -> Hammer:
        router = Router(
            fetch_map,
            "gateway",
            secret,
            inflight_max=1024,
            request_timeout_s=5.0,
            map_wait_s=20.0,
        )
        await router.start()
        router.watch()
        hammer = Hammer(router)
        running = asyncio.create_task(hammer.run(32))
        await until("a second node has come", UP_S, lambda n: len(n) == 2)
        await until(
            "shards are on both", UP_S, lambda n: len(n) == 2 and all(m["shards"] for m in n)
        )
        hammer.pause_s = 0.2
        await until("a node is drained", DOWN_S, lambda n: any(m["draining"] for m in n))
        await until("it has gone", DOWN_S, lambda n: len(n) == 1)
        await asyncio.sleep(2.0)
        hammer.stop()
        await running
        for person, count in hammer.counts.items():
            status, answer = await hammer.ask(Op.PROFILE_GET, person, {"userId": person})
            assert (status, answer["eventsTotal"]) == (200, count)
        await router.close()
        return hammer

    hammer = asyncio.run(act())
    print(f"{sum(hammer.counts.values())} acknowledged, failed: {dict(hammer.failed)}")
    assert not hammer.failed
    ray.get(coordinator.shutdown.remote(), timeout=30)
