from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from actors.disk_stats import DiskStats
from actors.stages import Stages
from serve.metrics import exposition


def samples(text: bytes) -> dict[str, float]:
    """`name{label=value,...}` to value, as Prometheus' own parser reads it."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def stats(stages: Stages, profiles: int) -> msgspec.Raw:
    return msgspec.Raw(
        msgspec.json.encode({"profiles": profiles, "profileBytes": 64, **stages.counters()})
    )


def test_latencies_of_all_shards_are_added_up_by_stage():
    one, two = Stages(), Stages()
    for latency_us in (1, 40, 3_000):
        one.record(latency_us * 1000, 1000, None)
    two.record(700_000, 1000, 2_000_000_000)
    found = samples(exposition({}, {"a": stats(one, 3), "b": stats(two, 4)}, "g"))
    buckets = {
        bound: found[f"onehop_stage_seconds_bucket{{le={bound},stage=queue}}"]
        for bound in ("5e-06", "5e-05", "0.0001", "0.001", "0.005", "1.0", "+Inf")
    }
    assert list(buckets.values()) == [1, 2, 2, 3, 4, 4, 4]
    assert found["onehop_stage_seconds_bucket{le=1.0,stage=score}"] == 0
    assert found["onehop_stage_seconds_count{stage=score}"] == 1
    assert abs(found["onehop_stage_seconds_sum{stage=queue}"] - 0.003741) < 1e-9


def test_counts_are_per_shard_and_a_lost_shard_is_down():
    stages = Stages()
    stages.record(1, 1, 1)
    found = samples(exposition({("/v1/decide", 200): 5}, {"a": stats(stages, 3), "b": None}, "g"))
    assert found["onehop_shard_up{shard=a}"] == 1
    assert found["onehop_shard_up{shard=b}"] == 0
    assert found["onehop_shard_profiles{shard=a}"] == 3
    assert found["onehop_shard_bytes{part=profile,shard=a}"] == 64
    assert found["onehop_shard_decides_total{shard=a}"] == 1
    assert "onehop_shard_profiles{shard=b}" not in found
    assert found["onehop_gateway_answers_total{gateway=g,route=/v1/decide,status=200}"] == 5


def test_a_slow_or_full_disk_is_seen_per_shard():
    disk = DiskStats()
    for sync_ms in (1, 1, 40):
        disk.wrote(10, 1000, sync_ms * 1_000_000)
    log = {
        "hasRoom": False,
        "waitingAnswers": 7,
        "waitingRecords": 9,
        "stalledSeconds": 1.5,
        **disk.report(),
    }
    raw = msgspec.Raw(msgspec.json.encode({"log": log, **Stages().counters()}))
    memory = msgspec.Raw(msgspec.json.encode({"log": None, **Stages().counters()}))
    found = samples(exposition({}, {"a": raw, "b": memory}, "g"))
    assert {
        name: found[f"onehop_log_{name}{{shard=a}}"]
        for name in ("has_room", "waiting_answers", "waiting_records", "stalled_seconds")
    } == {"has_room": 0, "waiting_answers": 7, "waiting_records": 9, "stalled_seconds": 1.5}
    assert found["onehop_log_batches_total{shard=a}"] == 3
    assert found["onehop_log_records_total{shard=a}"] == 30
    assert found["onehop_log_bytes_total{shard=a}"] == 3000
    assert found["onehop_log_sync_seconds_bucket{le=0.01,shard=a}"] == 2
    assert found["onehop_log_sync_seconds_bucket{le=0.05,shard=a}"] == 3
    assert abs(found["onehop_log_sync_seconds_sum{shard=a}"] - 0.042) < 1e-9
    assert "onehop_log_has_room{shard=b}" not in found


def test_the_hottest_key_and_the_cpu_of_a_shard_are_shown():
    hot = [{"keyHash": "aa", "share": 0.25}, {"keyHash": "bb", "share": 0.1}]
    raw = msgspec.Raw(msgspec.json.encode({"cpuSeconds": 2.5, "hotKeys": hot}))
    found = samples(exposition({}, {"a": raw, "b": msgspec.Raw(b"{}")}, "g"))
    assert found["onehop_shard_hottest_key_share{shard=a}"] == 0.25
    assert found["onehop_shard_hottest_key_share{shard=b}"] == 0.0
    assert found["onehop_shard_cpu_seconds_total{shard=a}"] == 2.5
