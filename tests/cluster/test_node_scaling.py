"""Nodes come with the load and go when they are empty; a simulated autoscaler obeys."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from cluster.node_scaling import RELEASE_S_MAX, UP_S, Held, Need, NodeScaler, Orders

STEP_S = 5.0
BOOT_S = 40.0
IDLE_S = 300.0
GIB = 1 << 30


class Fleet:
    """Nodes of 4 CPUs. An autoscaler brings what is asked for BOOT_S later, and takes what is
    asked for no more, if it is empty and released. A draining node loses one shard per step."""

    def __init__(self, scaler: NodeScaler, nodes: int = 2, shards: int = 4) -> None:
        self.scaler = scaler
        self.now_s = 0.0
        self.left = {f"n{i}": 0 for i in range(nodes)}
        self.draining: set[str] = set()
        self.released: set[str] = set()
        self.requested = nodes
        self.coming: list[float] = []
        self.born = nodes
        self.shards = shards
        self.history: list[tuple[float, Orders]] = []
        for shard in range(shards):
            self.left[f"n{shard % nodes}"] += 1

    def step(self, cpus: float, memory: int = 0) -> Orders:
        self.now_s += STEP_S
        self._move()
        for due in [at for at in self.coming if at <= self.now_s]:
            self.coming.remove(due)
            self.left[f"n{self.born}"] = 0
            self.born += 1
        nodes = [
            Held(name, 4.0, 16 * GIB, 8, left, name in self.draining)
            for name, left in self.left.items()
        ]
        orders = self.scaler.step(self.now_s, nodes, Need(cpus, memory, self.shards))
        self._obey(orders)
        if orders != Orders():
            self.history.append((self.now_s, orders))
        return orders

    def run(self, seconds: float, cpus: Callable[[float], float]) -> None:
        stop_s = self.now_s + seconds
        while self.now_s < stop_s:
            self.step(cpus(self.now_s))

    def _move(self) -> None:
        """Balance, and empty what is draining: one shard a step."""
        staying = [name for name in self.left if name not in self.draining]
        emptiest = min(staying, key=self.left.__getitem__)
        for name in self.draining:
            if self.left[name]:
                self.left[name] -= 1
                self.left[emptiest] += 1
                return
        fullest = max(staying, key=self.left.__getitem__)
        if self.left[fullest] > self.left[emptiest] + 1:
            self.left[fullest] -= 1
            self.left[emptiest] += 1

    def _obey(self, orders: Orders) -> None:
        for name in orders.take_back:
            self.draining.discard(name)
            self.released.discard(name)
        if orders.drain:
            assert orders.drain not in self.draining
            self.draining.add(orders.drain)
        for name in orders.release:
            assert name in self.draining, "only what is draining may go"
            assert not self.left[name], "a node goes only when nothing is on it"
            self.released.add(name)
        if orders.request is not None:
            self.requested = orders.request
        missing = self.requested - len(self.left) - len(self.coming)
        self.coming += [self.now_s + BOOT_S] * max(missing, 0)
        # As Ray's second autoscaler: the oldest nodes make up the request, whatever is on them.
        kept = sorted(self.left, key=lambda name: int(name[1:]))[: self.requested]
        for name in sorted(self.released.difference(kept)):
            assert not self.left[name]
            del self.left[name]
            self.draining.discard(name)
            self.released.discard(name)
        for name, left in self.left.items():
            # Whatever is idle and not asked for is taken, wanted or not.
            assert left or name in kept or name in self.draining, f"{name} would be taken"


def test_nodes_come_for_a_load_that_lasts_and_go_empty_when_it_is_gone():
    fleet = Fleet(NodeScaler(2, 6, IDLE_S))
    fleet.run(600, lambda now: 5.0)
    assert len(fleet.left) == 2
    fleet.run(UP_S + BOOT_S + 2 * STEP_S, lambda now: 15.0)
    assert len(fleet.left) == 4
    fleet.run(600, lambda now: 15.0)
    assert len(fleet.left) == 4
    fleet.run(2 * IDLE_S, lambda now: 1.0)
    assert len(fleet.left) == 3
    fleet.run(4 * IDLE_S, lambda now: 1.0)
    assert len(fleet.left) == 2
    assert sum(fleet.left.values()) == fleet.shards


def test_a_short_peak_brings_nobody():
    fleet = Fleet(NodeScaler(2, 6, IDLE_S))
    fleet.run(300, lambda now: 20.0 if now % 60 < UP_S - STEP_S else 1.0)
    assert len(fleet.left) == 2
    assert not fleet.coming


def test_not_more_nodes_than_allowed_and_not_fewer():
    fleet = Fleet(NodeScaler(2, 3, IDLE_S))
    fleet.run(600, lambda now: 100.0)
    assert len(fleet.left) == 3
    fleet.run(8 * IDLE_S, lambda now: 0.0)
    assert len(fleet.left) == 2


def test_a_fleet_that_is_too_small_at_the_start_grows_at_once():
    fleet = Fleet(NodeScaler(3, 6, IDLE_S))
    assert fleet.step(1.0).request == 3


@pytest.mark.parametrize(
    ("need", "wanted"),
    [(Need(1.0, 0, 13), 3), (Need(1.0, 40 * GIB, 2), 5), (Need(8.1, 0, 2), 3)],
    ids=["claims", "memory", "CPU"],
)
def test_whatever_is_scarce_brings_nodes(need: Need, wanted: int):
    scaler = NodeScaler(1, 8, IDLE_S)
    nodes = [Held(f"n{i}", 4.0, 16 * GIB, 8, 2) for i in range(2)]
    requests = [scaler.step(at, nodes, need).request for at in (0.0, UP_S / 2, UP_S)]
    assert requests == [0, None, wanted]


def test_a_load_that_comes_back_takes_the_draining_node_back_first():
    fleet = Fleet(NodeScaler(1, 6, IDLE_S), nodes=3, shards=12)
    while not fleet.draining:
        fleet.step(1.0)
    (leaving,) = fleet.draining
    fleet.run(UP_S + STEP_S, lambda now: 11.0)
    assert not fleet.draining
    assert leaving in fleet.left
    assert not fleet.coming


def test_what_an_operator_drains_is_replaced_and_never_taken_back():
    fleet = Fleet(NodeScaler(2, 6, IDLE_S))
    fleet.draining.add("n0")
    fleet.run(300, lambda now: 5.0)
    assert "n0" not in fleet.left
    assert len(fleet.left) == 2


def test_a_node_that_nobody_takes_is_used_again_and_not_drained_once_more():
    scaler = NodeScaler(1, 4, IDLE_S)
    drained: set[str] = set()
    drains, back = [], []
    now_s = 0.0
    while now_s < 3 * RELEASE_S_MAX:
        nodes = [
            Held(f"n{i}", 4.0, 0, 8, 0 if f"n{i}" in drained else 2, f"n{i}" in drained)
            for i in range(2)
        ]
        orders = scaler.step(now_s, nodes, Need(0.5, 0, 4))
        if orders.drain:
            drained.add(orders.drain)
            drains.append(orders.drain)
        for name in orders.take_back:
            drained.discard(name)
            back.append(name)
        now_s += STEP_S
    assert drains == back == ["n0"]


@pytest.mark.parametrize("period_s", [300, 600, 3600])
def test_waves_do_not_make_nodes_come_and_go(period_s: int):
    fleet = Fleet(NodeScaler(2, 8, 600.0))
    fleet.run(2 * period_s, lambda now: 10 + 5 * math.sin(2 * math.pi * now / period_s))
    settled = len(fleet.history)
    fleet.run(7200, lambda now: 10 + 5 * math.sin(2 * math.pi * now / period_s))
    turns = [orders for _, orders in fleet.history[settled:] if orders.request is not None]
    # An hour is long enough to save a node.
    assert len(turns) <= (0 if period_s < 1200 else 6 * 7200 // period_s), turns


def test_bounds_that_can_not_be_met_are_refused():
    with pytest.raises(ValueError, match="nodes_min must be"):
        NodeScaler(3, 2, IDLE_S)
