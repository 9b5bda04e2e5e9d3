"""Parquet to serving, beside the bare read of the same file and beside loading Redis.

    python -m tests.bench.warm_start [--json FILE] [--events N] [--people N] [--repeats N]
                                     [--redis-events N] [--seed N]

Arms, interleaved; every repeat of onehop starts a new cluster with an empty store:

    read_table      pyarrow.parquet.read_table in this process, several times over
    onehop          POST /v1/imports until it is done, the file in order of time, durability "disk"
    onehop_memory   the same with durability "memory"
    by_person       as `onehop`, the file sorted by person
    cold            as `onehop`, the first thing that a new cluster does: readers are started, too
    redis           redis-py with hiredis, pipelined: HINCRBY, LPUSH, LTRIM per event
    redis_raw       the same commands as hand-written protocol without replies: mass insertion

All arms but `cold` import after a dry run of the same file. `seconds` of the Redis arms are
those of their `events`, scaled to the file. `load_s` is without the last step, in which the engine
builds its model of what was loaded. `peak_mb` is what all processes together hold at most during
the import (proportional set size, sampled), `before_mb` what they held before it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.harness import Process, Row, Server, cpu_s, report, summary
from tests.bench.warm_start_data import Files, write_events
from tests.bench.warm_start_peers import read_table_s, redis_raw_s, redis_s

READS = 3
"""Bare reads per repeat."""
POLL_S = 0.05
SAMPLE_S = 0.2
PACKAGES = ("pyarrow", "numpy", "numba", "ray", "redis", "hiredis", "redis-server")


class Peak(threading.Thread):
    """Samples the memory of processes until `stop`."""

    def __init__(self, processes: Callable[[], list[Process]]) -> None:
        super().__init__(daemon=True)
        self._processes = processes
        self._stopped = threading.Event()
        self.before_bytes = _pss_bytes(processes())
        self.peak_bytes = self.before_bytes

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, _pss_bytes(self._processes()))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _pss_bytes(processes: list[Process]) -> int:
    """Memory of the processes; a page that n of them share counts 1/n for each."""
    total = 0
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        line = next((line for line in text.splitlines() if line.startswith("Pss:")), "Pss: 0 kB")
        total += int(line.split()[1]) << 10
    return total


def call(address: str, method: str, path: str, body: Row | None = None) -> Row:
    """One request to onehop; its answer. Raises urllib.error.HTTPError."""
    request = urllib.request.Request(
        address + path,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: Row = json.load(answer)
    return found


def import_file(address: str, path: Path, dry: bool) -> tuple[float, float, Row]:
    """Import and wait. Returns seconds in all, seconds until all rows were loaded, the status."""
    started_s = time.perf_counter()
    status = call(address, "POST", "/v1/imports", {"events": str(path), "dryRun": dry})
    load_s = 0.0
    while status["state"] == "running":
        time.sleep(POLL_S)
        status = call(address, "GET", f"/v1/imports/{status['id']}")
        if status["rowsDone"] == status["rowsTotal"] and not load_s:
            load_s = time.perf_counter() - started_s
    if status["state"] != "done":
        raise RuntimeError(f"the import {status['state']}: {status['error']}")
    return time.perf_counter() - started_s, load_s, status


def run_onehop(path: Path, person: str, durability: str, warm: bool, memory: bool) -> Row:
    """One import into a new cluster. With `memory`, sampled: then its time is not to be used."""
    folder = Path(tempfile.mkdtemp(prefix="bench-ws-"))
    command = [
        sys.executable,
        "-m",
        "tests.bench.warm_start_server",
        "--folder",
        str(folder / "data"),
    ]
    try:
        with Server([*command, "--durability", durability], folder / "log") as server:
            address = server.ready["address"]
            if warm:
                import_file(address, path, dry=True)
            peak = Peak(server.processes)
            if memory:
                peak.start()
            used_s = cpu_s(server.processes())
            seconds, load_s, status = import_file(address, path, dry=False)
            used_s = cpu_s(server.processes()) - used_s
            if memory:
                peak.stop()
            profile = call(address, "GET", f"/v1/profiles/{person}")
            assert profile["eventsTotal"] > 0
            asked = {"userId": person, "decisions": [{"surface": "product"}]}
            decided = call(address, "POST", "/v1/decide", asked)
            assert decided["decisions"][0]["ranking"], decided
            return {
                "seconds": seconds,
                "load_s": load_s,
                "cpu_s": used_s,
                "events": status["accepted"],
                "before_mb": peak.before_bytes / 1e6,
                "peak_mb": peak.peak_bytes / 1e6,
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scaled(seconds: float, events: int, all_events: int) -> Row:
    return {"seconds": seconds * all_events / events, "events": events}


def run(files: Files, flags: argparse.Namespace) -> dict[str, list[Row]]:
    """All arms, interleaved; what each repeat measured."""
    limit = min(flags.redis_events, flags.events)
    arms: dict[str, Callable[[], list[Row]]] = {
        "read_table": lambda: [
            {"seconds": read_table_s(files.by_time), "events": flags.events} for _ in range(READS)
        ],
        "redis": lambda: [scaled(redis_s(files.by_time, limit), limit, flags.events)],
        "redis_raw": lambda: [scaled(redis_raw_s(files.by_time, limit), limit, flags.events)],
    }
    for name, path, durability, warm in (
        ("onehop", files.by_time, "disk", True),
        ("onehop_memory", files.by_time, "memory", True),
        ("by_person", files.by_person, "disk", True),
        ("cold", files.by_time, "disk", False),
    ):
        # Bound here: the loop's variables will have moved on when the arm runs.
        arguments = (path, files.person, durability, warm, False)
        arms[name] = lambda arguments=arguments: [run_onehop(*arguments)]  # type: ignore[misc]
    read_table_s(files.by_time)
    found: dict[str, list[Row]] = {name: [] for name in arms}
    for repeat in range(flags.repeats):
        for name, arm in arms.items():
            rows = arm()
            found[name] += rows
            print(f"  {repeat + 1}/{flags.repeats} {name} {rows[-1]['seconds']:.2f} s", flush=True)
    return found


def rows_of(found: dict[str, list[Row]], memory: Row, events: int) -> list[Row]:
    """One row per arm: medians, the range of seconds, events per second."""
    rows: list[Row] = []
    for name, repeats in found.items():
        row: Row = {"arm": name, "repeats": len(repeats), "events": repeats[0]["events"]}
        row |= summary([r["seconds"] for r in repeats], "seconds", 3)
        row["events_per_s"] = round(events / row["seconds"])
        for column in ("load_s", "cpu_s"):
            if column in repeats[0]:
                row[column] = round(statistics.median(r[column] for r in repeats), 3)
        if name == "onehop":
            row |= {column: round(memory[column]) for column in ("before_mb", "peak_mb")}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--redis-events", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-warm-"))
    try:
        files = write_events(folder, flags.events, flags.people, flags.seed, int(time.time()))
        found = run(files, flags)
        memory = run_onehop(files.by_time, files.person, "disk", warm=True, memory=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = rows_of(found, memory, flags.events)
    seconds: dict[str, Any] = {row["arm"]: row["seconds"] for row in rows}
    ratios = {
        "time/read_table": seconds["onehop"] / seconds["read_table"],
        "redis_time/time": seconds["redis"] / seconds["onehop"],
        "redis_raw_time/time": seconds["redis_raw"] / seconds["onehop"],
        "memory_time/read_table": seconds["onehop_memory"] / seconds["read_table"],
        "by_person_time/read_table": seconds["by_person"] / seconds["read_table"],
        "cold_time/read_table": seconds["cold"] / seconds["read_table"],
    }
    ratios = {name: round(value, 2) for name, value in ratios.items()}
    report("warm_start", flags.seed, rows, ratios, PACKAGES, flags.json)


if __name__ == "__main__":
    main()
