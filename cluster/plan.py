"""From the load of shards and nodes to splits, merges and moves. Pure: no Ray, no clock, no I/O.

Its one rule: a plan must pay. A load counts once it has lasted, what was reshaped is left alone for
a while, at most `reshapes_max` are under way at once, and the load at which shards are joined lies
below half of the load at which one is divided, so that no decision calls for its opposite.

What is planned has one form, a `Reshape`: shards that lie side by side are replaced by others that
cover the same keys. One by two is a split, two by one a merge, one by one on another node a move.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from cluster.divide import divide
from cluster.keys import KeyRange
from cluster.placement import Node, least_loaded, node_loads

EVEN_PARTS = 64
"""A shard without a sample is taken as evenly loaded, in so many parts."""

Kind = Literal["split", "merge", "move", "shift"]


class ShardLoad(msgspec.Struct, frozen=True):
    """One shard as it was measured over the last seconds.

    cpu      cores that its process used
    bytes    of its memory that grow with people
    sample   positions of requests, ascending, drawn at random; one key may stand there often
    """

    shard_id: str
    key_range: KeyRange
    node_id: str
    cpu: float
    bytes: int = 0
    requests_per_s: float = 0.0
    p99_us: float = 0.0
    sample: tuple[int, ...] = ()
    backup_node_id: str = ""


class Target(msgspec.Struct, frozen=True):
    """One shard that is to be."""

    key_range: KeyRange
    node_id: str


class Reshape(msgspec.Struct, frozen=True):
    """Shards side by side, what replaces them, and why. `targets` cover the same keys in order."""

    sources: tuple[str, ...]
    targets: tuple[Target, ...]
    why: str

    @property
    def kind(self) -> Kind:
        shape = (len(self.sources) > 1, len(self.targets) > 1)
        names: dict[tuple[bool, bool], Kind] = {
            (False, False): "move",
            (False, True): "split",
            (True, False): "merge",
            (True, True): "shift",
        }
        return names[shape]


class Plan(msgspec.Struct, frozen=True):
    """What to do now.

    cpus_wanted  CPUs that the fleet needs for its load, to ask Ray for
    blocked      what would have to change and can't, in words for operators
    """

    reshapes: tuple[Reshape, ...] = ()
    cpus_wanted: float = 0.0
    blocked: tuple[str, ...] = ()


class PlanSettings(msgspec.Struct, frozen=True):
    """When to act. Loads are shares of what one shard can take: of a core, or of `bytes_max`."""

    bytes_max: int = 8 << 30
    split_above: float = 0.70
    """A shard with more is relieved, whatever the others do."""
    calm_below: float = 0.35
    """Shards with less are never too hot beside others, and two that stay below it together join.
    At most half of `split_above`, or a split would be followed by a merge."""
    ratio_max: float = 1.25
    """A shard with more than this times the mean is relieved."""
    p99_us_max: float = 20_000.0
    """A shard that is slower, and not calm, is relieved."""
    node_above: float = 0.60
    """CPUs in use of a node beyond which shards leave it, and the fleet is too small."""
    gain_min: float = 0.10
    """By how much the worst load must fall for a reshape to pay."""
    window_max: int = 5
    """Shards that one reshape may take."""
    shards_min: int = 1
    shards_max: int = 1024
    reshapes_max: int = 2
    """Under way at once."""
    overload_s: float = 10.0
    """How long an overload lasts before it counts; likewise the next two."""
    imbalance_s: float = 30.0
    cold_s: float = 1800.0
    cooldown_s: float = 60.0
    """How long new shards are left alone."""
    smoothing_s: float = 10.0
    """Time constant of the average over which loads are judged."""

    def __post_init__(self) -> None:
        if not 0 < self.calm_below <= self.split_above / 2:
            raise ValueError(
                f"calm_below must be > 0 and <= split_above / 2 = {self.split_above / 2}, "
                f"got {self.calm_below}"
            )


class _Seen(msgspec.Struct):
    """What is remembered of a shard between steps."""

    since_s: float
    load: float


class Planner:
    """Call `step` with every measurement. Equal inputs give equal plans."""

    def __init__(self, settings: PlanSettings | None = None) -> None:
        self.settings = settings or PlanSettings()
        self._seen: dict[str, _Seen] = {}
        self._since: dict[tuple[str, ...], float] = {}
        self._measured_s: float | None = None

    def step(
        self,
        now_s: float,
        nodes: Sequence[Node],
        shards: Sequence[ShardLoad],
        busy: Collection[str] = (),
        under_way: int = 0,
    ) -> Plan:
        """The plan at `now_s`.

        shards     all of them, ascending by range
        busy       ids of shards that a reshape under way takes or makes
        under_way  how many reshapes are
        """
        self._smooth(now_s, shards)
        return _Step(self, now_s, nodes, shards, busy, under_way).plan()

    def load_of(self, shard: ShardLoad) -> float:
        """The shard's load, averaged over `smoothing_s`."""
        return self._seen[shard.shard_id].load

    def lasted(self, now_s: float, what: tuple[str, ...], holds: bool) -> float:
        """For how long a condition has held, in seconds; 0 if it does not."""
        if not holds:
            self._since.pop(what, None)
            return 0.0
        return now_s - self._since.setdefault(what, now_s)

    def age_s(self, now_s: float, shard: ShardLoad) -> float:
        return now_s - self._seen[shard.shard_id].since_s

    def raw_load(self, shard: ShardLoad) -> float:
        """The load of this measurement: the scarcer of CPU and memory."""
        return max(shard.cpu, shard.bytes / self.settings.bytes_max)

    def _smooth(self, now_s: float, shards: Sequence[ShardLoad]) -> None:
        first = self._measured_s is None
        elapsed_s = 0.0 if self._measured_s is None else now_s - self._measured_s
        self._measured_s = now_s
        # At the very start nothing is new: what is there is judged at once.
        born_s = now_s - self.settings.cooldown_s if first else now_s
        keep = math.exp(-elapsed_s / self.settings.smoothing_s)
        present = {shard.shard_id for shard in shards}
        for gone in self._seen.keys() - present:
            del self._seen[gone]
        self._since = {k: v for k, v in self._since.items() if present.issuperset(k[1:])}
        for shard in shards:
            load = self.raw_load(shard)
            seen = self._seen.setdefault(shard.shard_id, _Seen(born_s, load))
            seen.load = keep * seen.load + (1 - keep) * load


