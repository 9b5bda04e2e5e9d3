"""Levels and snapshots of `tests.bench.durability`: one owner under load, without Ray and HTTP.

    python -m tests.bench.durability_levels owner LEVEL --folder F [--backup PORT] --people N
    python -m tests.bench.durability_levels backup --folder F

Owner, backup and load are processes of their own, as on nodes; both copies lie on one disk here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import uvloop
from numpy.typing import NDArray

from actors.backup import Backups
from actors.compact import run_compaction
from actors.copies import CopyFolder, CopyState
from actors.endpoint import Endpoint
from actors.epoch_store import FileEpochStore
from actors.messages import Item
from actors.owner import Surroundings, take_ownership
from actors.quiet import settle_memory
from actors.replicator import Peer
from actors.shard import Shard
from actors.warm_up import warm_up
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from cluster.levels import Level
from cluster.ownership import Copy, Table, claim_of
from serve.connection import Connection
from tests.bench.harness import Row, percentile

SECRET = b"b" * 32
LEVELS: tuple[Level, ...] = ("memory", "disk", "replica")
ITEMS = 1000
MANY = 64
SHARE = 0.2
"""Of what the owner can do: on two cores its compaction and the load have the rest."""
IDLE_CPU_S = 0.1
PAIRS = 4
CHUNK = 20_000
READY_S = 120.0
EVERYTHING = KeyRange(0, HASH_SPACE)
OWNER, BACKUP = Copy("c0", "n0"), Copy("c1", "n1")


def config_of(folder: Path, level: Level) -> Config:
    return Config(
        data_dir=str(folder),
        shards=1,
        durability=level,
        profiles_max=1 << 21,
        profile_bytes_max=1 << 30,
        items_max=4096,
    )


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


async def lines() -> Any:
    """Standard input, line by line, until it is closed."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line.strip()


async def keep_backup(folder: Path) -> None:
    config = config_of(folder, "replica")
    CopyFolder(config, "0", BACKUP.copy_id).create(CopyState())
    backups = Backups(config, SECRET)
    await backups.start("127.0.0.1")
    backups.open("0", BACKUP.copy_id, None)
    say(port=backups.address[1])
    async for _ in lines():
        pass
    await backups.close()


def fill(shard: Shard, people: int) -> None:
    """One event each, as a warm start applies them, of people whose hashes are as even as true
    ones: the index is made for those."""
    for start in range(0, people, CHUNK):
        count = min(CHUNK, people - start)
        low, high = np.random.default_rng(start).integers(-(1 << 63), (1 << 63) - 1, (2, count))
        columns: dict[str, NDArray[Any]] = {
            "key_hi": high,
            "key_lo": low,
            "item": np.arange(count, dtype=np.int32) % ITEMS,
            "type": np.ones(count, np.uint8),
            "value": np.zeros(count, np.float32),
            "time": np.full(count, int(time.time()) - 60, np.uint32),
        }
        shard.loads.events(f"fill/{start}", "default", columns)


async def settled() -> None:
    """Returns when nothing is done any more with what was filled in."""
    used_s = -1.0
    while time.process_time() > used_s + IDLE_CPU_S:
        used_s = time.process_time()
        await asyncio.sleep(1.0)


