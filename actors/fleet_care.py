"""What the coordinator does for the fleet by itself: measure, carry the plan out, ask for nodes.

Plain asyncio without Ray or clocks. One `step` every few seconds; what can't be done in one is
tried again in a later one, from what is then measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from actors.custody import Custody
from actors.planning import Advisor
from actors.reshape_desk import ReshapeDesk
from actors.reshaping import Reshaper
from cluster.config import Config
from cluster.node_scaling import Held, Need, NodeScaler, Orders
from cluster.partition_map import PartitionMap
from cluster.placement import Node
from cluster.plan import Plan

LOG = logging.getLogger("onehop.actors")

NODES_ACTED_ON = 2
"""With `reshape` "auto" the plan is carried out from so many nodes on."""


class Machine(NamedTuple):
    """A node that may have shards; room: how many, by what each claims."""

    node_id: str
    address: str
    cpus: float
    memory_bytes: int
    room: int


class Machines(Protocol):
    """The nodes, as the autoscaler gives and takes them."""

    async def present(self) -> list[Machine]: ...

    async def request(self, machines: Sequence[Machine], count: int) -> None:
        """Ask for `count` nodes like the smallest of these, until asked otherwise."""

    async def let_go(self, node_id: str) -> None:
        """End what would keep an empty node from being taken."""

    async def keep(self, node_id: str) -> None:
        """Undo that."""


class Fleet(Protocol):
    """The part of the coordinator that reshapes. What it refuses is a RequestError."""

    def act(self, plan: Plan) -> None: ...

    def busy(self) -> Collection[str]:
        """Shards that a reshape under way takes or makes."""

    def under_way(self) -> int: ...

    def copies(self) -> Mapping[str, Sequence[str]]:
        """Shards by the node that has their backup."""

    async def draining(self) -> Mapping[str, tuple[int, int]]:
        """Shards and copies that are left, by draining node."""

    def drain(self, node_id: str) -> None: ...

    def undrain(self, node_id: str) -> None: ...


class Desks:
    """`Fleet` over the coordinator's parts."""

    def __init__(self, custody: Custody, reshaper: Reshaper, desk: ReshapeDesk) -> None:
        self._custody = custody
        self._reshaper = reshaper
        self._desk = desk

    def act(self, plan: Plan) -> None:
        self._reshaper.act(plan)

    def busy(self) -> Collection[str]:
        return self._reshaper.busy

    def under_way(self) -> int:
        return self._reshaper.under_way

    def copies(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for claim in self._custody.table.claims if self._custody.table else ():
            if claim.backup is not None:
                found.setdefault(claim.backup.node_id, []).append(claim.shard_id)
        return found

    async def draining(self) -> Mapping[str, tuple[int, int]]:
        left = await self._desk.drains()
        return {one["nodeId"]: (one["shardsLeft"], one["copiesLeft"]) for one in left}

    def drain(self, node_id: str) -> None:
        self._desk.drain(node_id)

    def undrain(self, node_id: str) -> None:
        self._desk.undrain(node_id)


class NodeReport(msgspec.Struct, rename="camel"):
    """A node as `GET /v1/nodes` tells it."""

    node_id: str
    address: str
    cpus: float
    memory_bytes: int
    shards: list[str]
    copies: list[str]
    draining: bool
    shards_left: int
    copies_left: int


class FleetCare:
    """One per coordinator.

    fleet  None where nothing is logged: then ranges can't move, and this only measures
    pairs  whether every shard has a copy on a second node
    """

    def __init__(
        self,
        config: Config,
        advisor: Advisor,
        fleet: Fleet | None,
        machines: Machines,
        pairs: Callable[[], bool],
    ) -> None:
        self._config = config
        self._advisor = advisor
        self._fleet = fleet
        self._machines = machines
        self._pairs = pairs
        self._scaler: NodeScaler | None = None

    async def step(
        self,
        now_s: float,
        partition_map: PartitionMap,
        stats: Mapping[str, Mapping[str, Any] | None],
    ) -> None:
        """Plan from what is measured, and begin what the settings allow."""
        machines, fleet = await self._machines.present(), self._fleet
        draining = {} if fleet is None else await fleet.draining()
        nodes = [Node(m.node_id, m.cpus, m.memory_bytes, m.node_id in draining) for m in machines]
        busy, under_way = (fleet.busy(), fleet.under_way()) if fleet is not None else ((), 0)
        plan = self._advisor.measure(now_s, partition_map, stats, nodes, busy, under_way)
        if plan is None or fleet is None:
            return
        staying = sum(not node.draining for node in nodes)
        wish = self._config.reshape
        if wish == "always" or (wish == "auto" and staying >= NODES_ACTED_ON):
            fleet.act(plan)
        if self._config.nodes_max and machines:
            held = _held(machines, partition_map, draining, fleet.copies(), fleet.under_way())
            people = sum(load.bytes for load in self._advisor.loads)
            need = Need(plan.cpus_wanted, people, len(partition_map.owners))
            await self._obey(self._scaling().step(now_s, held, need), machines, fleet)

    async def report(self, partition_map: PartitionMap) -> list[NodeReport]:
        """All nodes, with what is on them."""
        fleet = self._fleet
        draining = {} if fleet is None else await fleet.draining()
        copies = {} if fleet is None else fleet.copies()
        return [
            NodeReport(
                machine.node_id,
                machine.address,
                machine.cpus,
                machine.memory_bytes,
                [o.shard_id for o in partition_map.owners if o.node_id == machine.node_id],
                list(copies.get(machine.node_id, ())),
                machine.node_id in draining,
                *draining.get(machine.node_id, (0, 0)),
            )
            for machine in await self._machines.present()
        ]

    async def close(self) -> None:
        """Ask for no node any more."""
        if self._scaler is not None:
            await self._machines.request((), 0)

    def _scaling(self) -> NodeScaler:
        if self._scaler is None:
            config = self._config
            # A copy needs a second node.
            least = max(config.nodes_min, 2 if self._pairs() else 1)
            least = min(least, config.nodes_max)
            self._scaler = NodeScaler(least, config.nodes_max, config.shrink_after_s)
        return self._scaler

    async def _obey(self, orders: Orders, machines: Sequence[Machine], fleet: Fleet) -> None:
        for node_id in orders.take_back:
            LOG.info("node %s is taken back", node_id)
            await self._machines.keep(node_id)
            fleet.undrain(node_id)
        for node_id in orders.release:
            LOG.info("node %s is empty and may go", node_id)
            await self._machines.let_go(node_id)
        if orders.request is not None:
            LOG.info("%d nodes are asked for", orders.request)
            await self._machines.request(machines, orders.request)
        if orders.drain:
            LOG.info("node %s is drained: fewer do", orders.drain)
            fleet.drain(orders.drain)


def _held(
    machines: Sequence[Machine],
    partition_map: PartitionMap,
    draining: Mapping[str, tuple[int, int]],
    copies: Mapping[str, Sequence[str]],
    under_way: int,
) -> list[Held]:
    owned = [owner.node_id for owner in partition_map.owners]
    held = []
    for m in machines:
        left = owned.count(m.node_id) + len(copies.get(m.node_id, ()))
        if m.node_id in draining:
            # What is under way may still lead there.
            left = max(left, sum(draining[m.node_id])) + under_way
        draining_now = m.node_id in draining
        held.append(Held(m.node_id, m.cpus, m.memory_bytes, m.room, left, draining_now))
    return held
