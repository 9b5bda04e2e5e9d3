"""How soon what one person does changes what another person, on another shard, is shown.

    python -m tests.bench.learning [--json FILE] [--trials N] [--history N] [--seed N]

A onehop of two shards, with `history` events of other people first, so that the merged model has
its usual size. A trial takes two new items A and B; the watcher, on shard 1, has looked at A. Then
people on shard 0 look at A and then B, and the watcher asks, every few milliseconds, for a decision
between B and an item C that nobody knows. `delay_s` is the time from the acknowledgement of the
last of those events to the first decision that puts B before C because of it.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.config import Config
from cluster.keys import USER, key_hash, place
from cluster.partition_map import PartitionMap, decode_map
from serve.client import SyncClient
from serve.launch import launch
from tests.bench.harness import Row, report, summary

PAIRS = 8
"""People who look at A and then B in one trial."""
POLL_S = 0.005
GIVE_UP_S = 60.0
BATCH = 500
HISTORY_ITEMS = 2_000
PACKAGES = ("ray", "numpy", "numba")


def person_on(partition_map: PartitionMap, shard: int, rng: random.Random) -> str:
    """A new user id that the shard owns."""
    while True:
        name = f"u{rng.getrandbits(64):x}"
        if (
            partition_map.owner_of(place(key_hash("default", USER, name)))
            is (partition_map.owners[shard])
        ):
            return name


def viewed(person: str, item: str) -> dict[str, Any]:
    properties = {"itemId": item}
    return {"type": "track", "userId": person, "event": "Item Viewed", "properties": properties}


def fill(client: SyncClient, events: int, rng: random.Random) -> None:
    """A history of other people, each with a few events."""
    items = [{"id": f"h{i}"} for i in range(HISTORY_ITEMS)]
    for start in range(0, HISTORY_ITEMS, BATCH):
        client.put_items(items[start : start + BATCH])
    for start in range(0, events, BATCH):
        count = min(BATCH, events - start)
        client.batch(
            [
                viewed(f"h{rng.randrange(events // 5 + 1)}", f"h{rng.randrange(HISTORY_ITEMS)}")
                for _ in range(count)
            ]
        )


def trial(
    client: SyncClient, partition_map: PartitionMap, number: int, rng: random.Random
) -> float:
    """Seconds until the watcher's decision reflects what others did."""
    a, b, c = (f"t{number}-{name}" for name in "abc")
    client.put_items([{"id": item} for item in (a, b, c)])
    watcher = person_on(partition_map, 1, rng)
    client.batch([viewed(watcher, a)])
    others = [person_on(partition_map, 0, rng) for _ in range(PAIRS)]
    client.batch([viewed(person, item) for person in others for item in (a, b)])
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < GIVE_UP_S:
        answer = client.decide(
            user_id=watcher, decisions=[{"surface": "product", "actions": [c, b]}]
        )
        first, second = answer.decisions[0].ranking
        if first.id == b and first.score > second.score:
            return time.perf_counter() - started_s
        time.sleep(POLL_S)
    raise TimeoutError(f"after {GIVE_UP_S} s the other shard still knows nothing")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--history", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-learning-") as folder,
        launch(Config(port=0, data_dir=folder, shards=2)) as cluster,
        SyncClient(cluster.address, cluster.keys.sk if cluster.keys else "") as client,
    ):
        partition_map = decode_map(ray.get(cluster.coordinator.map.remote()))
        for events in (0, options.history):
            fill(client, events, rng)
            delays = [trial(client, partition_map, events + n, rng) for n in range(options.trials)]
            rows.append({"history_events": events} | summary(delays, "delay_s", 3))
    report("learning", options.seed, rows, {}, PACKAGES, options.json)


if __name__ == "__main__":
    main()
