"""A fleet to plan for: keys with their loads, nodes, reshapes that take time. No real anything."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.keys import HASH_SPACE, KeyRange, split_evenly
from cluster.placement import Node
from cluster.plan import Plan, Planner, Reshape, ShardLoad

STEP_S = 5.0
COPY_SHARE_PER_S = 1 / 60
"""Share of all keys that one reshape copies in a second."""
SAMPLE = 128


def zipf(keys: int, exponent: float, rng: np.random.Generator) -> NDArray[Any]:
    """Shares of load [keys] that sum to 1, in random order."""
    weights: NDArray[Any] = np.arange(1, keys + 1, dtype=float) ** -exponent
    rng.shuffle(weights)
    weights /= weights.sum()
    return weights


class World:
    """`demand(now_s)` is the load of all keys together, in cores."""

    def __init__(
        self,
        seed: int,
        shares: Callable[[np.random.Generator], NDArray[Any]],
        demand: Callable[[float], float],
        shards: int = 2,
        nodes: int = 2,
        node_cpus: float = 8.0,
        planner: Planner | None = None,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.shares = shares(self.rng)
        self.keys = np.sort(self.rng.integers(0, HASH_SPACE, len(self.shares), dtype=np.uint64))
        self._sums = np.concatenate(([0.0], np.cumsum(self.shares)))
        self.demand = demand
        self.planner = planner or Planner()
        self.nodes = [Node(f"n{i}", node_cpus) for i in range(nodes)]
        self.owners: dict[str, tuple[KeyRange, str]] = {
            f"{i}": (key_range, self.nodes[i % nodes].node_id)
            for i, key_range in enumerate(split_evenly(shards))
        }
        self.now_s = 0.0
        self.born = shards
        self.under_way: list[tuple[float, Reshape]] = []
        self.done: list[tuple[float, Reshape]] = []
        self.moved_share = 0.0
        self.plan = Plan()

    def true_loads(self) -> NDArray[Any]:
        """Cores by shard, in order of ranges, without noise."""
        loads: NDArray[Any] = np.diff(self._sums[self._edges()]) * self.demand(self.now_s)
        return loads

    def shuffle(self) -> None:
        """Other keys become the popular ones."""
        self.rng.shuffle(self.shares)
        self._sums = np.concatenate(([0.0], np.cumsum(self.shares)))

    def imbalance(self) -> float:
        """The hottest shard over the mean."""
        loads = self.true_loads()
        return float(loads.max() / loads.mean())

    def step(self) -> None:
        """Let STEP_S pass, finish what is due, measure, plan, start what was planned."""
        self.now_s += STEP_S
        for due in [entry for entry in self.under_way if entry[0] <= self.now_s]:
            self.under_way.remove(due)
            self._finish(due[1])
        busy = {shard for _, reshape in self.under_way for shard in reshape.sources}
        shards = self._measure()
        self.plan = self.planner.step(self.now_s, self.nodes, shards, busy, len(self.under_way))
        for reshape in self.plan.reshapes:
            self._check(reshape, busy)
            busy.update(reshape.sources)
            share = sum(self._span(self.owners[s][0]) for s in reshape.sources)
            self.under_way.append((self.now_s + 1 + share / COPY_SHARE_PER_S, reshape))

    def run(self, seconds: float) -> None:
        stop_s = self.now_s + seconds
        while self.now_s < stop_s:
            self.step()

    def _ranges(self) -> list[KeyRange]:
        return sorted(key_range for key_range, _ in self.owners.values())

    def _span(self, key_range: KeyRange) -> float:
        return (key_range.stop - key_range.start) / HASH_SPACE

    def _measure(self) -> list[ShardLoad]:
        ids = sorted(self.owners, key=lambda shard: self.owners[shard][0])
        measured = []
        edges = self._edges()
        for i, (shard, load) in enumerate(zip(ids, self.true_loads(), strict=True)):
            key_range, node = self.owners[shard]
            low, high = self._sums[edges[i]], self._sums[edges[i + 1]]
            drawn = np.searchsorted(self._sums, self.rng.uniform(low, high, SAMPLE), "right") - 1
            sample = np.sort(self.keys[np.clip(drawn, edges[i], max(edges[i + 1] - 1, edges[i]))])
            cpu = max(float(load * self.rng.normal(1.0, 0.05)), 0.0)
            known = tuple(sample.tolist()) if edges[i + 1] > edges[i] else ()
            measured.append(ShardLoad(shard, key_range, node, cpu, sample=known))
        return measured

    def _edges(self) -> NDArray[Any]:
        """Indexes of keys at which ranges begin, and the end."""
        starts = np.array([key_range.start for key_range in self._ranges()], np.uint64)
        return np.append(np.searchsorted(self.keys, starts), len(self.keys))

    def _check(self, reshape: Reshape, busy: set[str]) -> None:
        assert not busy.intersection(reshape.sources), "a shard can't be in two reshapes"
        assert len(self.under_way) < self.planner.settings.reshapes_max
        before = [self.owners[shard][0] for shard in reshape.sources]
        after = [target.key_range for target in reshape.targets]
        for ranges in (before, after):
            assert all(a.stop == b.start for a, b in pairwise(ranges))
        assert (before[0].start, before[-1].stop) == (after[0].start, after[-1].stop)
        draining = {node.node_id for node in self.nodes if node.draining}
        assert not draining.intersection(target.node_id for target in reshape.targets)

    def _finish(self, reshape: Reshape) -> None:
        for shard in reshape.sources:
            key_range, node = self.owners.pop(shard)
            stays = [t for t in reshape.targets if t.node_id == node]
            kept = sum(
                max(
                    0,
                    min(key_range.stop, t.key_range.stop) - max(key_range.start, t.key_range.start),
                )
                for t in stays
            )
            self.moved_share += self._span(key_range) - kept / HASH_SPACE
        for target in reshape.targets:
            self.owners[f"{self.born}"] = (target.key_range, target.node_id)
            self.born += 1
        self.done.append((self.now_s, reshape))
