"""Play seeds: `python -m tests.sim --seeds 10000`, or one of them again: `--seed 17`."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.bugs import BUGS
from tests.sim.run import play
from tests.sim.world import Rules


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one only")
    parser.add_argument("--seeds", type=int, default=1000, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant this bug")
    options = parser.parse_args()
    rules = BUGS[options.bug]() if options.bug else Rules()
    first, count = options.first, options.seeds
    seeds = range(first, first + count) if options.seed is None else [options.seed]
    started_s = time.perf_counter()
    failed, steps = 0, 0
    for seed in seeds:
        try:
            steps += play(seed, rules).steps
        except Exception as error:  # a machine that refuses a transition has found a bug too
            failed += 1
            if failed <= 10:
                print(f"seed {seed}: {type(error).__name__}: {error}")
    took_s = time.perf_counter() - started_s
    print(
        f"{len(seeds)} seeds, {failed} failed, {steps / len(seeds):.0f} steps each, "
        f"{len(seeds) / took_s:.0f} seeds/s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
