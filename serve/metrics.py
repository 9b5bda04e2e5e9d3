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


class LogStats(msgspec.Struct, rename="camel"):
    """A shard's log and the disk under it."""

    has_room: bool = True
    waiting_answers: int = 0
    waiting_records: int = 0
    stalled_seconds: float = 0.0
    batches: int = 0
    records: int = 0
    bytes: int = 0
    sync: StageLatency | None = None


class HotKey(msgspec.Struct):
    """A key of which a shard is asked more than of others."""

    share: float


class ReplicationStats(msgspec.Struct, rename="camel"):
    """How a shard's backup does."""

    epoch: int = 0
    standing: str = ""
    link: str = ""
    lag_records: int = 0

    @property
    def backed_up(self) -> int:
        """1 if a backup has all that was acknowledged and follows now."""
        return int(self.standing == "paired" and self.link == "live")


class ShardStats(msgspec.Struct, rename="camel"):
    """What `Op.STATS` answers, as far as /metrics shows it. None: no log, no archive."""

    profiles: int = 0
    items: int = 0
    profile_bytes: int = 0
    model_bytes: int = 0
    dedupe_bytes: int = 0
    decision_bytes: int = 0
    dedupe_reach_seconds: int = 0
    requests: int = 0
    events: int = 0
    decides: int = 0
    duplicates: int = 0
    refused: int = 0
    degraded: int = 0
    quotes_missing: int = 0
    archive_lag_seconds: float | None = None
    archive_failures: int = 0
    timers: int = 0
    timers_fired: int = 0
    outbox_pending: int = 0
    outbox_dead: int = 0
    outbox_bytes: int = 0
    pages_subscribed: int = 0
    messages_pushed: int = 0
    webhook_attempts: int = 0
    webhook_failures: int = 0
    webhooks_open: int = 0
    messages: dict[str, int] = {}
    contacts_suppressed: dict[str, int] = {}
    shed: int = 0
    memory_fill: float = 0.0
    memory_alarm: int = 0
    evicted: int = 0
    tombstones: int = 0
    overloaded: bool = False
    stages: dict[str, StageLatency] = {}
    log: LogStats | None = None
    replication: ReplicationStats | None = None
    cpu_seconds: float = 0.0
    hot_keys: list[HotKey] = []

    @property
    def hottest_key_share(self) -> float:
        return max((key.share for key in self.hot_keys), default=0.0)


PREFIX = "onehop_shard_"
MEMORY = ("profile", "model", "dedupe", "decision", "outbox")
GAUGES = {
    "profiles": "Profiles held",
    "items": "Catalogue items",
    "memory_fill": "Share of the memory for profiles that is in use",
    "memory_alarm": "70 or 90 once so many percent of it are in use, else 0",
    "tombstones": "Persons erased lately",
    "overloaded": "1 while requests are refused because they wait too long",
    "dedupe_reach_seconds": "How far back every messageId is known",
    "hottest_key_share": "Share of the requests that one person has, if it stands out",
    "timers": "Inactivity timers that run",
    "outbox_pending": "Messages to be sent",
    "outbox_dead": "Messages that were given up",
    "pages_subscribed": "Open pages that get messages",
    "webhooks_open": "Webhooks whose circuit breaker is open",
}
TOTALS = (
    *(
        "requests",
        "events",
        "decides",
        "duplicates",
        "refused",
        "degraded",
        "shed",
        "evicted",
        "quotes_missing",
    ),
    *("archive_failures", "cpu_seconds"),
    *("timers_fired", "messages_pushed", "webhook_attempts", "webhook_failures"),
)
LABELLED = (
    ("messages", "messages", "step", "What happened to messages of the outbox"),
    ("contacts_suppressed", "contacts_suppressed", "rule", "Contacts that a rule forbade"),
)
LOG_GAUGES = {
    "has_room": "0 while the disk is full and only reads are served",
    "waiting_answers": "Answers that wait for the disk",
    "waiting_records": "Records that are not yet durable",
    "stalled_seconds": "Since anything became durable, while something waits",
}
REPLICATION_GAUGES = {
    "epoch": "Of the owner's claim",
    "backed_up": "1 while a backup on another node follows",
    "lag_records": "Records that the backup does not have yet",
}
LOG_TOTALS = {"batches": "Writes, one flush each", "records": "Records", "bytes": "Bytes"}

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


