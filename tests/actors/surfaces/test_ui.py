"""Flags and layouts: who sees which variant, and for how long."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cluster.errors import RequestError
from tests.actors.surfaces.shop import Shop

BANNER: dict[str, Any] = {"variants": {"red": "#f00", "blue": "#00f"}, "default": "red"}
ASK = {"surface": "ui", "flagKey": "banner"}


def variant(shop: Shop, person: str, **fields: Any) -> tuple[str, str]:
    (made,) = shop.decide(person, ASK, **fields)
    flag = made["flags"]["banner"]
    assert flag["value"] == BANNER["variants"].get(flag["variant"], flag["value"])
    return flag["variant"], flag["reason"]


def test_the_first_that_applies_says_which_variant_is_shown() -> None:
    shop = Shop()
    shop.put("flags", "banner", **BANNER)
    assert variant(shop, "ada") == ("red", "STATIC")
    rule = {"when": "device = 'ios' AND age >= 18", "variant": "blue"}
    shop.put("flags", "banner", **BANNER, rules=[rule])
    assert variant(shop, "ada", context={"device": "ios", "age": 20}) == ("blue", "TARGETING_MATCH")
    assert variant(shop, "ada", context={"device": "ios", "age": 17}) == ("red", "STATIC")
    assert variant(shop, "ada", context={"device": "ios", "age": "20"}) == ("red", "STATIC")
    shop.put("flags", "banner", **BANNER, rules=[rule], enabled=False)
    assert variant(shop, "ada", context={"device": "ios", "age": 20}) == ("red", "DISABLED")


def test_weights_divide_people_and_each_sees_always_the_same() -> None:
    shop = Shop()
    shop.put("flags", "banner", **BANNER, weights={"red": 3, "blue": 1})
    first = {f"u{i}": variant(shop, f"u{i}") for i in range(1000)}
    seen = Counter(name for name, _ in first.values())
    assert 200 <= seen["blue"] <= 300
    assert {person: variant(shop, person) for person in list(first)[:50]}.items() <= first.items()


@pytest.mark.parametrize("sticky", ["person", "session"])
def test_a_learned_variant_stays_as_long_as_the_flag_says(sticky: str) -> None:
    shop = Shop()
    shop.put("policies", "p", surface="ui", rule="uniform")
    shop.put("flags", "banner", **BANNER, policy="p", sticky=sticky)
    for i in range(20):
        first = {variant(shop, f"u{i}") for _ in range(5)}
        assert len(first) == 1, "within a session nothing changes"
    later = []
    shop.now_s += 7200
    for i in range(60):
        view = {"event": "Item Viewed", "properties": {"itemId": "p1"}}
        before = variant(shop, f"w{i}", events=[view])
        shop.now_s += 7200
        later.append(variant(shop, f"w{i}", events=[view]) == before)
    assert all(later) == (sticky == "person")


def test_a_layout_places_each_variant_once_and_says_how_likely_that_was() -> None:
    shop = Shop()
    shop.put("policies", "p", surface="ui", rule="uniform")
    parts = {name: {"component": name} for name in ("search", "offers", "news", "cart")}
    shop.put("flags", "home", variants=parts, default="news", slots=["top", "side"], policy="p")
    orders: Counter[tuple[str, str]] = Counter()
    for i in range(300):
        (made,) = shop.decide(f"u{i}", {"surface": "ui", "flagKey": "home"})
        first, second = made["slots"]
        assert (first["id"], second["id"]) == ("top", "side")
        assert first["rewardActionId"] != second["rewardActionId"]
        assert first["probability"] == pytest.approx(1 / 4)
        assert second["probability"] == pytest.approx(1 / 3)
        value = made["flags"]["home"]["value"]
        assert value["top"] == {"component": first["rewardActionId"]}
        orders[first["rewardActionId"], second["rewardActionId"]] += 1
    assert len(orders) == 12


def test_a_flag_that_contradicts_itself_is_refused_by_field() -> None:
    shop = Shop()
    for wrong, field in (
        ({"default": "green"}, "default"),
        ({"weights": {"green": 1}}, "weights.green"),
        ({"weights": {"red": 0}}, "weights"),
        ({"rules": [{"when": "a = 1", "variant": "x"}]}, "rules[0].variant"),
        ({"rules": [{"when": "a = ", "variant": "red"}]}, "rules[0].when"),
        ({"policy": "none"}, "policy"),
        ({"slots": ["a", "a"]}, "slots"),
    ):
        with pytest.raises(RequestError) as caught:
            shop.put("flags", "banner", **(BANNER | wrong))
        assert caught.value.field == field
