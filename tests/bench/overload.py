"""What a shard does with more than it can do: with its admission control, and without.

    python -m tests.bench.overload [--json FILE] [--seconds S] [--seed N]

One shard in a process of its own, acknowledging from memory: an event and a decision over 2,000
items by the engine. First its capacity, by 32 requests that are always open. Then requests come in
open loop, at random times, at 1 to 3 times that, whether or not answers come. `goodput_rps` counts
answers within 0.5 s, `p99_ms` is over all requests that were answered with a decision.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from actors.endpoint import Endpoint
from actors.messages import Item
from actors.people import Caller
from actors.shard import Shard
from actors.warm_up import warm_up
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from serve.connection import Connection
from tests.bench.harness import Row, percentile, report, wait_for_close

SECRET = b"b" * 32
ITEMS = 2_000
PEOPLE = 20_000
HISTORY = 100_000
IN_TIME_S = 0.5
LOADS = (1.0, 1.5, 2.0, 3.0)
OFF_S = 1e6
PACKAGES = ("numpy", "numba", "uvloop")


def message(rng: random.Random) -> bytes:
    item = min(int(rng.expovariate(1 / (ITEMS / 8))), ITEMS - 1)
    return msgspec.json.encode(
        {
            "userId": f"u{rng.randrange(PEOPLE)}",
            "events": [{"event": "Item Viewed", "properties": {"itemId": f"i{item}"}}],
            "decisions": [{"surface": "product"}],
        }
    )


async def serve(target_s: float, seed: int) -> None:
    """A shard with a history, until standard input is closed; prints its port."""
    config = Config(
        durability="memory",
        queue_target_s=target_s,
        profiles_max=1 << 17,
        profile_bytes_max=1 << 28,
        items_max=4096,
    )
    warm_up(config)
    shard = Shard("0", KeyRange(0, HASH_SPACE), config)
    rng = random.Random(seed)
    items = [Item(f"i{i}", {"category": f"c{i % 50}"}) for i in range(ITEMS)]
    shard.put_items("default", msgspec.json.encode(items))
    for _ in range(HISTORY):
        body = msgspec.json.decode(message(rng)) | {"decisions": []}
        shard.handle(Op.DECIDE, Caller("s", "default"), msgspec.json.encode(body), 0)
    endpoint = Endpoint(shard, lambda principal: (SECRET, None))
    _, port = await endpoint.start("127.0.0.1")
    print(json.dumps({"port": port}), flush=True)
    await asyncio.to_thread(wait_for_close)
    await endpoint.close()


async def connect(port: int) -> Connection:
    connection = Connection("gateway", SECRET, 1 << 20, 60.0, lambda lost: None)
    await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)
    await connection.ready
    return connection


async def capacity_rps(connection: Connection, seconds: float, rng: random.Random) -> float:
    """Answers a second with 32 requests always open."""
    done = 0
    stop_s = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < stop_s:
            await connection.submit(Op.DECIDE, message(rng), b"s:default")
            done += 1

    await asyncio.gather(*(caller() for _ in range(32)))
    return done / seconds


async def offer(connection: Connection, rps: float, seconds: float, rng: random.Random) -> Row:
    """Send in open loop and wait for every answer."""
    answers: list[tuple[int, float]] = []
    bodies = [message(rng) for _ in range(1000)]
    started_s = time.perf_counter()
    due_s, sent = started_s, 0
    waiting: list[asyncio.Future[tuple[int, bytes]]] = []
    while due_s < started_s + seconds:
        now_s = time.perf_counter()
        while due_s <= now_s:
            future = connection.submit(Op.DECIDE, bodies[sent % 1000], b"s:default")
            future.add_done_callback(
                lambda done, due=due_s: answers.append(  # type: ignore[misc]
                    (done.result()[0], time.perf_counter() - due)
                )
            )
            waiting.append(future)
            sent += 1
            due_s += rng.expovariate(rps)
        await asyncio.sleep(0.001)
    await asyncio.gather(*waiting)
    await asyncio.sleep(0)
    taken = sorted(latency for status, latency in answers if status == 200)
    return {
        "offered_rps": round(sent / seconds),
        "goodput_rps": round(sum(latency <= IN_TIME_S for latency in taken) / seconds),
        "refused": sum(status == 429 for status, _ in answers),
        "other": sum(status not in (200, 429) for status, _ in answers),
        "p50_ms": round(percentile(taken, 0.5) * 1e3, 1),
        "p99_ms": round(percentile(taken, 0.99) * 1e3, 1),
    }


async def measure(port: int, arm: str, seconds: float, seed: int) -> list[Row]:
    rng = random.Random(seed)
    connection = await connect(port)
    await capacity_rps(connection, 1.0, rng)
    capacity = await capacity_rps(connection, 3.0, rng)
    rows: list[Row] = []
    for load in LOADS:
        row = await offer(connection, load * capacity, seconds, rng)
        rows.append({"arm": arm, "load": load, "capacity_rps": round(capacity), **row})
    connection.abort("done")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        uvloop.run(serve(options.serve, options.seed))
        return
    rows: list[Row] = []
    for arm, target_s in (("control", Config().queue_target_s), ("none", OFF_S)):
        command = [sys.executable, "-m", "tests.bench.overload", "--serve", str(target_s)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            port = json.loads(server.stdout.readline())["port"]
            rows += uvloop.run(measure(port, arm, options.seconds, options.seed))
        finally:
            server.stdin.close()
            server.wait(30)
    most = {row["arm"]: row for row in rows if row["load"] == LOADS[-1]}
    control, none = most["control"], most["none"]
    ratios = {
        "goodput_3x/capacity": control["goodput_rps"] / control["capacity_rps"],
        "goodput_3x/none": control["goodput_rps"] / max(none["goodput_rps"], 1),
        "p99_3x/none": control["p99_ms"] / none["p99_ms"],
    }
    report("overload", options.seed, rows, ratios, PACKAGES, options.json)


if __name__ == "__main__":
    main()