def alarms_of(raw: msgspec.Raw) -> list[str]:
    """What an operator should know of a shard now, by its stats; nothing if all is well."""
    stats = _stats.decode(raw)
    alarms = [f"memory {stats.memory_alarm} %"] if stats.memory_alarm else []
    alarms += ["overloaded"] if stats.overloaded else []
    return alarms + (["disk full"] if stats.log is not None and not stats.log.has_room else [])


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
        yield from self._counters()
        yield from self._replication()
        yield from self._log()
        stages = {
            stage: [one.stages[stage] for one in self._up.values() if stage in one.stages]
            for stage in STAGES
        }
        help_text = "Time inside the owner by stage, all shards"
        latency = HistogramMetricFamily("onehop_stage_seconds", help_text, labels=("stage",))
        for stage, found in stages.items():
            latency.add_metric((stage,), *_histogram(found))
        yield latency

    @property
    def _up(self) -> dict[str, ShardStats]:
        return {name: stats for name, stats in sorted(self._shards.items()) if stats is not None}

    def _counters(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("onehop_shard_up", "1 if it answers", labels=("shard",))
        for shard, stats in sorted(self._shards.items()):
            up.add_metric((shard,), float(stats is not None))
        yield up
        used = GaugeMetricFamily("onehop_shard_bytes", "Memory in use", labels=("shard", "part"))
        for shard, one in self._up.items():
            for part in MEMORY:
                used.add_metric((shard, part), getattr(one, f"{part}_bytes"))
        yield used
        for name, text in GAUGES.items():
            yield _family(GaugeMetricFamily, PREFIX + name, text, name, self._up)
        kept = {name: one for name, one in self._up.items() if one.archive_lag_seconds is not None}
        text = "Age of what the archive lacks"
        name = "archive_lag_seconds"
        yield _family(GaugeMetricFamily, PREFIX + name, text, name, kept)
        for name in TOTALS:
            text = "Since the shard started"
            yield _family(CounterMetricFamily, PREFIX + name, text, name, self._up)

        for metric, field, label, text in LABELLED:
            family = CounterMetricFamily(PREFIX + metric, text, labels=("shard", label))
            for shard, one in self._up.items():
                for name, count in sorted(getattr(one, field).items()):
                    family.add_metric((shard, name), count)
            yield family

    def _replication(self) -> Iterator[Metric]:
        owners = {n: one.replication for n, one in self._up.items() if one.replication is not None}
        for name, text in REPLICATION_GAUGES.items():
            yield _family(GaugeMetricFamily, "onehop_replication_" + name, text, name, owners)

    def _log(self) -> Iterator[Metric]:
        logs = {name: one.log for name, one in self._up.items() if one.log is not None}
        for name, text in LOG_GAUGES.items():
            yield _family(GaugeMetricFamily, "onehop_log_" + name, text, name, logs)
        for name, text in LOG_TOTALS.items():
            yield _family(CounterMetricFamily, "onehop_log_" + name, text, name, logs)
        sync = HistogramMetricFamily(
            "onehop_log_sync_seconds", "Time of one flush to the disk", labels=("shard",)
        )
        for shard, log in logs.items():
            if log.sync is not None:
                sync.add_metric((shard,), *_histogram([log.sync]))
        yield sync


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    metric: str,
    text: str,
    field: str,
    found: Mapping[str, ShardStats | LogStats | ReplicationStats],
) -> Metric:
    """One number of every shard."""
    family = kind(metric, text, labels=("shard",))
    for shard, stats in found.items():
        family.add_metric((shard,), float(getattr(stats, field)))
    return family


def _histogram(found: list[StageLatency]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets and the sum in seconds of histograms that are added up."""
    fine = sorted(bucket for one in found for bucket in one.buckets)
    buckets: list[tuple[str, float]] = [
        (str(bound / 1e6), sum(count for upper, count in fine if upper <= bound * 1000))
        for bound in BOUNDS_US
    ]
    buckets.append(("+Inf", sum(count for _, count in fine)))
    return buckets, sum(one.sum_ns for one in found) / 1e9
