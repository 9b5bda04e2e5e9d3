"""What the plan would do now: shards' counters become loads, loads become advice for operators.

Plain Python without Ray or clocks. Counters only grow, so a load is what they grew by between two
measurements; a shard that started anew has none yet, and there is no plan without all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from cluster.config import Config
from cluster.partition_map import PartitionMap
from cluster.placement import Node
from cluster.plan import Plan, Planner, PlanSettings, Reshape, ShardLoad


class _Measured(msgspec.Struct, frozen=True):
    """A shard's counters at one time."""

    time_s: float
    cpu_s: float
    requests: int
    queue: Mapping[int, int]


class _Queue(msgspec.Struct, rename="camel"):
    buckets: list[tuple[int, int]] = []


class _Stages(msgspec.Struct):
    queue: _Queue = msgspec.field(default_factory=_Queue)


class _Stats(msgspec.Struct, rename="camel"):
    """What is read of a shard's stats."""

    cpu_seconds: float = 0.0
    profile_bytes: int = 0
    requests: int = 0
    load_cuts: list[str] = []
    hot_keys: list[dict[str, Any]] = []
    stages: _Stages = msgspec.field(default_factory=_Stages)


class Advisor:
    """Call `measure` every few seconds; `advice` is then what `GET /v1/plan` answers."""

    def __init__(self, config: Config) -> None:
        self._planner = Planner(
            PlanSettings(bytes_max=config.profile_bytes_max, shards_min=config.shards)
        )
        self._before: dict[str, _Measured] = {}
        self._loads: list[ShardLoad] = []
        self._hot: dict[str, list[dict[str, Any]]] = {}
        self._plan = Plan()

    def measure(
        self,
        now_s: float,
        partition_map: PartitionMap,
        stats: Mapping[str, Mapping[str, Any] | None],
        nodes: Sequence[Node],
        busy: Collection[str] = (),
        under_way: int = 0,
    ) -> Plan | None:
        """Plan from each shard's stats, None for one that can't be asked; None without all.

        busy, under_way  of reshapes that run, as `Planner.step` takes them
        """
        loads = []
        for owner in partition_map.owners:
            given = stats.get(owner.shard_id)
            if given is None:
                self._before.pop(owner.shard_id, None)
                continue
            read = msgspec.convert(given, _Stats)
            self._hot[owner.shard_id] = read.hot_keys
            now = _Measured(now_s, read.cpu_seconds, read.requests, dict(read.stages.queue.buckets))
            before = self._before.get(owner.shard_id)
            self._before[owner.shard_id] = now
            # A process that started anew counts from zero.
            if before is None or now.cpu_s < before.cpu_s or now_s <= before.time_s:
                continue
            elapsed_s = now_s - before.time_s
            loads.append(
                ShardLoad(
                    owner.shard_id,
                    owner.range,
                    owner.node_id,
                    cpu=(now.cpu_s - before.cpu_s) / elapsed_s,
                    bytes=read.profile_bytes,
                    requests_per_s=max(0, now.requests - before.requests) / elapsed_s,
                    p99_us=_p99_us(before.queue, now.queue),
                    sample=tuple(int(cut, 16) for cut in read.load_cuts),
                )
            )
        if len(loads) < len(partition_map.owners):
            return None
        self._loads = loads
        self._plan = self._planner.step(now_s, nodes, loads, busy, under_way)
        return self._plan

    @property
    def loads(self) -> Sequence[ShardLoad]:
        """Of all shards, as they were measured last."""
        return self._loads

    def load(self, shard_id: str) -> ShardLoad | None:
        """What was last measured of a shard."""
        return next((load for load in self._loads if load.shard_id == shard_id), None)

    def advice(self) -> dict[str, Any]:
        """The last plan, and the loads from which it came."""
        return {
            "reshapes": [_described(reshape) for reshape in self._plan.reshapes],
            "blocked": list(self._plan.blocked),
            "cpusWanted": round(self._plan.cpus_wanted, 2),
            "shards": [
                {
                    "shardId": load.shard_id,
                    "nodeId": load.node_id,
                    "cpu": round(load.cpu, 3),
                    "load": round(self._planner.load_of(load), 3),
                    "requestsPerSecond": round(load.requests_per_s, 1),
                    "queueP99Us": round(load.p99_us, 1),
                    "bytes": load.bytes,
                    "hotKeys": self._hot.get(load.shard_id, []),
                }
                for load in self._loads
            ],
        }


def _described(reshape: Reshape) -> dict[str, Any]:
    return {
        "kind": reshape.kind,
        "sources": list(reshape.sources),
        "targets": [
            {
                "start": f"{target.key_range.start:x}",
                "stop": f"{target.key_range.stop:x}",
                "nodeId": target.node_id,
            }
            for target in reshape.targets
        ],
        "why": reshape.why,
    }


def _p99_us(before: Mapping[int, int], now: Mapping[int, int]) -> float:
    """The 99th percentile of what was counted between two readings of a histogram by upper bound
    in nanoseconds; 0.0 if nothing was."""
    grown = {bound: count - before.get(bound, 0) for bound, count in now.items()}
    total = sum(count for count in grown.values() if count > 0)
    seen = 0
    for bound in sorted(grown):
        seen += max(grown[bound], 0)
        if total and seen >= 0.99 * total:
            return bound / 1000
    return 0.0
