"""What the plan does over simulated days: how even the load is, and what the evenness costs.

    python -m tests.bench.plan [--json FILE]

Rows: one per scenario: the hottest shard over the mean (median and worst of the second half of the
time; `one_key_over_mean` is what the busiest person alone makes of it, below which no division by
people can come), reshapes by kind, the share of all profiles that crossed the network, and the time
from the first overload to the first reshape.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.bench.harness import Row, report
from tests.cluster.plan_world import STEP_S, World, zipf

HOURS = 8
SEED = 1
Demand = Callable[[float], float]

SCENARIOS: dict[str, tuple[float, int, Demand]] = {
    # Name: Zipf exponent, keys, cores of load at a time.
    "zipf 1.1": (1.1, 1_000_000, lambda now: 3.2),
    "zipf 1.1, popular keys change every 2 h": (1.1, 1_000_000, lambda now: 3.2),
    "zipf 0.9, sine of an hour": (0.9, 100_000, lambda now: 6 + 3 * math.sin(now / 573)),
    "zipf 0.9, steps of 15 min": (0.9, 100_000, lambda now: 9.0 if now // 900 % 2 else 3.0),
    "zipf 0.9, growing 40-fold": (0.9, 100_000, lambda now: 0.5 + 19.5 * now / (HOURS * 3600)),
}


def run(name: str, seed: int) -> Row:
    exponent, keys, demand = SCENARIOS[name]
    world = World(seed, lambda rng: zipf(keys, exponent, rng), demand, nodes=4)
    bounds: list[float] = []
    ratios, overloaded_s, answered_s, started = [], None, None, time.perf_counter()
    steps = int(HOURS * 3600 / STEP_S)
    for step in range(steps):
        if "change" in name and step and step % int(7200 / STEP_S) == 0:
            world.shuffle()
        if overloaded_s is None and world.true_loads().max() > world.planner.settings.split_above:
            overloaded_s = world.now_s
        world.step()
        if answered_s is None and overloaded_s is not None and world.under_way:
            answered_s = world.now_s - overloaded_s
        if step >= steps // 2:
            ratios.append(world.imbalance())
            bounds.append(float(world.shares.max()) * len(world.owners))
    kinds = Counter(reshape.kind for _, reshape in world.done)
    return {
        "set": name,
        "hours": HOURS,
        "shards": len(world.owners),
        "hottest_over_mean": round(statistics.median(ratios), 3),
        "one_key_over_mean": round(statistics.median(bounds), 3),
        "hottest_over_mean_max": round(max(ratios), 3),
        **{f"{kind}s": kinds[kind] for kind in ("split", "merge", "shift", "move")},
        "profiles_moved": round(world.moved_share, 2),
        "answered_s": answered_s,
        "step_us": round((time.perf_counter() - started) / steps * 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, help="ignored: the simulated time is fixed")
    options = parser.parse_args()
    rows = [run(name, SEED) for name in SCENARIOS]
    report("plan", SEED, rows, {}, ("numpy",), options.json)


if __name__ == "__main__":
    main()
