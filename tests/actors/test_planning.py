from __future__ import annotations

from typing import Any

import pytest

from actors.people import SECRET_ROLE, Caller
from actors.planning import Advisor
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange, key_hash, place, split_evenly
from cluster.partition_map import PartitionMap, owner
from cluster.placement import Node

NODES = [Node("n1", 8.0), Node("n2", 8.0)]


def two_shards() -> PartitionMap:
    ranges = split_evenly(2)
    return PartitionMap(1, tuple(owner(f"{i}", r, "h", 1, "n1") for i, r in enumerate(ranges)))


def stats(cpu_s: float, requests: int = 0, **more: Any) -> dict[str, Any]:
    return {"cpuSeconds": cpu_s, "requests": requests, "profileBytes": 1 << 20, **more}


def test_loads_are_what_counters_grew_by():
    advisor = Advisor(Config())
    assert advisor.measure(10.0, two_shards(), {"0": stats(5.0), "1": stats(1.0)}, NODES) is None
    plan = advisor.measure(15.0, two_shards(), {"0": stats(7.0, 5000), "1": stats(1.5, 100)}, NODES)
    assert plan is not None
    first, second = advisor.advice()["shards"]
    assert (first["cpu"], second["cpu"]) == (0.4, 0.1)
    assert (first["requestsPerSecond"], second["requestsPerSecond"]) == (1000.0, 20.0)
    assert advisor.advice()["cpusWanted"] == pytest.approx(0.5 / 0.6, abs=0.01)


def test_the_queue_s_p99_is_of_the_time_between():
    advisor = Advisor(Config())

    def queue(*buckets: tuple[int, int]) -> dict[str, Any]:
        return {"stages": {"queue": {"buckets": [list(bucket) for bucket in buckets]}}}

    slow_start = queue((10_000, 5), (90_000_000, 1000))
    advisor.measure(0.0, two_shards(), {i: stats(0, **slow_start) for i in "01"}, NODES)
    later = queue((10_000, 1004), (50_000, 10), (90_000_000, 1000))
    advisor.measure(5.0, two_shards(), {i: stats(1, **later) for i in "01"}, NODES)
    assert [shard["queueP99Us"] for shard in advisor.advice()["shards"]] == [10.0, 10.0]


def test_a_shard_that_started_anew_or_is_away_makes_no_plan():
    advisor = Advisor(Config())
    advisor.measure(0.0, two_shards(), {"0": stats(50.0), "1": stats(50.0)}, NODES)
    assert advisor.measure(5.0, two_shards(), {"0": stats(1.0), "1": stats(51.0)}, NODES) is None
    assert advisor.measure(10.0, two_shards(), {"0": stats(2.0), "1": None}, NODES) is None
    assert advisor.measure(15.0, two_shards(), {"0": stats(3.0), "1": stats(9.0)}, NODES) is None
    assert advisor.measure(20.0, two_shards(), {"0": stats(4.0), "1": stats(9.5)}, NODES)


def test_a_hot_shard_is_advised_to_be_cut_where_its_load_lies():
    """From a real shard's stats: half of its requests are for a tenth of its keys."""
    shard = Shard("0", KeyRange(0, HASH_SPACE), Config(durability="memory"))
    caller = Caller(SECRET_ROLE, "t")
    low = [f"{i}" for i in range(5000) if place(key_hash("t", "u", f"{i}")) < HASH_SPACE // 10]
    for number in range(40_000):
        who = low[number % len(low)] if number % 2 else f"{number}"
        shard.handle(Op.PROFILE_GET, caller, b'{"userId":"%b"}' % who.encode(), 0)
    whole = PartitionMap(1, (owner("0", KeyRange(0, HASH_SPACE), "h", 1, "n1"),))
    advisor = Advisor(Config())
    for step in range(5):
        report = {**shard.stats(), "cpuSeconds": 100 + 4.5 * step}
        advisor.measure(5.0 * step, whole, {"0": report}, NODES)
    (advice,) = advisor.advice()["reshapes"]
    assert advice["kind"] == "split"
    assert "load 0.90" in advice["why"]
    cut = int(advice["targets"][0]["stop"], 16) / HASH_SPACE
    # Five tenths of the load and half of a tenth of the rest lie below a tenth.
    assert 0.06 < cut < 0.14