class _Step:
    """One step's working state: what was decided so far in it."""

    def __init__(
        self,
        planner: Planner,
        now_s: float,
        nodes: Sequence[Node],
        shards: Sequence[ShardLoad],
        busy: Collection[str],
        under_way: int,
    ) -> None:
        self._planner = planner
        self._settings = planner.settings
        self._now_s = now_s
        self._nodes = nodes
        self._shards = shards
        self._busy = set(busy)
        self._room = planner.settings.reshapes_max - under_way
        self._reshapes: list[Reshape] = []
        self._blocked: list[str] = []
        self._loads = [planner.load_of(shard) for shard in shards]
        self._mean = sum(self._loads) / max(len(shards), 1)
        self._on_node = node_loads(nodes, [(s.node_id, s.cpu) for s in shards])

    def plan(self) -> Plan:
        self._drain()
        self._relieve()
        self._join()
        self._spread()
        used = sum(shard.cpu for shard in self._shards)
        wanted = used / self._settings.node_above
        have = sum(node.cpus for node in self._nodes if not node.draining)
        if wanted > have:
            self._blocked.append(f"the load needs {wanted:.1f} CPUs, the nodes have {have:g}")
        return Plan(tuple(self._reshapes), wanted, tuple(self._blocked))

    # Draining nodes are left first: they go, with or without us.

    def _drain(self) -> None:
        leaving = {node.node_id for node in self._nodes if node.draining}
        for i, shard in enumerate(self._shards):
            if shard.node_id in leaving and self._free(i, i + 1, ripe=False):
                self._reshape(i, i + 1, (), f"node {shard.node_id} is draining")

    # Too hot: share with neighbours if that helps, else divide.

    def _relieve(self) -> None:
        order = sorted(range(len(self._shards)), key=self._loads.__getitem__, reverse=True)
        for i in order:
            why, urgent = self._too_hot(i)
            if why:
                self._cool(i, why, urgent)

    def _too_hot(self, i: int) -> tuple[str, bool]:
        """Why shard i is to be relieved, "" if it is not; and whether for its own sake."""
        settings, shard, load = self._settings, self._shards[i], self._loads[i]
        slow = shard.p99_us > settings.p99_us_max and load > settings.calm_below
        over = load > settings.split_above or slow
        ratio = load / self._mean if self._mean else 0.0
        uneven = ratio > settings.ratio_max and load > settings.calm_below
        lasted = self._planner.lasted
        if lasted(self._now_s, ("over", shard.shard_id), over) >= settings.overload_s and over:
            return f"load {load:.2f}, p99 {shard.p99_us / 1000:.1f} ms", True
        if lasted(self._now_s, ("ratio", shard.shard_id), uneven) >= settings.imbalance_s:
            return f"{ratio:.2f} times the mean load" if uneven else "", False
        return "", False

    def _cool(self, i: int, why: str, urgent: bool) -> None:
        shard, load = self._shards[i], self._loads[i]
        if not self._free(i, i + 1):
            return
        # With the halved load of a split to compare with, sharing must leave nobody near the limit.
        limit = min((1 - self._settings.gain_min) * load, 0.8 * self._settings.split_above)
        best: tuple[float, int, int, list[int]] | None = None
        for size in range(2, self._settings.window_max + 1):
            for start in range(max(0, i - size + 1), min(i, len(self._shards) - size) + 1):
                if not self._free(start, start + size):
                    continue
                worst, cuts = self._divided(start, start + size, size)
                if worst <= limit and (best is None or worst < best[0]):
                    best = (worst, start, start + size, cuts)
            if best is not None:
                self._reshape(*best[1:3], best[3], why)
                return
        # More shards for evenness alone would only lower the mean that evenness is measured by.
        count = len(self._shards)
        spread_thin = self._mean * count / (count + 1) < self._settings.calm_below
        worst, cuts = self._divided(i, i + 1, 2)
        if not cuts or worst > (1 - self._settings.gain_min) * load:
            self._blocked.append(f"shard {shard.shard_id}: {why}, nearly all of it on one key")
        elif len(self._shards) >= self._settings.shards_max:
            self._blocked.append(f"shard {shard.shard_id}: {why}, and no more shards are allowed")
        elif spread_thin and not urgent:
            self._blocked.append(f"shard {shard.shard_id}: {why}, and neighbours as hot")
        else:
            self._reshape(i, i + 1, cuts, why)

    def _divided(self, start: int, stop: int, parts: int) -> tuple[float, list[int]]:
        """The worst load if these shards' keys were divided anew into so many, and the cuts."""
        weighted = [
            pair
            for shard, load in zip(self._shards[start:stop], self._loads[start:stop], strict=True)
            for pair in _weighted(shard, load, self._settings.bytes_max)
        ]
        return divide(weighted, parts)

    # Too cold: two that together stay calm become one.

    def _join(self) -> None:
        pairs = range(len(self._shards) - 1)
        for i in sorted(pairs, key=lambda i: self._loads[i] + self._loads[i + 1]):
            left, right = self._shards[i], self._shards[i + 1]
            cold = self._loads[i] + self._loads[i + 1] < 0.9 * self._settings.calm_below
            what = ("cold", left.shard_id, right.shard_id)
            lasted_s = self._planner.lasted(self._now_s, what, cold)
            left_over = len(self._shards) - sum(
                len(reshape.sources) - len(reshape.targets) for reshape in self._reshapes
            )
            if (
                lasted_s >= self._settings.cold_s
                and left_over > self._settings.shards_min
                and self._free(i, i + 2)
            ):
                self._reshape(i, i + 2, (), f"together {self._loads[i] + self._loads[i + 1]:.2f}")

    # Nodes: from the fullest to the emptiest, if that makes the fullest emptier for good.

    def _spread(self) -> None:
        if self._reshapes:
            return  # What is decided above may do it already.
        staying = [node for node in self._nodes if not node.draining]
        share = {node.node_id: self._on_node[node.node_id] / node.cpus for node in staying}
        if len(share) < 2:
            return
        fullest, emptiest = max(share, key=share.__getitem__), min(share, key=share.__getitem__)
        cpus = {node.node_id: node.cpus for node in staying}
        mean = sum(self._on_node[node_id] for node_id in cpus) / sum(cpus.values())
        uneven = share[fullest] > max(self._settings.ratio_max * mean, self._settings.calm_below)
        lasted_s = self._planner.lasted(self._now_s, ("node",), uneven)
        if not uneven or lasted_s < self._settings.imbalance_s:
            return
        best: tuple[float, int] | None = None
        for i, shard in enumerate(self._shards):
            if shard.node_id != fullest or not self._free(i, i + 1):
                continue
            after = max(
                share[fullest] - shard.cpu / cpus[fullest],
                share[emptiest] + shard.cpu / cpus[emptiest],
            )
            if after <= (1 - self._settings.gain_min) * share[fullest] and (
                best is None or after < best[0]
            ):
                best = (after, i)
        if best is not None:
            why = f"node {fullest} has {share[fullest] / mean:.2f} times the mean load"
            self._reshape(best[1], best[1] + 1, (), why, emptiest)

    # What all of them share.

    def _free(self, start: int, stop: int, ripe: bool = True) -> bool:
        """Whether these shards may be reshaped now; `ripe` also asks for their cooldown."""
        return self._room > 0 and all(
            shard.shard_id not in self._busy
            and (not ripe or self._planner.age_s(self._now_s, shard) >= self._settings.cooldown_s)
            for shard in self._shards[start:stop]
        )

    def _reshape(
        self, start: int, stop: int, cuts: Sequence[int], why: str, node_id: str = ""
    ) -> None:
        sources = self._shards[start:stop]
        edges = [sources[0].key_range.start, *cuts, sources[-1].key_range.stop]
        cpu = sum(shard.cpu for shard in sources)
        for shard in sources:
            if shard.node_id in self._on_node:
                self._on_node[shard.node_id] -= shard.cpu
        targets = []
        for first, last in pairwise(edges):
            # What stays where it is costs no network.
            at_home = [s.node_id for s in sources if s.key_range.start <= first < s.key_range.stop]
            where = node_id or least_loaded(
                self._nodes, self._on_node, cpu / (len(edges) - 1), prefer=at_home[0]
            )
            if where is None:
                self._blocked.append(f"{why}, but there is no node to go to")
                for shard in sources:
                    if shard.node_id in self._on_node:
                        self._on_node[shard.node_id] += shard.cpu
                return
            self._on_node[where] += cpu / (len(edges) - 1)
            targets.append(Target(KeyRange(first, last), where))
        self._busy.update(shard.shard_id for shard in sources)
        self._room -= 1
        self._reshapes.append(Reshape(tuple(s.shard_id for s in sources), tuple(targets), why))


def _weighted(shard: ShardLoad, load: float, bytes_max: int) -> list[tuple[int, float]]:
    """Positions with the load that lies on them; memory is spread evenly, as hashes are."""
    positions: Sequence[int] = shard.sample
    if not positions or shard.bytes / bytes_max > shard.cpu:
        start, stop = shard.key_range.start, shard.key_range.stop
        parts = min(EVEN_PARTS, stop - start)
        positions = [start + (stop - start) * part // parts for part in range(parts)]
    return [(position, load / len(positions)) for position in positions]
