"""How many nodes the shards need, and which one may go. Pure: no Ray, no clock, no I/O.

Its one rule: a node goes only when nothing is on it. More nodes are asked for as soon as the load
has needed them for `UP_S`; fewer only after it has fitted them, with room to spare, for `idle_s`:
then the emptiest node is drained, and once it is empty nobody asks for it. Which nodes come and go
is the autoscaler's affair; it never takes one that has something on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

UP_S = 10.0
"""How long more nodes must be needed until they are asked for."""
SPARE = 0.8
"""A fleet shrinks if the load fits into this share of what is left, so that it need not grow at
once again."""
MEMORY_FULL = 0.6
"""Share of a node's memory that people's profiles may take: a snapshot is made by a second
process, and Ray ends what it finds at 95 %."""
SPARE_SHARDS = 4
"""Places for the targets of the reshapes that may be under way, beside those of all shards."""
RELEASE_S_MAX = 1800.0
"""A node that is empty and still there after this is taken back: somebody wants so many nodes."""


class Held(msgspec.Struct, frozen=True):
    """A node that may have shards.

    room     shards that it can have in all, by what each claims
    left     shards and copies on it
    draining nothing is placed there any more
    """

    node_id: str
    cpus: float
    memory_bytes: int
    room: int
    left: int
    draining: bool = False


class Need(msgspec.Struct, frozen=True):
    """What all shards together need."""

    cpus: float
    memory_bytes: int
    shards: int


class Orders(msgspec.Struct, frozen=True):
    """What to do now.

    request  nodes to ask Ray for, 0 while those in use are enough; None: as many as before
    drain    the node to empty, "" for none; likewise to take back
    release  nodes that are empty: end what would keep the autoscaler from taking them
    """

    request: int | None = None
    drain: str = ""
    take_back: tuple[str, ...] = ()
    release: tuple[str, ...] = ()


class NodeScaler:
    """Call `step` with every measurement. Equal inputs give equal orders.

    nodes_min, nodes_max  bounds of what is asked for
    idle_s                how long fewer nodes must do until one goes
    """

    def __init__(self, nodes_min: int, nodes_max: int, idle_s: float) -> None:
        if not 1 <= nodes_min <= nodes_max:
            raise ValueError(f"nodes_min must be >= 1 and <= {nodes_max}, got {nodes_min}")
        self._min = nodes_min
        self._max = nodes_max
        self._idle_s = idle_s
        self._over_since_s: float | None = None
        self._idle_since_s: float | None = None
        self._ours: set[str] = set()
        self._released: dict[str, float] = {}
        self._requested: int | None = None

    def step(self, now_s: float, nodes: Sequence[Held], need: Need) -> Orders:
        """Orders at `now_s`. nodes: all that are alive, draining ones too."""
        present = {node.node_id for node in nodes}
        self._ours &= present
        self._released = {n: since for n, since in self._released.items() if n in present}
        serving = [node for node in nodes if not node.draining]
        leaving = [node for node in nodes if node.draining]
        if not serving:
            return Orders()
        wanted = self._wanted(now_s, serving, need)
        take_back = self._take_back(now_s, wanted - len(serving), leaving)
        leaving = [node for node in leaving if node.node_id not in take_back]
        freed = tuple(n.node_id for n in leaving if not n.left and n.node_id not in self._released)
        self._released.update(dict.fromkeys(freed, now_s))
        drain = self._shrink(now_s, serving, leaving, need)
        # A node that is still being emptied is there beside those that are wanted.
        target = max(wanted, len(serving) + len(take_back))
        target += sum(node.node_id not in self._released for node in leaving)
        # The autoscaler keeps whichever nodes make up the request, also one that may go. What has
        # something on it stays without any.
        if target <= len(nodes) and all(node.left for node in serving):
            target = 0
        request = target if target != self._requested else None
        self._requested = target
        return Orders(request, drain, take_back, freed)

    def _wanted(self, now_s: float, serving: Sequence[Held], need: Need) -> int:
        """So many nodes as the load has needed for UP_S; those that there are otherwise."""
        have = len(serving)
        count = max(have, self._min)
        while count < self._max and not _fits(_like(serving, count), need):
            count += 1
        self._over_since_s = _since(self._over_since_s, now_s, count > have)
        lasted = self._over_since_s is not None and now_s - self._over_since_s >= UP_S
        return count if lasted else max(have, self._min)

    def _take_back(self, now_s: float, missing: int, leaving: Sequence[Held]) -> tuple[str, ...]:
        """Of the nodes that we drain, those that are needed after all, or that nobody takes."""
        ours = [node for node in leaving if node.node_id in self._ours]
        back = [
            node.node_id
            for node in ours
            if now_s - self._released.get(node.node_id, now_s) >= RELEASE_S_MAX
        ]
        if back:
            # The autoscaler has a least number of its own.
            self._min = min(max(self._min, len(leaving) + 1), self._max)
        back += [node.node_id for node in ours if node.node_id not in back][: max(missing, 0)]
        for node_id in back:
            self._ours.discard(node_id)
            self._released.pop(node_id, None)
        return tuple(back)

    def _shrink(
        self, now_s: float, serving: Sequence[Held], leaving: Sequence[Held], need: Need
    ) -> str:
        """The node to empty now, "" for none. One at a time."""
        emptiest = min(serving, key=lambda node: (node.left, node.node_id))
        rest = [node for node in serving if node is not emptiest]
        idle = len(rest) >= self._min and _fits(rest, need, SPARE)
        self._idle_since_s = _since(self._idle_since_s, now_s, idle and not leaving)
        if self._idle_since_s is None or now_s - self._idle_since_s < self._idle_s:
            return ""
        self._idle_since_s = None
        self._ours.add(emptiest.node_id)
        return emptiest.node_id


def _fits(nodes: Sequence[Held], need: Need, share: float = 1.0) -> bool:
    """Whether what the shards need is at most `share` of what the nodes have."""
    memory = [node.memory_bytes for node in nodes]
    return (
        need.cpus <= share * sum(node.cpus for node in nodes)
        and need.shards + SPARE_SHARDS <= sum(node.room for node in nodes)
        # Ray may not say how much a node has.
        and (not all(memory) or need.memory_bytes <= share * MEMORY_FULL * sum(memory))
    )


def _like(nodes: Sequence[Held], count: int) -> list[Held]:
    """These nodes, and as many more like the smallest as make `count`."""
    smallest = min(nodes, key=lambda node: node.cpus)
    return [*nodes, *[smallest] * (count - len(nodes))]


def _since(since_s: float | None, now_s: float, holds: bool) -> float | None:
    if not holds:
        return None
    return now_s if since_s is None else since_s
