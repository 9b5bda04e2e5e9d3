"""The status table shows each shard, and one that is down does not spoil it."""

from typing import Any

from serve.status import percentile_ns, plan_text, shards_table, size_text

STATS: dict[str, Any] = {
    "profiles": 1_234,
    "items": 2_000,
    "profileBytes": 300_000,
    "modelBytes": 24_000,
    "events": 98_765,
    "decides": 432,
    "stages": {
        "queue": {"sumNs": 0, "buckets": [[2_000, 98], [40_000, 2]]},
        "update": {"sumNs": 0, "buckets": [[9_000, 1]]},
        "score": {"sumNs": 0, "buckets": []},
    },
}


def owner(number: int, stats: dict[str, Any] | None) -> dict[str, Any]:
    half = 1 << 63
    return {
        "shardId": f"s{number}",
        "host": "127.0.0.1",
        "port": 9000 + number,
        "start": f"{half * number:x}",
        "stop": f"{half * (number + 1):x}",
        "stats": stats,
    }


def test_a_shard_shows_its_share_content_and_latencies() -> None:
    table = shards_table({"epoch": 7, "owners": [owner(0, STATS), owner(1, STATS)]})
    first = table.splitlines()[1]
    for cell in ("s0", "127.0.0.1:9000", "50%", "1,234", "2,000", "316.4 kB", "98,765", "432"):
        assert cell in first
    assert "2/40 us" in first
    assert table.splitlines()[-1] == "epoch 7, 2,468 profiles, 2 shards"


def test_a_shard_that_does_not_answer_is_shown_as_down() -> None:
    table = shards_table({"epoch": 8, "owners": [owner(0, None), owner(1, STATS)]})
    assert "down" in table.splitlines()[1]
    assert table.endswith("1,234 profiles, 2 shards, 1 of them not answering")


def test_percentile_is_the_bound_of_the_bucket_that_reaches_it() -> None:
    buckets = [(1, 50), (10, 49), (100, 1)]
    assert [percentile_ns(buckets, share) for share in (0.5, 0.51, 0.99, 1.0)] == [1, 10, 10, 100]


def test_sizes_carry_their_unit() -> None:
    assert [size_text(n) for n in (0, 2048, 3 << 30, 5 << 40)] == [
        "0 B",
        "2.0 kB",
        "3.0 GB",
        "5.0 TB",
    ]


def test_a_plan_says_what_is_loaded_what_to_do_and_what_can_not_be_done() -> None:
    shard = {
        "shardId": "s0",
        "nodeId": "a" * 56,
        "cpu": 0.91,
        "load": 0.88,
        "requestsPerSecond": 12_345.6,
        "queueP99Us": 1_200.0,
        "bytes": 1,
        "hotKeys": [{"keyHash": "beef" * 8, "share": 0.4}],
    }
    targets = [{"start": "0", "stop": "8", "nodeId": "b" * 56}] * 2
    split = {"kind": "split", "sources": ["s0"], "targets": targets, "why": "load 0.88"}
    answer = {"reshapes": [split], "blocked": ["x"], "cpusWanted": 1.5, "shards": [shard]}
    table = plan_text(answer).splitlines()
    for cell in ("s0", "aaaaaaaa", "0.88", "0.91", "12,346", "1,200", "40% beefbeefbeef"):
        assert cell in table[1]
    assert table[2] == "split: shard s0 -> 2 on bbbbbbbb, bbbbbbbb: load 0.88"
    assert table[3:] == ["can't be helped: x", "CPUs wanted: 1.5"]
    assert "nothing is to be split" in plan_text(answer | {"reshapes": []})
    assert "ask again" in plan_text(answer | {"shards": []})
