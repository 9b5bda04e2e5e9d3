from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

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
