"""Counters in Prometheus' text format, gathered from the shards when they are asked for.

The owners count; the gateway only adds its own answers by route and status. Latency is split
by stage inside the owner: queue (waiting for its turn), update, score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

STAGES = ("queue", "update", "score")
BOUNDS_US = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000, 250_000, 1_000_000)
"""The owners count in four buckets per octave; Prometheus gets these. A bucket of the owner
counts where its upper bound lies, so a shown latency is at most 25 % too high, never too low."""


class StageLatency(msgspec.Struct, rename="camel"):
    """Latencies of one stage: (upper bound in ns, count), ascending, only filled buckets."""

    sum_ns: int
    buckets: list[tuple[int, int]]


class ShardStats(msgspec.Struct, rename="camel"):
    """What `Op.STATS` answers, as far as /metrics shows it."""

    profiles: int = 0
    items: int = 0
    profile_bytes: int = 0
    model_bytes: int = 0
    dedupe_bytes: int = 0
    decision_bytes: int = 0
    requests: int = 0
    events: int = 0
    decides: int = 0
    duplicates: int = 0
    refused: int = 0
    stages: dict[str, StageLatency] = {}


PREFIX = "onehop_shard_"
MEMORY = ("profile", "model", "dedupe", "decision")
TOTALS = ("requests", "events", "decides", "duplicates", "refused")

_stats = msgspec.json.Decoder(ShardStats)


def exposition(
    counts: Mapping[tuple[str, int], int],
    shards: Mapping[str, msgspec.Raw | None],
    gateway_id: str = "",
) -> bytes:
    """The text that Prometheus scrapes.

    counts      answers of this gateway by (route, status)
    shards      each shard's stats, None for one that can't be reached
    gateway_id  tells the series of several gateways behind one address apart
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(counts, shards, gateway_id))
    return generate_latest(registry)


class _Snapshot:
    """A collector over numbers that were gathered before."""

    def __init__(
        self,
        counts: Mapping[tuple[str, int], int],
        shards: Mapping[str, msgspec.Raw | None],
        gateway_id: str,
    ) -> None:
        self._counts = counts
        self._gateway_id = gateway_id
        self._shards = {
            name: None if raw is None else _stats.decode(raw) for name, raw in shards.items()
        }

    def collect(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "onehop_gateway_answers",
            "Answers of the gateway",
            labels=("gateway", "route", "status"),
        )
        for (route, status), count in sorted(self._counts.items()):
            answers.add_metric((self._gateway_id, route, str(status)), count)
        yield answers
        up = GaugeMetricFamily("onehop_shard_up", "1 if it answers", labels=("shard",))
        profiles = GaugeMetricFamily("onehop_shard_profiles", "Profiles held", labels=("shard",))
        items = GaugeMetricFamily("onehop_shard_items", "Catalogue items", labels=("shard",))
        used = GaugeMetricFamily("onehop_shard_bytes", "Memory in use", labels=("shard", "part"))
        totals = [
            CounterMetricFamily(PREFIX + what, "Since the shard started", labels=("shard",))
            for what in TOTALS
        ]
        for shard, stats in sorted(self._shards.items()):
            up.add_metric((shard,), float(stats is not None))
            if stats is None:
                continue
            profiles.add_metric((shard,), stats.profiles)
            items.add_metric((shard,), stats.items)
            for part in MEMORY:
                used.add_metric((shard, part), getattr(stats, f"{part}_bytes"))
            for total in totals:
                total.add_metric((shard,), getattr(stats, total.name.removeprefix(PREFIX)))
        yield from (up, profiles, items, used, *totals, self._latency())

    def _latency(self) -> Metric:
        family = HistogramMetricFamily(
            "onehop_stage_seconds",
            "Time inside the owner by stage, all shards",
            labels=("stage",),
        )
        for stage in STAGES:
            found = [
                stats.stages[stage]
                for stats in self._shards.values()
                if stats is not None and stage in stats.stages
            ]
            fine = sorted(bucket for one in found for bucket in one.buckets)
            buckets = [
                (str(bound / 1e6), sum(count for upper, count in fine if upper <= bound * 1000))
                for bound in BOUNDS_US
            ]
            buckets.append(("+Inf", sum(count for _, count in fine)))
            family.add_metric((stage,), buckets, sum(one.sum_ns for one in found) / 1e9)
        return family
