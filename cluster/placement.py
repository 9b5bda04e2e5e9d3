"""Which node a shard or its backup goes to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

ON_HEAD = {"node:__internal_head__": 0.001}
"""The resource by which Ray places what belongs on its head, as Serve's own controller does."""
GATEWAY_CPUS = 0.5
"""What a gateway claims of a node; it uses up to one."""
HOME_BONUS = 0.10
"""A node may be this much fuller, in shares of its CPUs, before what is there already leaves it."""


class Node(msgspec.Struct, frozen=True):
    """One machine. A draining node gets nothing new. `zone` is what fails together."""

    node_id: str
    cpus: float
    memory_bytes: int = 0
    draining: bool = False
    zone: str = ""


def node_loads(nodes: Sequence[Node], used: Iterable[tuple[str, float]]) -> dict[str, float]:
    """CPUs in use by node, from (node, cpus); what is on an unknown node is left out.

    >>> node_loads([Node("a", 4)], [("a", 0.5), ("a", 1.0), ("gone", 9.0)])
    {'a': 1.5}
    """
    loads = {node.node_id: 0.0 for node in nodes}
    for node_id, cpu in used:
        if node_id in loads:
            loads[node_id] += cpu
    return loads


def least_loaded(
    nodes: Sequence[Node], loads: Mapping[str, float], cpu: float, prefer: str = ""
) -> str | None:
    """The node that is emptiest once it has `cpu` more; None if all are draining.

    >>> least_loaded([Node("a", 4), Node("b", 8)], {"a": 1.0, "b": 1.0}, 0.5)
    'b'
    """

    def fullness(node: Node) -> tuple[float, str]:
        bonus = HOME_BONUS if node.node_id == prefer else 0.0
        return (loads[node.node_id] + cpu) / node.cpus - bonus, node.node_id

    return min((n for n in nodes if not n.draining), key=fullness, default=_NOWHERE).node_id or None


def backup_node(
    owner_node_id: str, nodes: Sequence[Node], loads: Mapping[str, float]
) -> str | None:
    """Where a shard's backup goes: never beside its owner, in another zone if there is one.

    loads  what each node has already, copies included, in any unit
    None if no other node takes anything.

    >>> zones = [Node("a", 4, zone="1"), Node("b", 4, zone="1"), Node("c", 4, zone="2")]
    >>> backup_node("a", zones, {"a": 1, "b": 0, "c": 2})
    'c'
    """
    zone = next((node.zone for node in nodes if node.node_id == owner_node_id), "")
    others = [node for node in nodes if node.node_id != owner_node_id and not node.draining]
    apart = [node for node in others if node.zone != zone]
    chosen = min(
        apart or others,
        key=lambda node: (loads.get(node.node_id, 0) / node.cpus, node.node_id),
        default=_NOWHERE,
    )
    return chosen.node_id or None


_NOWHERE = Node("", 1)