async def keep_owner(folder: Path, level: Level, backup_port: int, people: int) -> None:
    """A shard until standard input is closed; each line there asks for a snapshot."""
    config = config_of(folder, level)
    warm_up(config)
    shard = Shard("0", EVERYTHING, config)
    copy = CopyFolder(config, "0", OWNER.copy_id)
    if level != "memory":
        copy.create(CopyState(served=True))
        store = FileEpochStore(config)
        backup, peer = None, None
        if backup_port:
            backup, peer = BACKUP, Peer(BACKUP, "127.0.0.1", backup_port)
        claim = claim_of("0", EVERYTHING, 1, OWNER, backup)
        await store.swap(0, Table((claim,), config.ring_events_max, level))

        async def release(epoch: int) -> float:
            return 0.0

        around = Surroundings(config, OWNER.node_id, store, SECRET, release, sys.exit)
        await take_ownership(shard, copy, peer, around)
    shard.put_items("default", msgspec.json.encode([Item(f"i{i}") for i in range(ITEMS)]))
    fill(shard, people)
    await settled()
    settle_memory()
    endpoint = Endpoint(shard, lambda principal: (SECRET, None))
    _, port = await endpoint.start("127.0.0.1")
    say(port=port)
    async for _ in lines():
        assert shard.journal is not None
        await shard.journal.sync()
        shard.journal.writer.seal()
        shard.take_down("default", [])
        await shard.journal.sync()
        began_s = time.perf_counter()
        await run_compaction(copy.path, config)
        say(seconds=time.perf_counter() - began_s)
    await endpoint.close()


# The side of the load.


class Program:
    """One of the processes above. A context manager that ends it."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.bench.durability_levels", *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[str] = self._process.stdin
        self._out: IO[str] = self._process.stdout
        self.port: int = self.told()["port"]

    def ask(self) -> None:
        self._in.write("\n")
        self._in.flush()

    def told(self) -> Row:
        found: Row = json.loads(self._out.readline())
        return found

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._in.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def owner_of(level: Level, people: int) -> Iterator[Program]:
    """An owner, and its backup where the level has one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="levels")))
        arguments = ["owner", level, "--folder", str(folder / "n0"), "--people", str(people)]
        if level == "replica":
            backup = stack.enter_context(Program("backup", "--folder", str(folder / "n1")))
            arguments += ["--backup", str(backup.port)]
        yield stack.enter_context(Program(*arguments))


def body(rng: random.Random, people: int) -> bytes:
    """What is measured: an event, and a decision over a few candidates."""
    viewed = {"event": "Item Viewed", "properties": {"itemId": f"i{rng.randrange(ITEMS)}"}}
    actions = [f"i{rng.randrange(ITEMS)}" for _ in range(10)]
    return msgspec.json.encode(
        {
            "userId": f"u{rng.randrange(people)}",
            "messageId": f"{rng.getrandbits(64):x}",
            "events": [viewed],
            "decisions": [{"surface": "product", "actions": actions, "numResults": 5}],
        }
    )


async def connect(port: int) -> Connection:
    connection = Connection("gateway", SECRET, 1 << 20, 60.0, lambda lost: None)
    await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)
    await connection.ready
    return connection


async def closed_loop(port: int, callers: int, seconds: float, rng: random.Random) -> Row:
    """`callers` requests always open: requests a second, and latencies."""
    connection = await connect(port)
    taken: list[float] = []
    stop_s = time.perf_counter() + seconds

    async def caller() -> None:
        while (sent_s := time.perf_counter()) < stop_s:
            status, answer = await connection.submit(Op.DECIDE, body(rng, 10_000), b"s:default")
            if status == 429:
                # A disk that stands still for a moment: a caller comes again, as it is told to.
                await asyncio.sleep(0.01)
                continue
            if status != 200:
                raise RuntimeError(f"{status} {answer!r}")
            taken.append(time.perf_counter() - sent_s)

    await asyncio.gather(*(caller() for _ in range(callers)))
    connection.abort("done")
    taken.sort()
    return {
        "rps": len(taken) / seconds,
        "p50_us": percentile(taken, 0.5) * 1e6,
        "p99_us": percentile(taken, 0.99) * 1e6,
    }


