"""`launch` into a Ray cluster that runs already, and fails half-way: nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

# In a process of its own: Ray is a global of the process, and other tests have theirs.
JOIN = """
import sys, time
import msgspec, ray
from ray.cluster_utils import Cluster
from cluster.config import Config
from cluster.errors import ConfigError
from serve.launch import launch

def ours():
    return sorted(n["name"] for n in ray.util.list_named_actors(all_namespaces=True)
                  if n["namespace"] == "onehop")

node = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
config = Config(data_dir=sys.argv[1], shards=2, port=0, address=node.address, host="127.0.0.1",
                profiles_max=2048, profile_bytes_max=1 << 22, items_max=64)
# The data is there; rings of another size are found out when the first actors run.
from actors.epoch_store import FileEpochStore
from cluster.keys import HASH_SPACE, KeyRange
from cluster.ownership import Copy, Table, claim_of
import asyncio
claims = (claim_of("0", KeyRange(0, HASH_SPACE), 1, Copy("c0", "n0")),)
asyncio.run(FileEpochStore(config).swap(0, Table(claims, config.ring_events_max + 1, "disk")))
try:
    launch(config)
except ConfigError as error:
    print("refused:", error)
ray.init(address=node.address, namespace="onehop", log_to_driver=False)
deadline = time.monotonic() + 20
while ours() and time.monotonic() < deadline:
    time.sleep(0.1)
print("left:", ours())
ray.shutdown()
node.shutdown()
"""


@pytest.mark.timeout(180)
def test_a_launch_that_fails_leaves_no_actor_in_the_cluster_that_it_joined(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOIN, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "ONEHOP_LOG_LEVEL": "INFO"},
    )
    assert "refused: ring_events_max must stay 51" in done.stdout, done.stdout + done.stderr
    assert "left: []" in done.stdout, done.stdout + done.stderr
