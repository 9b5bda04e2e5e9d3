"""The coordinator's care for the fleet, against a fleet that only remembers what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from actors.fleet_care import FleetCare, Machine
from actors.planning import Advisor
from cluster.config import Config
from cluster.keys import split_evenly
from cluster.partition_map import PartitionMap, owner
from cluster.plan import Plan, Reshape

STEP_S = 5.0


class FakeFleet:
    def __init__(self) -> None:
        self.begun: list[Reshape] = []
        self.drains: dict[str, tuple[int, int]] = {}
        self.pairs: dict[str, list[str]] = {}

    def act(self, plan: Plan) -> None:
        self.begun += plan.reshapes

    def busy(self) -> list[str]:
        return [name for reshape in self.begun for name in reshape.sources]

    def under_way(self) -> int:
        return len(self.begun)

    def copies(self) -> Mapping[str, Sequence[str]]:
        return self.pairs

    async def draining(self) -> Mapping[str, tuple[int, int]]:
        return self.drains

    def drain(self, node_id: str) -> None:
        self.drains[node_id] = (1, 0)

    def undrain(self, node_id: str) -> None:
        del self.drains[node_id]


class FakeMachines:
    def __init__(self, count: int) -> None:
        self.machines = [Machine(f"n{i}", f"10.0.0.{i}", 1.0, 0, 16) for i in range(count)]
        self.requests: list[int] = []
        self.gone: list[str] = []

    async def present(self) -> list[Machine]:
        return self.machines

    async def request(self, machines: Sequence[Machine], count: int) -> None:
        self.requests.append(count)

    async def let_go(self, node_id: str) -> None:
        self.gone.append(node_id)

    async def keep(self, node_id: str) -> None:
        self.gone.remove(node_id)


class World:
    def __init__(self, nodes: int, **settings: Any) -> None:
        self.fleet = FakeFleet()
        self.machines = FakeMachines(nodes)
        config = Config(shrink_after_s=60.0, **settings)
        self.advisor = Advisor(config)
        self.care = FleetCare(config, self.advisor, self.fleet, self.machines, lambda: False)
        owners = [owner(f"{i}", r, "h", 1, f"n{i % nodes}") for i, r in enumerate(split_evenly(2))]
        self.map = PartitionMap(1, tuple(owners))
        self.now_s = 0.0
        self.cpu_s = {"0": 0.0, "1": 0.0}

    def run(self, seconds: float, **cpu: float) -> None:
        """cpu: cores that shards s0 and s1 use."""

        async def steps() -> None:
            for _ in range(int(seconds / STEP_S)):
                self.now_s += STEP_S
                for name in self.cpu_s:
                    self.cpu_s[name] += STEP_S * cpu[f"s{name}"]
                stats = {name: {"cpuSeconds": used} for name, used in self.cpu_s.items()}
                await self.care.step(self.now_s, self.map, stats)

        asyncio.run(steps())


@pytest.mark.parametrize(
    ("nodes", "reshape", "acts"),
    [
        (1, "auto", False),
        (2, "auto", True),
        (1, "always", True),
        (3, "advise", False),
    ],
)
def test_a_plan_is_carried_out_where_the_settings_say_so(nodes: int, reshape: str, acts: bool):
    world = World(nodes, reshape=reshape)
    world.run(60, s0=0.9, s1=0.2)
    assert world.advisor.advice()["reshapes"] or world.fleet.begun
    assert [one.sources for one in world.fleet.begun] == ([("0", "1")] if acts else [])


def test_a_draining_node_counts_as_one_less():
    world = World(2)
    world.fleet.drains["n1"] = (1, 0)
    world.run(60, s0=0.9, s1=0.2)
    assert not world.fleet.begun


def test_no_node_is_asked_for_unless_there_is_a_bound():
    world = World(1, reshape="advise")
    world.run(120, s0=0.9, s1=0.9)
    assert not world.machines.requests


def test_nodes_are_asked_for_drained_and_let_go():
    world = World(1, nodes_max=3, reshape="advise")
    world.run(60, s0=0.6, s1=0.5)
    assert world.machines.requests == [0, 2]
    world.machines.machines.append(Machine("n9", "10.0.0.9", 1.0, 0, 16))
    world.run(60, s0=0.1, s1=0.1)
    assert not world.fleet.drains
    world.run(30, s0=0.1, s1=0.1)
    # It has nothing, so it is the one; and while it may have something it stays.
    assert world.fleet.drains == {"n9": (1, 0)}
    world.run(30, s0=0.1, s1=0.1)
    assert not world.machines.gone
    world.fleet.drains["n9"] = (0, 0)
    world.run(10, s0=0.1, s1=0.1)
    assert world.machines.gone == ["n9"]
    assert world.machines.requests == [0, 2, 0]


def test_the_report_names_shards_copies_and_what_is_left():
    world = World(2)
    world.fleet.pairs = {"n1": ["0"]}
    world.fleet.drains["n1"] = (1, 1)
    first, second = asyncio.run(world.care.report(world.map))
    assert (first.shards, first.copies, first.draining) == (["0"], [], False)
    assert (second.shards, second.copies, second.draining) == (["1"], ["0"], True)
    assert (second.shards_left, second.copies_left) == (1, 1)