def levels(seconds: int, repeats: int, seed: int) -> tuple[list[Row], dict[str, float]]:
    """Requests a second and latencies by level, at one and at many open requests."""
    rng = random.Random(seed)
    runs: dict[tuple[str, int], list[Row]] = {}
    with ExitStack() as stack:
        owners = {level: stack.enter_context(owner_of(level, 0)) for level in LEVELS}
        for repeat in range(repeats + 1):
            for level, owner in owners.items():
                for callers in (1, MANY):
                    run = uvloop.run(closed_loop(owner.port, callers, seconds, rng))
                    if repeat:
                        runs.setdefault((level, callers), []).append(run)
    rows: list[Row] = [
        {"arm": f"frame_{level}", "connections": callers}
        | {name: round(statistics.median(run[name] for run in found)) for name in found[0]}
        for (level, callers), found in runs.items()
    ]
    rps = {(row["arm"], row["connections"]): row["rps"] for row in rows}
    return rows, {
        "replica/memory": rps["frame_replica", MANY] / rps["frame_memory", MANY],
        "frame_disk/frame_memory": rps["frame_disk", MANY] / rps["frame_memory", MANY],
    }


async def paced(
    port: int, rps: float, rng: random.Random, stop: asyncio.Event, warm_s: float = 1.0
) -> list[float]:
    """Latencies of requests in open loop until `stop`, sorted; those of the first `warm_s` not."""
    connection = await connect(port)
    taken: list[float] = []
    waiting: set[asyncio.Future[Any]] = set()
    began_s = due_s = time.perf_counter()

    def answered(done: asyncio.Future[Any], due_s: float) -> None:
        waiting.discard(done)
        if due_s > began_s + warm_s:
            taken.append(time.perf_counter() - due_s)

    while not stop.is_set():
        while due_s <= time.perf_counter():
            future = connection.submit(Op.DECIDE, body(rng, 10_000), b"s:default")
            waiting.add(future)
            future.add_done_callback(lambda done, due_s=due_s: answered(done, due_s))  # type: ignore[misc]
            due_s += rng.expovariate(rps)
        await asyncio.sleep(0.0005)
    if waiting:
        await asyncio.gather(*waiting)
    connection.abort("done")
    return sorted(taken)


def snapshots(people: int, seconds: int, seed: int) -> tuple[list[Row], dict[str, float]]:
    """Latencies at SHARE of what the owner can do, while nothing else happens and while its log
    becomes a snapshot."""
    rng = random.Random(seed)

    async def measure(owner: Program) -> list[Row]:
        most = await closed_loop(owner.port, MANY, seconds, rng)
        rps = SHARE * most["rps"]
        rows: list[Row] = []
        for number, arm in enumerate(("steady", "snapshot") * (1 + PAIRS)):
            stop = asyncio.Event()
            running = asyncio.create_task(paced(owner.port, rps, rng, stop))
            await asyncio.sleep(1.0)
            took_s = float(seconds)
            if arm == "snapshot":
                await asyncio.to_thread(owner.ask)
                took_s = (await asyncio.to_thread(owner.told))["seconds"]
            else:
                await asyncio.sleep(seconds)
            stop.set()
            taken = await running
            if number < 2:
                continue  # What is done for the first time takes longer.
            rows.append(
                {
                    "arm": arm,
                    "rps": round(rps),
                    "people": people,
                    "seconds": round(took_s, 2),
                    "p50_us": round(percentile(taken, 0.5) * 1e6),
                    "p99_us": round(percentile(taken, 0.99) * 1e6),
                }
            )
        return rows

    with owner_of("disk", people) as owner:
        rows = uvloop.run(measure(owner))
    p99 = {
        arm: statistics.median(row["p99_us"] for row in rows if row["arm"] == arm)
        for arm in ("steady", "snapshot")
    }
    return rows, {"snapshot_p99/steady_p99": p99["snapshot"] / p99["steady"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="processes of tests.bench.durability")
    parser.add_argument("what", choices=("owner", "backup"))
    parser.add_argument("level", nargs="?", choices=LEVELS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--backup", type=int, default=0)
    parser.add_argument("--people", type=int, default=0)
    flags = parser.parse_args()
    if flags.what == "backup":
        uvloop.run(keep_backup(flags.folder))
    else:
        uvloop.run(keep_owner(flags.folder, flags.level, flags.backup, flags.people))


if __name__ == "__main__":
    main()
