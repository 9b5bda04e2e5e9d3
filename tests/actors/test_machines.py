from __future__ import annotations

import os
from typing import Any

from actors.machines_actor import ROOM_MAX, machines_of
from cluster.config import Config


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {
        "NodeID": name,
        "NodeManagerAddress": f"10.0.0.{name}",
        "Alive": alive,
        "Resources": resources,
    }


def test_only_living_nodes_that_may_have_shards_are_machines():
    nodes = [node("1", CPU=4.0), node("2", alive=False, CPU=4.0), node("3"), node("4", CPU=2.0)]
    found = machines_of(Config(shard_cpus=0.5), nodes)
    assert [(m.node_id, m.address, m.cpus, m.room) for m in found] == [
        ("1", "10.0.0.1", 4.0, 8),
        ("4", "10.0.0.4", 2.0, 4),
    ]


def test_with_roles_the_nodes_of_gateways_are_none():
    nodes = [
        node("1", CPU=8.0, shards=6, memory=1 << 30),
        node("2", CPU=8.0, gateways=4),
        node("3", CPU=2.0, shards=6),
    ]
    found = machines_of(Config(node_roles=True, shard_cpus=1.0), nodes)
    assert [(m.node_id, m.room, m.memory_bytes) for m in found] == [("1", 6, 1 << 30), ("3", 2, 0)]


def test_one_machine_has_no_more_cpus_than_there_are():
    (machine,) = machines_of(Config(), [node("1", CPU=1000.0)])
    assert machine.cpus == (os.cpu_count() or 1)
    assert machine.room == min(ROOM_MAX, 2000)
