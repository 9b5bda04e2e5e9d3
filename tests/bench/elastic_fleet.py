"""Reshapes of a fleet: several of Ray's nodes on this machine, one gateway, shards that move.

Started by `tests.bench.elastic`, in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from actors.quiet import starting_niceness
from cluster.config import Config
from serve.client_http import Http
from serve.launch import Cluster, launch
from serve.remote import Where, call, connected, import_files
from tests.bench.elastic_load import changed
from tests.bench.harness import Row, percentile
from tests.bench.warm_start_data import write_events

RATE = 200.0
CPU_RATE = 800.0
"""Of all shards together, or of each times eight."""
SETTLE_S = 280.0
QUIET_S = 80.0
ITEMS = 400
POLL_S = 0.1
NODE: dict[str, Any] = {"num_cpus": 2, "resources": {"shards": 32}}


class Fleet:
    """A running onehop over several nodes, and its doors."""

    def __init__(self, ray_cluster: Any, onehop: Cluster) -> None:
        self.ray_cluster = ray_cluster
        self.onehop = onehop
        self.where = Where(onehop.address, onehop.keys.sk if onehop.keys else "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.onehop, name)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        async with connected(self.where) as http:
            return await call(http, method, path, body)

    async def shards(self) -> list[Any]:
        """Owners in order of their ranges."""
        owners: list[Any] = (await self.ask("GET", "/v1/shards"))["owners"]
        return sorted(owners, key=lambda owner: int(owner["start"], 16))

    async def nodes(self) -> list[Any]:
        found: list[Any] = (await self.ask("GET", "/v1/nodes"))["nodes"]
        return found

    async def paired(self) -> None:
        """Returns when every shard has its backup: until then nothing counts as on two nodes."""
        while sum(len(n["copies"]) for n in await self.nodes()) < len(await self.shards()):
            await asyncio.sleep(POLL_S)

    async def reshape(self, path: str, body: Any) -> Any:
        """Begin, and wait until it is done. Raises RuntimeError if it was aborted."""
        async with connected(self.where) as http:
            state = await call(http, "POST", path, body)
            state = await self._ended(http, state)
        if state["step"] != "done":
            raise RuntimeError(f"reshape: {state}")
        return state

    async def _ended(self, http: Http, state: Any) -> Any:
        while state["step"] not in ("done", "aborted"):
            await asyncio.sleep(POLL_S)
            state = await call(http, "GET", f"/v1/reshapes/{state['id']}")
        return state


@contextmanager
def running(nodes: int, **settings: Any) -> Iterator[Fleet]:
    """Nodes for shards beside a head with the gateway, joined by onehop."""
    from ray.cluster_utils import Cluster as RayCluster

    # As onehop runs its own Ray.
    os.environ.update(RAY_worker_niceness=str(starting_niceness()))
    head = {"num_cpus": 2, "resources": {"gateways": 4}}
    ray_cluster = RayCluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes):
        ray_cluster.add_node(**NODE)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-elastic-") as folder:
            config = Config(
                port=0,
                data_dir=folder,
                address=ray_cluster.address,
                node_roles=True,
                shard_cpus=0.1,
                **{"shards": 2, "reshape": "advise", **settings},
            )
            with launch(config) as onehop:
                yield Fleet(ray_cluster, onehop)
    finally:
        ray_cluster.shutdown()


async def reshapes(fleet: Fleet, rounds: int, seconds: float) -> list[Row]:
    """Split, move and merge under load, again and again; pauses of all of one kind together."""
    rows: dict[str, list[Row]] = {"split": [], "move": [], "merge": []}

    async def step(kind: str) -> Row:
        owners = await fleet.shards()
        first, second = owners[0], owners[1]
        if kind == "split":
            state = await fleet.reshape(f"/v1/shards/{first['shardId']}:split", {})
        elif kind == "move":
            others = [n for n in await fleet.nodes() if n["nodeId"] != first["nodeId"]]
            body = {"nodeId": others[0]["nodeId"]}
            state = await fleet.reshape(f"/v1/shards/{first['shardId']}:move", body)
        else:
            body = {"shards": [first["shardId"], second["shardId"]]}
            state = await fleet.reshape("/v1/shards:merge", body)
        return {"pause_ms": round(state["frozenSeconds"] * 1000, 1)}

    await fleet.paired()
    for _ in range(rounds):
        for kind, found in rows.items():

            async def change(kind: str = kind) -> Row:
                return await step(kind)

            found.append(await changed(kind, *fleet.where, RATE, seconds, change))
    return [_together(kind, found) for kind, found in rows.items()]


def _together(kind: str, rows: list[Row]) -> Row:
    """Repeats of one change as one row: sums of what went wrong, medians of times."""
    pauses = sorted(row["pause_ms"] for row in rows)
    return {
        "arm": kind,
        "connections": rows[0]["connections"],
        "repeats": len(rows),
        **{name: sum(row[name] for row in rows) for name in _SUMS},
        "why": ",".join(sorted({part for row in rows for part in row["why"].split(",") if part})),
        "wrong": ",".join(sorted({row["wrong"] for row in rows if row["wrong"]})),
        "change_s": round(statistics.median(row["change_s"] for row in rows), 2),
        "pause_ms_p50": round(statistics.median(pauses), 1),
        "pause_ms_p99": round(percentile(pauses, 0.99), 1),
        "p99_ms": round(statistics.median(row["p99_ms"] for row in rows), 1),
        **{
            name: round(statistics.median(row[name] for row in rows), 2)
            for name in ("p99_ratio", "p99_ratio_change")
        },
        "longest_ms": max(row["longest_ms"] for row in rows),
    }


_SUMS = ("requests", "failed", "failed_first", "lost", "doubled")


async def join_and_drain(fleet: Fleet, seconds: float) -> list[Row]:
    """A node gets a shard; then it is drained, and its processes are ended. Ray's own processes of
    the node, which elsewhere are busy on a machine of their own, run before."""
    await fleet.paired()
    added = fleet.ray_cluster.add_node(**NODE)
    node_id = added.node_id
    while node_id not in {node["nodeId"] for node in await fleet.nodes()}:
        await asyncio.sleep(POLL_S)

    async def join() -> Row:
        shard = (await fleet.shards())[0]["shardId"]
        state = await fleet.reshape(f"/v1/shards/{shard}:move", {"nodeId": node_id})
        return {"pause_ms_p99": round(state["frozenSeconds"] * 1000, 1)}

    async def drain() -> Row:
        await fleet.ask("POST", f"/v1/nodes/{node_id}:drain")
        while True:
            (node,) = [n for n in await fleet.nodes() if n["nodeId"] == node_id]
            if not node["shardsLeft"] and not node["copiesLeft"]:
                break
            await asyncio.sleep(POLL_S)
        states = (await fleet.ask("GET", "/v1/reshapes"))["reshapes"]
        fleet.ray_cluster.remove_node(added)
        pause_s = max(state["frozenSeconds"] for state in states[-4:])
        return {"pause_ms_p99": round(pause_s * 1000, 1)}

    return [
        await changed("node join", *fleet.where, RATE, seconds, join),
        await changed("node drain", *fleet.where, RATE, seconds, drain),
    ]


async def cpu_by_shards(fleet: Fleet, seconds: float) -> list[Row]:
    """CPU of the owners per request, from 1 to 8 shards that were split live: once with a load that
    grows as they do, once with one that stays.

    idle_cpu      cores that all of them use while nobody asks: heartbeats, learning, Ray
    owner_cpu_us  what a request costs beyond that
    """
    rows = []
    for shards in (1, 2, 4, 8):
        while len(owners := await fleet.shards()) < shards:
            widest = max(owners, key=lambda o: int(o["stop"], 16) - int(o["start"], 16))
            await fleet.reshape(f"/v1/shards/{widest['shardId']}:split", {})
        # Sources of the last split tell for some seconds where their range went.
        await asyncio.sleep(8.0)
        idle_s, _ = await _grown(fleet, seconds)

        async def measure(idle_s: float = idle_s) -> Row:
            await asyncio.sleep(1.0)
            cpu_s, requests = await _grown(fleet, seconds)
            return {
                "owner_cpu_us": round((cpu_s - idle_s) / requests * 1e6, 1),
                "with_idle_us": round(cpu_s / requests * 1e6, 1),
                "idle_cpu": round(idle_s / seconds, 3),
                "owner_rps": round(requests / seconds),
            }

        for load, rate in (("grows", CPU_RATE * shards / 8), ("stays", CPU_RATE)):
            name = f"{shards} shards, load {load}"
            row = await changed(name, *fleet.where, rate, 2.0, measure)
            rows.append(row | {"shards": shards, "load": load})
    return rows


async def _grown(fleet: Fleet, seconds: float) -> tuple[float, float]:
    """CPU seconds and requests of all owners in so many seconds."""
    before = await _counted(fleet)
    await asyncio.sleep(seconds)
    cpu_s, requests = (b - a for a, b in zip(before, await _counted(fleet), strict=True))
    return cpu_s, requests


async def _counted(fleet: Fleet) -> tuple[float, float]:
    stats = [owner["stats"] for owner in await fleet.shards()]
    return sum(one["cpuSeconds"] for one in stats), sum(one["requests"] for one in stats)


async def big_move(fleet: Fleet, people: int) -> Row:
    """One shard with so many people moves to the other node."""
    with tempfile.TemporaryDirectory(prefix="bench-elastic-") as folder:
        files = write_events(Path(folder), 2 * people, people, 1, int(time.time()))
        await import_files(fleet.where, {"events": str(files.by_person)}, dry_run=False)
    (owner,) = await fleet.shards()
    others = [n for n in await fleet.nodes() if n["nodeId"] != owner["nodeId"]]
    body = {"nodeId": others[0]["nodeId"]}

    async def change() -> Row:
        state = await fleet.reshape(f"/v1/shards/{owner['shardId']}:move", body)
        return {
            "move_s": round(state["seconds"], 1),
            "pause_ms_p99": round(state["frozenSeconds"] * 1000, 1),
        }

    row = await changed("move of a full shard", *fleet.where, RATE / 2, 5.0, change)
    (after,) = await fleet.shards()
    return row | {"profiles": after["stats"]["profiles"], "profiles_before": people}


async def balance(fleet: Fleet, seconds: float) -> Row:
    """Owners of a quarter and of three quarters of the keys, under decide calls of people by Zipf
    1.1, until the plan has had nothing to do for QUIET_S."""
    from serve.client import Client

    weights = np.arange(1, 100_001, dtype=float) ** -1.1
    edges = np.cumsum(weights / weights.sum())
    random = np.random.default_rng(1)
    stop = asyncio.Event()

    async def caller(client: Client) -> None:
        while not stop.is_set():
            for who in np.searchsorted(edges, random.random(64)).tolist():
                event = {"event": "Item Viewed", "properties": {"itemId": f"item-{who % ITEMS}"}}
                await client.decide(
                    user_id=f"zipf-{who}", events=[event], decisions=[{"surface": "product"}]
                )

    async def settled() -> float:
        began_s = quiet_s = time.monotonic()
        while time.monotonic() - quiet_s < QUIET_S and time.monotonic() - began_s < seconds:
            await asyncio.sleep(2.0)
            states = (await fleet.ask("GET", "/v1/reshapes"))["reshapes"]
            if any(state["step"] not in ("done", "aborted") for state in states):
                quiet_s = time.monotonic()
        return quiet_s - began_s

    (whole,) = await fleet.shards()
    await fleet.reshape(f"/v1/shards/{whole['shardId']}:split", {"at": ["4" + "0" * 15]})
    async with Client(fleet.where.url, fleet.where.key) as client:
        await client.put_items([{"id": f"item-{n}"} for n in range(ITEMS)])
        callers = [asyncio.create_task(caller(client)) for _ in range(24)]
        took_s = await settled()
        before = {o["shardId"]: o["stats"]["cpuSeconds"] for o in await fleet.shards()}
        await asyncio.sleep(20.0)
        owners = await fleet.shards()
        # Of a shard that began meanwhile, all: then nothing has settled, and `why` tells of it.
        used = [o["stats"]["cpuSeconds"] - before.get(o["shardId"], 0.0) for o in owners]
        stop.set()
        await asyncio.gather(*callers)
    states = (await fleet.ask("GET", "/v1/reshapes"))["reshapes"]
    row: Row = {
        "arm": "plan under Zipf 1.1",
        "shards": len(used),
        "settled_s": round(took_s, 1),
        "hottest_over_mean": round(max(used) / (sum(used) / len(used)), 2),
        "cores": round(sum(used) / 20.0, 2),
        "why": ",".join(f"{state['kind']} {state['step']}" for state in states),
    }
    print(row, flush=True)
    return row
