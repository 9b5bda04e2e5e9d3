"""What a context changes: only what was learned under it, and never more than the data says."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.context import NO_CODES, SHRINK, ContextCounts, codes_of
from actors.messages import Item
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from tests.actors.test_shard import ask, view

NO_ATTRIBUTES = np.full((10, 2), -1, np.int32)


def test_lift_is_the_shrunk_log_ratio_of_shares() -> None:
    counts = ContextCounts()
    ios, web = codes_of({"device": "ios"}), codes_of({"device": "web"})
    for codes, item, times in ((ios, 1, 90), (ios, 2, 10), (web, 1, 20), (web, 2, 80)):
        for _ in range(times):
            counts.learn(codes, item, NO_ATTRIBUTES[item])
    lift = counts.lift(ios, np.array([1, 2, 3], np.int32), NO_ATTRIBUTES)
    for value, seen, all_seen in zip(lift.tolist(), (90, 10, 0), (110, 90, 0), strict=True):
        expected = 100 * all_seen / 200
        assert value == pytest.approx(math.log((seen + SHRINK) / (expected + SHRINK)), abs=1e-5)


def test_an_unknown_context_and_no_context_change_nothing() -> None:
    counts = ContextCounts()
    counts.learn(codes_of({"device": "ios"}), 1, NO_ATTRIBUTES[1])
    items = np.array([1, 2], np.int32)
    for codes in (NO_CODES, codes_of({"device": "tv"})):
        assert counts.lift(codes, items, NO_ATTRIBUTES).tolist() == [0.0, 0.0]


def test_codes_do_not_depend_on_the_order_of_names() -> None:
    assert codes_of({"a": 1, "b": "x"}).tolist() == codes_of({"b": "x", "a": 1}).tolist()
    assert len(codes_of({str(i): i for i in range(99)})) == 8


def new_shard() -> Shard:
    config = Config(profiles_max=2048, profile_bytes_max=1 << 23, items_max=128)
    shard = Shard("0", KeyRange(0, HASH_SPACE), config, now=lambda: 1_790_000_000.0)
    items = [Item(f"i{i}", {"kind": "app" if i < 10 else "book"}) for i in range(20)]
    shard.put_items("default", msgspec.json.encode(items))
    generator = np.random.default_rng(3)
    for person in range(200):
        device = "ios" if person % 2 else "desktop"
        for _ in range(3):
            # Phones like apps, desktops like books; item 19 is never seen by anyone.
            low, high = (0, 10) if device == "ios" else (10, 19)
            body = {
                "userId": f"u{person}",
                "context": {"device": device},
                "events": [view(f"i{generator.integers(low, high)}")],
            }
            assert ask(shard, Op.DECIDE, body)[0] == 200
    return shard


def decide(shard: Shard, context: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    spec = {"surface": "product", "numResults": 5}
    body = {"userId": "new person", "context": context, "decisions": [spec], **more}
    status, answer = ask(shard, Op.DECIDE, body)
    assert status == 200
    ranking: list[dict[str, Any]] = answer["decisions"][0]["ranking"]
    return ranking


def test_what_phones_like_is_shown_on_phones_to_a_new_person() -> None:
    shard = new_shard()
    phones = [int(entry["id"][1:]) for entry in decide(shard, {"device": "ios"})]
    desktops = [int(entry["id"][1:]) for entry in decide(shard, {"device": "desktop"})]
    assert max(phones) < 10 <= min(desktops)
    tv = decide(shard, {"device": "tv"})
    assert [e["id"] for e in tv] == [e["id"] for e in decide(shard, {})]


def test_a_context_knows_an_unseen_item_by_its_attributes() -> None:
    shard = new_shard()
    spec = {"surface": "product", "actions": ["i19", "i0"]}
    scores = {}
    for device in ("ios", "desktop"):
        body = {"userId": "x", "context": {"device": device}, "decisions": [spec]}
        ranking = ask(shard, Op.DECIDE, body)[1]["decisions"][0]["ranking"]
        scores[device] = {entry["id"]: entry["score"] for entry in ranking}
    assert scores["desktop"]["i19"] > scores["ios"]["i19"]


def test_probabilities_keep_their_sum_and_explanations_add_up() -> None:
    shard = new_shard()
    shown = decide(shard, {"device": "ios"}, explain=True)
    assert 0.0 < sum(entry["probability"] for entry in shown) <= 1.0
    for entry in shown:
        told = entry["explanation"]
        assert told["components"]["context"] > 0
        assert sum(told["components"].values()) == pytest.approx(entry["score"], abs=1e-3)
        assert told["withoutEvents"] == pytest.approx(entry["score"], abs=1e-3), "no events"
