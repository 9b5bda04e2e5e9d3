"""Runs onehop for `tests.bench.warm_start` until its standard input is closed.

    python -m tests.bench.warm_start_server --folder F --durability disk|memory

Prints one JSON line when it serves. A program of its own, as `launch` is once per process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cluster.config import Config
from serve.launch import launch
from tests.bench.harness import adopt_orphans, wait_for_close


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--durability", choices=("disk", "memory"), default="disk")
    flags = parser.parse_args()
    adopt_orphans()
    config = Config(port=0, data_dir=str(flags.folder), durability=flags.durability)
    with launch(config) as cluster:
        print(json.dumps({"address": cluster.address}), flush=True)
        wait_for_close()


if __name__ == "__main__":
    main()
