"""Ray's nodes as the fleet's machines: what there is, and how many are asked of the autoscaler.

Ray takes a node for idle once no actor runs on it, also none that claims nothing (seen in 2.60). So
an empty node is only given back after the actor of its backups has ended.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import ray

from actors.backup_actor import RayNodes
from actors.fleet_care import Machine
from cluster.config import Config

ROOM_MAX = 1024
"""Shards of a node if nothing but their claims bounds them."""


class RayMachines:
    """`Machines` over Ray."""

    def __init__(self, config: Config, nodes: RayNodes) -> None:
        self._config = config
        self._nodes = nodes

    async def present(self) -> list[Machine]:
        found = await asyncio.to_thread(ray.nodes)
        return machines_of(self._config, found)

    async def request(self, machines: Sequence[Machine], count: int) -> None:
        from ray.autoscaler.sdk import request_resources

        # As much as a whole node has: so many of these need so many nodes.
        bundle: dict[str, float] = {}
        if machines:
            smallest = min(machines, key=lambda machine: machine.cpus)
            bundle = {"CPU": smallest.cpus}
            if self._config.node_roles:
                bundle["shards"] = 1
        await asyncio.to_thread(request_resources, bundles=[bundle] * count)

    async def let_go(self, node_id: str) -> None:
        self._nodes.leave(node_id)

    async def keep(self, node_id: str) -> None:
        self._nodes.come_back(node_id)


def machines_of(config: Config, nodes: Sequence[dict[str, Any]]) -> list[Machine]:
    """The nodes of Ray that may have shards."""
    role = "shards" if config.node_roles else "CPU"
    able = [node for node in nodes if node["Alive"] and node["Resources"].get(role, 0) > 0]
    found = [_machine(config, node) for node in able]
    if len(found) == 1:
        # `onehop up` tells a Ray of its own of more CPUs than there are, to have room for claims.
        real = float(os.cpu_count() or 1)
        found = [machine._replace(cpus=min(machine.cpus, real)) for machine in found]
    return found


def _machine(config: Config, node: dict[str, Any]) -> Machine:
    cpus = float(node["Resources"].get("CPU", 0.0))
    slots = int(node["Resources"].get("shards", ROOM_MAX)) if config.node_roles else ROOM_MAX
    return Machine(
        node["NodeID"],
        node["NodeManagerAddress"],
        max(cpus, 0.01),
        int(node["Resources"].get("memory", 0)),
        min(slots, int(cpus / config.shard_cpus)),
    )
