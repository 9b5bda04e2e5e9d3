"""Rules of a decision, through a whole shard."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.messages import Item
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from tests.actors.test_shard import SERVER, ask, view

CONFIG = Config(profiles_max=2048, profile_bytes_max=1 << 23, items_max=1024)
ITEMS = 300


@pytest.fixture(scope="module")
def shard() -> Shard:
    """300 items of 3 brands and 10 categories; 60 people with tastes have looked at 200 of them."""
    made = Shard("0", KeyRange(0, HASH_SPACE), CONFIG, now=lambda: 1_790_000_000.0)
    made._rng = np.random.default_rng(5)
    catalogue = made.tenant("default").catalogue
    generator = np.random.default_rng(2)
    for i in range(ITEMS):
        attributes: dict[str, Any] = {
            "brand": "abc"[i % 3],
            "category": f"c{i % 10}",
            "stock": float(i % 4),
        }
        catalogue.put(Item(f"i{i}", attributes, generator.standard_normal(4).tolist()))
    for person in range(60):
        for _ in range(12):
            item = int(generator.integers(0, 20)) * 10 + person % 10
            ask(made, Op.TRACK, {"userId": f"u{person}", **view(f"i{item}")})
    return made


def decide(shard: Shard, person: str = "u3", **spec: Any) -> dict[str, Any]:
    body = {"userId": person, "decisions": [{"surface": "product", **spec}]}
    status, answer = ask(shard, Op.DECIDE, body)
    assert status == 200, answer
    decision: dict[str, Any] = answer["decisions"][0]
    return decision


def ids(decision: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in decision["ranking"]]


def brand(item: str) -> str:
    return "abc"[int(item[1:]) % 3]


@pytest.mark.parametrize("policy", ["default", "vector"])
def test_a_filter_leaves_only_what_passes_and_still_fills_all_places(
    shard: Shard, policy: str
) -> None:
    found = ids(
        decide(
            shard,
            policy=policy,
            filter="stock > $least AND brand IN $b",
            filterValues={"least": 2, "b": ["a"]},
            numResults=20,
        )
    )
    assert len(found) == len(set(found)) == 20
    assert all(int(i[1:]) % 4 > 2 and brand(i) == "a" for i in found)


def test_a_filter_keeps_the_order_of_what_it_leaves(shard: Shard) -> None:
    everything = ids(decide(shard, numResults=100))
    filtered = ids(decide(shard, numResults=100, filter="brand = 'a'"))
    shared = [i for i in everything if brand(i) == "a"]
    assert [i for i in filtered if i in shared] == shared


def test_candidates_that_fail_the_filter_are_named(shard: Shard) -> None:
    decision = decide(shard, actions=["i0", "i1", "i2", "i3"], filter="brand = 'a'")
    assert sorted(ids(decision)) == ["i0", "i3"]
    assert {(r["id"], r["rule"]) for r in decision["rejected"]} == {
        ("i1", "filter"),
        ("i2", "filter"),
    }


def test_a_bad_filter_is_a_422_that_names_it(shard: Shard) -> None:
    for spec, field in (
        ({"filter": "brand ~ 'a'"}, "decisions[0].filter"),
        (
            {"promotions": [{"name": "p", "filter": "x <", "percentPromotedItems": 5}]},
            "decisions[0].promotions[0].filter",
        ),
    ):
        body = {"userId": "u1", "decisions": [{"surface": "product", **spec}]}
        status, problem = ask(shard, Op.DECIDE, body)
        assert (status, problem["field"]) == (422, field)


@pytest.mark.parametrize(("percent", "least"), [(20, 2), (50, 5), (100, 10)])
def test_a_promotion_gets_its_share_at_every_prefix(shard: Shard, percent: int, least: int) -> None:
    promotion = {"name": "own", "filter": "brand = 'c'", "percentPromotedItems": percent}
    decision = decide(shard, promotions=[promotion])
    found = ids(decision)
    assert len(set(found)) == 10
    for places in range(1, 11):
        promoted = sum(brand(i) == "c" for i in found[:places])
        assert promoted >= places * percent // 100
    assert sum(brand(i) == "c" for i in found) >= least
    reasons = {entry.get("reason") for entry in decision["ranking"]} - {None}
    assert reasons <= {"promoted: own"}


def test_diversity_bounds_every_value_and_says_what_it_left_out(shard: Shard) -> None:
    found = ids(decide(shard, diversity={"by": "category", "max": 1}))
    assert len(found) == 10
    assert max(Counter(int(i[1:]) % 10 for i in found).values()) == 1
    actions = ["i0", "i10", "i20", "i1"]
    decision = decide(shard, actions=actions, diversity={"by": "category"})
    assert len(ids(decision)) == 2
    assert [r["rule"] for r in decision["rejected"]] == ["diversity", "diversity"]


def test_pins_stand_where_they_are_pinned(shard: Shard) -> None:
    pins = [
        {"id": "i299", "position": 1},
        {"id": "i298", "position": 4},
        {"id": "ghost", "position": 2},
    ]
    decision = decide(shard, pins=pins)
    found = ids(decision)
    assert (found[0], found[3], len(set(found))) == ("i299", "i298", 10)
    assert decision["ranking"][0]["reason"] == "pinned"


def test_rotation_varies_the_order_and_favours_the_best(shard: Shard) -> None:
    best = ids(decide(shard))
    assert best == ids(decide(shard, rotation=0.0))
    orders = [tuple(ids(decide(shard, rotation=0.5))) for _ in range(60)]
    assert len(set(orders)) > 30
    # Drawn at random from all 300, the first item would stand at place 150 on average.
    everything = ids(decide(shard, numResults=100))
    places = [everything.index(order[0]) if order[0] in everything else 150 for order in orders]
    assert sum(places) / len(places) < 50


def test_exploration_gives_new_items_their_share_and_no_more(shard: Shard) -> None:
    decisions = [decide(shard, exploration=0.25) for _ in range(200)]
    explored = [
        entry["id"]
        for decision in decisions
        for entry in decision["ranking"]
        if entry.get("reason") == "explored"
    ]
    assert len(explored) / 2000 == pytest.approx(0.25, abs=0.02)
    assert len(set(explored)) > 80
    assert not any("explored" in str(entry) for entry in decide(shard)["ranking"])


@pytest.mark.parametrize("policy", ["default", "vector"])
def test_what_was_just_bought_is_not_offered_again(shard: Shard, policy: str) -> None:
    item = ids(decide(shard, person="u7", policy=policy))[0]
    event = {"event": "Order Completed", "properties": {"itemId": item, "revenue": 5}}
    ask(shard, Op.TRACK, {"userId": "u7", **event})
    assert item not in ids(decide(shard, person="u7", policy=policy, numResults=100))
    assert item in ids(
        decide(shard, person="u7", policy=policy, numResults=100, excludeBought=False)
    )


@pytest.mark.parametrize("policy", ["default", "vector"])
def test_an_explanation_adds_up_to_the_score(shard: Shard, policy: str) -> None:
    for person in ("u1", "u2", "nobody"):
        body = {
            "userId": person,
            "explain": True,
            "decisions": [{"surface": "product", "policy": policy, "numResults": 50}],
        }
        _, answer = ask(shard, Op.DECIDE, body)
        ranking = answer["decisions"][0]["ranking"]
        assert ranking
        for entry in ranking:
            told = entry["explanation"]
            parts = sum(told["components"].values())
            assert parts == pytest.approx(entry["score"], abs=1e-3)
            if policy == "default":
                parts = told["withoutEvents"] + sum(
                    e["contribution"] for e in told.get("events", [])
                )
                assert parts == pytest.approx(entry["score"], abs=1e-3)
                assert bool(told.get("events")) == (person != "nobody")


def test_one_item_catalogue_and_empty_model_give_sensible_answers() -> None:
    empty = Shard("0", KeyRange(0, HASH_SPACE), CONFIG)
    assert ids(decide(empty, person="a")) == []
    empty.put_items("default", msgspec.json.encode([Item("only", {"brand": "a"})]))
    assert ids(decide(empty, person="a")) == ["only"]
    for spec in (
        {"filter": "brand = 'a'"},
        {"filter": "brand = 'b'"},
        {"rotation": 1.0},
        {"exploration": 0.5},
        {"diversity": {"by": "brand"}},
        {"promotions": [{"name": "p", "filter": "brand = 'b'", "percentPromotedItems": 50}]},
        {"pins": [{"id": "only", "position": 3}]},
    ):
        expected = [] if spec.get("filter") == "brand = 'b'" else ["only"]
        if "pins" not in spec:
            assert ids(decide(empty, person="a", **spec)) == expected
        assert ask(empty, Op.PROFILE_GET, {"userId": "a"}, SERVER)[0] == 404
