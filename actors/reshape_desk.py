"""What people may ask of ranges and nodes: a split, a merge, a move; a node to be emptied.

A part of the coordinator. It fills in what was not said, where to cut and on which nodes, and
leaves the doing to the `Reshaper`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any, Literal

import msgspec

from actors.coordinator import Coordinator
from actors.custody import Custody
from actors.planning import Advisor
from actors.reshaping import Part, Reshaper, Reshaping
from actors.shard_handle import Slot
from cluster.errors import OnehopError, RequestError
from cluster.keys import KeyRange
from cluster.placement import Node, least_loaded, node_loads

LOG = logging.getLogger("onehop.actors")

Kind = Literal["split", "merge", "move"]
DRAIN_S = 1.0
DRAIN_MOVES_MAX = 2
"""Ranges that leave a node at once."""
TYPICAL_CPU = 0.1
"""Cores that a shard counts for when it has not been measured."""


class ReshapeRequest(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """What to do with which shards.

    at        where to cut, hexadecimal text; none: so that half of the load lies on either side
    node_ids  where the new shards go, one for each; none: to the emptiest nodes
    """

    kind: Kind
    shards: list[str]
    at: list[str] = []
    node_ids: list[str] = []


class ReshapeDesk:
    """One per coordinator."""

    def __init__(
        self,
        coordinator: Coordinator,
        custody: Custody,
        reshaper: Reshaper,
        advisor: Advisor,
        nodes: Callable[[], list[Node]],
    ) -> None:
        self._coordinator = coordinator
        self._custody = custody
        self._reshaper = reshaper
        self._advisor = advisor
        self._all_nodes = nodes
        self._draining: dict[str, asyncio.Task[None]] = {}

    def ask(self, request: ReshapeRequest) -> Reshaping:
        """Start it. Raises RequestError naming what can't be done."""
        sources = list(request.shards)
        if request.kind != "merge" and len(sources) != 1:
            raise RequestError(
                400, f"a {request.kind} takes one shard", "shards", repr(sources), "one shard"
            )
        if request.kind == "merge" and len(sources) < 2:
            raise RequestError(
                400, "a merge takes shards side by side", "shards", repr(sources), "2 or more"
            )
        if request.at and request.kind != "split":
            raise RequestError(400, f"a {request.kind} cuts nothing", "at", repr(request.at), "[]")
        self._reshaper.check(sources)
        slots = [slot for slot in self._coordinator.slots if slot.shard_id in sources]
        start, stop = slots[0].key_range.start, slots[-1].key_range.stop
        cuts = _cuts(request.at, start, stop)
        if request.kind == "split" and not cuts:
            cuts = [self._middle(slots[0])]
        ranges = [KeyRange(one, other) for one, other in pairwise([start, *cuts, stop])]
        nodes = self._nodes_for(request, len(ranges), slots[0])
        parts = [Part(key_range, node) for key_range, node in zip(ranges, nodes, strict=True)]
        return self._reshaper.start(request.kind, sources, parts)

    def _middle(self, slot: Slot) -> int:
        """Where half of a shard's load lies on either side, as far as was seen."""
        start, stop = slot.key_range.start, slot.key_range.stop
        load = self._advisor.load(slot.shard_id)
        sample = load.sample if load is not None else ()
        cut = sample[len(sample) // 2] if sample else (start + stop) // 2
        return cut if start < cut < stop else (start + stop) // 2

    def _nodes_for(self, request: ReshapeRequest, count: int, first: Slot) -> list[str]:
        home = first.started.node_id if first.started is not None else ""
        usable = [node.node_id for node in self.nodes() if not node.draining]
        if request.node_ids:
            if len(request.node_ids) != count:
                seen, wanted = repr(request.node_ids), f"{count} nodes, or none"
                raise RequestError(400, "a node for each new shard", "nodeIds", seen, wanted)
            for node_id in request.node_ids:
                if node_id not in usable:
                    wanted = ", ".join(usable)
                    raise RequestError(404, "no such node", "nodeIds", repr(node_id), wanted)
            return list(request.node_ids)
        found: list[str] = []
        if request.kind != "move" and home in usable:
            found = [home]
        while len(found) < count:
            avoid = {home} if request.kind == "move" else set()
            found.append(self._emptiest(found, avoid))
        return found

    def _emptiest(self, given: Collection[str], avoid: Collection[str]) -> str:
        """Where the next shard goes, beside those that are `given` their node already."""
        nodes = self.nodes()
        used = [(one.started.node_id, self._cpu(one)) for one in self._slots() if one.started]
        loads = node_loads(nodes, [*used, *((node, TYPICAL_CPU) for node in given)])
        others = [node for node in nodes if node.node_id not in avoid]
        found = least_loaded(others, loads, TYPICAL_CPU) or least_loaded(nodes, loads, TYPICAL_CPU)
        if found is None:
            raise RequestError(409, "every node is draining", "nodeIds", "[]", "a node that stays")
        return found

    def _cpu(self, slot: Slot) -> float:
        load = self._advisor.load(slot.shard_id)
        return TYPICAL_CPU if load is None else load.cpu

    def _slots(self) -> list[Slot]:
        return self._coordinator.slots

    def nodes(self) -> list[Node]:
        """The nodes that may hold shards, those that drain marked."""
        alive = set(self._custody.nodes.alive())
        return [
            msgspec.structs.replace(node, draining=node.node_id in self._custody.draining)
            for node in self._all_nodes()
            if node.node_id in alive
        ]

    # Nodes that are to go.

    def drain(self, node_id: str) -> list[Reshaping]:
        """Begin to empty a node; nothing new is put there. Raises RequestError (404, 409)."""
        nodes = {node.node_id: node for node in self.nodes()}
        if node_id not in nodes:
            raise RequestError(404, "no such node", "nodeId", repr(node_id), ", ".join(nodes))
        if all(node.draining for other, node in nodes.items() if other != node_id):
            raise RequestError(
                409, "no other node is left for what is there", "nodeId", repr(node_id)
            )
        self._custody.draining.add(node_id)
        if node_id not in self._draining or self._draining[node_id].done():
            self._draining[node_id] = asyncio.create_task(self._empty(node_id))
        return [state for state in self._reshaper.states() if not state.ended]

    def undrain(self, node_id: str) -> dict[str, Any]:
        """Let a node be used again. Raises RequestError (404) if it was not draining."""
        task = self._draining.pop(node_id, None)
        if task is None:
            raise RequestError(404, "the node is not draining", "nodeId", repr(node_id))
        task.cancel()
        self._custody.draining.discard(node_id)
        return {"nodeId": node_id, "draining": False}

    async def drains(self) -> list[dict[str, Any]]:
        """What is left on each draining node."""
        await self._custody.read()
        return [
            {
                "nodeId": node_id,
                "shardsLeft": len(self._owned_on(node_id)),
                "copiesLeft": len(self._kept_on(node_id)),
            }
            for node_id in sorted(self._draining)
        ]

    def _owned_on(self, node_id: str) -> list[str]:
        return [s.shard_id for s in self._slots() if s.started and s.started.node_id == node_id]

    def _kept_on(self, node_id: str) -> list[str]:
        """Shards whose backup is there."""
        claims = self._custody.table.claims if self._custody.table is not None else ()
        return [c.shard_id for c in claims if c.backup is not None and c.backup.node_id == node_id]

    async def _empty(self, node_id: str) -> None:
        """Move away what is there, until nothing is; then watch that it stays so."""
        while True:
            try:
                await self._custody.read()
                self._move_some(node_id)
            except OnehopError as error:
                LOG.info("node %s is not empty yet: %s", node_id, error)
            await asyncio.sleep(DRAIN_S)

    def _move_some(self, node_id: str) -> None:
        # A backup goes when its owner is made anew, with a backup elsewhere.
        leaving = dict.fromkeys([*self._owned_on(node_id), *self._kept_on(node_id)])
        for shard_id in leaving:
            if shard_id in self._reshaper.moving:
                continue
            if self._reshaper.under_way >= DRAIN_MOVES_MAX:
                return
            slot = next(one for one in self._slots() if one.shard_id == shard_id)
            home = slot.started.node_id if slot.started is not None else ""
            nodes = [] if home == node_id else [home]
            self.ask(ReshapeRequest("move", [shard_id], node_ids=nodes))


def _cuts(at: list[str], start: int, stop: int) -> list[int]:
    """Cut points from text. Raises RequestError."""
    cuts: list[int] = []
    for text in at:
        try:
            cut = int(text, 16)
        except ValueError:
            cut = -1
        if not (cuts[-1] if cuts else start) < cut < stop:
            wanted = f"ascending hexadecimal positions between {start:x} and {stop:x}"
            raise RequestError(400, "not a place to cut", "at", repr(text), wanted)
        cuts.append(cut)
    return cuts
