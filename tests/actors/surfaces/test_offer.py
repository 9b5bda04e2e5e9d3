"""Offers: guardrails, caps, budgets, holds and fairness, whatever a policy would like."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.books import MICROS
from cluster.errors import RequestError
from cluster.frames import Op
from tests.actors.surfaces.shop import Shop, key_of

OFFER = {"surface": "offer", "offerId": "spring", "itemId": "p0"}
LEVELS: list[dict[str, Any]] = [
    {"id": "list", "value": 1},
    {"id": "ten", "discount": 0.1, "value": 1},
    {"id": "thirty", "discount": 0.3, "value": 1},
    {"id": "half", "discount": 0.5, "value": 1},
]


def with_offer(rails: dict[str, Any] | None = None, **offer: Any) -> Shop:
    shop = Shop()
    if rails is not None:
        shop.put("guardrails", "eu", **rails)
        offer["guardrails"] = "eu"
    shop.put("offers", "spring", levels=LEVELS, **offer)
    return shop


def levels_seen(shop: Shop, people: int = 200, **fields: Any) -> set[str]:
    seen = set()
    for i in range(people):
        (made,) = shop.decide(f"u{i}", OFFER | fields)
        seen.add(made["ranking"][0]["id"])
    return seen


def test_a_quote_says_what_the_price_is_and_until_when() -> None:
    shop = with_offer(currency="EUR", holdS=600)
    (made,) = shop.decide("ada", OFFER)
    level = next(one for one in LEVELS if one["id"] == made["ranking"][0]["id"])
    assert made["price"] == pytest.approx(10.0 * (1 - float(level.get("discount", 0))))
    assert (made["listPrice"], made["currency"]) == (10.0, "EUR")
    assert made["discount"] == pytest.approx(float(level.get("discount", 0)))
    assert made["quoteId"] == made["decisionId"]
    assert made["expiresAt"] == int(shop.now_s) + 600
    assert 0 < made["ranking"][0]["probability"] <= 1


def test_the_same_person_is_asked_the_same_price_until_it_expires() -> None:
    shop = with_offer(holdS=600)
    (first,) = shop.decide("ada", OFFER)
    for passed in (1, 300, 298):
        shop.now_s += passed
        (again,) = shop.decide("ada", OFFER)
        held = ("price", "quoteId", "expiresAt")
        assert [again[name] for name in held] == [first[name] for name in held]
        assert again["ranking"][0]["id"] == first["ranking"][0]["id"]
        assert again["reasons"] == ["the price is held"]
    shop.now_s += 2
    (later,) = shop.decide("ada", OFFER)
    assert later["quoteId"] != first["quoteId"]


def test_a_price_is_held_also_when_there_is_no_time_to_decide() -> None:
    shop = with_offer({"maxDiscount": 0.5, "ceiling": 8.0})
    (first,) = shop.decide("ada", OFFER)
    late = shop.ask(Op.DECIDE, userId="ada", decisions=[OFFER], deadlineMs=1)
    assert late["degraded"] is True
    (again,) = late["decisions"]
    assert (again["price"], again["quoteId"]) == (first["price"], first["quoteId"])


@pytest.mark.parametrize(
    ("rails", "allowed"),
    [
        ({}, {"list", "ten", "thirty", "half"}),
        ({"floor": 7.0}, {"list", "ten", "thirty"}),
        ({"ceiling": 8.0}, {"thirty", "half"}),
        ({"maxDiscount": 0.1}, {"list", "ten"}),
        ({"minMargin": 0.3}, {"list", "ten"}),
        ({"minMargin": 0.0}, {"list", "ten", "thirty"}),
    ],
)
def test_only_levels_within_the_guardrails_are_offered(
    rails: dict[str, Any], allowed: set[str]
) -> None:
    shop = with_offer(rails)
    assert levels_seen(shop) == allowed
    (made,) = shop.decide("last", OFFER)
    assert {entry["id"] for entry in made["rejected"]} == {
        "list",
        "ten",
        "thirty",
        "half",
    } - allowed
    assert all(entry["rule"].partition(":")[0] in rails for entry in made["rejected"])


def test_without_a_level_within_the_guardrails_there_is_no_price() -> None:
    shop = with_offer({"floor": 20.0})
    (made,) = shop.decide("ada", OFFER)
    assert made["ranking"] == []
    assert "price" not in made
    assert "quoteId" not in made


def test_a_person_gets_no_more_discounts_than_the_cap_allows() -> None:
    shop = with_offer(cap={"count": 2, "windowS": 3600}, holdS=10)
    for step in range(40):
        shop.now_s += 11
        (made,) = shop.decide("ada", OFFER)
        if shop.ledger("ada").get("caps", {}).get("offers/spring", {}).get("count", 0) > 2:
            pytest.fail(f"capped at 2, step {step}")
        assert made["price"] > 0
    assert shop.ledger("ada")["caps"]["offers/spring"]["count"] == 2
    assert made["ranking"][0]["id"] == "list"
    assert {entry["rule"] for entry in made["rejected"]} == {"cap: 2 within 3600 s"}


def test_a_budget_is_never_overspent_and_the_list_price_is_left() -> None:
    shop = Shop()
    shop.put("budgets", "b", total=20)
    shop.put("offers", "spring", levels=LEVELS, budget="b", holdS=600)
    assert levels_seen(shop, 50) == {"list"}, "nothing was granted yet"
    shop.shard.grant("default", "b", 20 * MICROS)
    promised = 0.0
    for i in range(300):
        (made,) = shop.decide(f"v{i}", OFFER)
        promised += made["listPrice"] - made["price"]
        shop.tenant.books.check(int(shop.now_s))
    assert 19.0 < promised <= 20.0 + 1e-9
    # Nobody took the offers, so when they have expired the money is there again.
    shop.now_s += 700
    assert shop.tenant.books.free("b", int(shop.now_s)) == 20 * MICROS


def test_two_offers_of_one_call_do_not_spend_the_same_money_twice() -> None:
    shop = Shop()
    shop.put("budgets", "b", total=5)
    shop.put(
        "offers", "spring", levels=[{"id": "half", "discount": 0.5}, {"id": "list"}], budget="b"
    )
    shop.shard.grant("default", "b", 5 * MICROS)
    for i in range(30):
        offers = [OFFER | {"itemId": item} for item in ("p0", "p1", "p2")]
        made = shop.decide(f"u{i}", *offers)
        spent = sum(one["listPrice"] - one["price"] for one in made)
        assert spent <= 5.0
        shop.tenant.books.check(int(shop.now_s))


def test_a_purchase_with_the_quote_spends_what_was_held_back() -> None:
    shop = Shop()
    shop.put("budgets", "b", total=100)
    shop.put("offers", "spring", levels=[{"id": "half", "discount": 0.5}], budget="b")
    shop.shard.grant("default", "b", 100 * MICROS)
    (made,) = shop.decide("ada", OFFER)
    bought = {"event": "Item Purchased", "properties": {"itemId": "p0", "quoteId": made["quoteId"]}}
    shop.ask(Op.TRACK, userId="ada", **bought)
    assert shop.tenant.books.budgets["b"].spent == 5 * MICROS
    shop.ask(Op.TRACK, userId="ada", **bought)
    assert shop.tenant.books.budgets["b"].spent == 5 * MICROS, "a quote is taken once"
    assert shop.shard.stages.quotes_missing == 1
    shop.now_s += 5000
    (late,) = shop.decide("bob", OFFER)
    shop.now_s += 1000
    bought["properties"] = {"itemId": "p0", "quoteId": late["quoteId"]}
    shop.decide("bob", OFFER, events=[bought])
    assert shop.tenant.books.budgets["b"].spent == 5 * MICROS, "an expired quote is not taken"


def test_what_guardrails_protect_is_neither_a_feature_nor_silently_used() -> None:
    shop = with_offer({"protected": ["gender"], "proxies": ["zip"]})
    shop.ask(Op.IDENTIFY, userId="ada", traits={"gender": "f", "zip": "1010", "visits": 3})
    (made,) = shop.decide("ada", OFFER, context={"gender": "f", "device": "ios"})
    assert "left out as protected: gender, zip" in made["reasons"]
    with pytest.raises(RequestError) as caught:
        shop.put("offers", "o", levels=LEVELS, guardrails="eu", features=["device", "zip"])
    assert (caught.value.field, caught.value.seen) == ("features", "zip")
    shop.put("offers", "spring", levels=LEVELS, guardrails="eu", features=["device"])
    with pytest.raises(RequestError) as caught:
        shop.put("guardrails", "eu", protected=["device"])
    assert (caught.value.field, caught.value.seen) == ("protected", "device")


def test_protected_traits_do_not_move_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = with_offer({"protected": ["gender"], "proxies": ["zip"]})
    seen = []
    choose = shop.tenant.treatment.choose

    def watch(policy: Any, features: Any, *args: Any, **named: Any) -> Any:
        seen.append(features)
        return choose(policy, features, *args, **named)

    monkeypatch.setattr(shop.tenant.treatment, "choose", watch)
    for i, traits in enumerate(({"gender": "f", "zip": "1"}, {"gender": "m", "zip": "2"})):
        shop.ask(Op.IDENTIFY, userId=f"u{i}", traits=traits)
        shop.decide(f"u{i}", OFFER)
    assert seen[0].hashes.tolist() == seen[1].hashes.tolist()
    assert seen[0].values.tolist() == seen[1].values.tolist()


def test_groups_are_kept_within_the_spread() -> None:
    spread = {"by": "gender", "bound": 0.05, "minimum": 20}
    shop = with_offer({"spread": spread, "protected": ["gender"]}, holdS=1)
    generator = random.Random(4)
    for i in range(600):
        gender = generator.choice("fm")
        shop.ask(Op.IDENTIFY, userId=f"u{i}", traits={"gender": gender})
        shop.decide(f"u{i}", OFFER)
    tallies = shop.tenant.books.spreads["eu"]
    means = {name: tally.total / tally.n / 1e6 for name, tally in tallies.items()}
    assert set(means) == {"f", "m"}
    assert abs(means["f"] - means["m"]) <= 0.05 + 1 / 100


def test_no_more_than_a_bounded_number_of_prices_is_held() -> None:
    shop = Shop()
    for i in range(20):
        shop.put("offers", f"o{i}", levels=LEVELS)
    made = [shop.decide("ada", OFFER | {"offerId": f"o{i}"})[0] for i in range(20)]
    assert sum("quoteId" in one for one in made) == 16
    assert {one["price"] for one in made[16:]} == {10.0}
    assert len(shop.ledger("ada")["quotes"]) == 16


def test_replay_gives_the_same_ledgers_and_books() -> None:
    shop = Shop()
    shop.put("budgets", "b", total=100)
    shop.put(
        "guardrails", "eu", spread={"by": "gender", "bound": 0.2}, cap={"count": 3, "windowS": 60}
    )
    shop.put("offers", "spring", levels=LEVELS, budget="b", guardrails="eu", holdS=20)
    shop.shard.grant("default", "b", 50 * MICROS)
    generator = random.Random(9)
    for _ in range(200):
        shop.now_s += generator.choice([0, 5, 30])
        person = f"u{generator.randrange(9)}"
        shop.ask(Op.IDENTIFY, userId=person, traits={"gender": generator.choice("fm")})
        (made,) = shop.decide(person, OFFER)
        if generator.random() < 0.5 and "quoteId" in made:
            properties = {"itemId": "p0", "quoteId": made["quoteId"]}
            shop.ask(Op.TRACK, userId=person, event="Item Purchased", properties=properties)
    again = shop.replayed()
    assert again.tenant("default").books == shop.tenant.books
    for i in range(9):
        row, other = shop.shard.store.find(key_of(f"u{i}")), again.store.find(key_of(f"u{i}"))
        assert again.store.ledger(other) == shop.shard.store.ledger(row)
    again.store.check()


amounts = st.floats(0.5, 120.0).map(lambda x: round(x, 2))
shares = st.floats(0, 1).map(lambda x: round(x, 3))


@settings(max_examples=60, deadline=None)
@given(
    rails=st.fixed_dictionaries(
        {},
        optional={
            "floor": st.floats(0, 40).map(lambda x: round(x, 2)),
            "ceiling": st.floats(40, 100).map(lambda x: round(x, 2)),
            "maxDiscount": shares,
            "maxIncrease": shares,
            "minMargin": shares,
        },
    ),
    levels=st.lists(
        st.one_of(
            st.fixed_dictionaries({"discount": shares}), st.fixed_dictionaries({"price": amounts})
        ),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 1000),
)
def test_no_price_ever_breaks_a_guardrail(
    rails: dict[str, float], levels: list[dict[str, float]], seed: int
) -> None:
    shop = Shop()
    shop.put("guardrails", "eu", **rails)
    named = [{"id": f"l{i}", **level} for i, level in enumerate(levels)]
    shop.put("offers", "spring", levels=named, guardrails="eu")
    for i in range(8):
        (made,) = shop.decide(f"u{seed}-{i}", OFFER | {"itemId": f"p{i}"})
        if "price" not in made:
            assert len(made["rejected"]) == len(levels)
            continue
        price, listed, cost = made["price"], 10.0 * (i + 1), 6.0 * (i + 1)
        assert price >= rails.get("floor", 0)
        assert price <= rails.get("ceiling", 1e9)
        assert price >= listed * (1 - rails.get("maxDiscount", 1)) - 1e-6
        assert price <= listed * (1 + rails.get("maxIncrease", 0)) + 1e-6
        if "minMargin" in rails:
            assert price - cost >= rails["minMargin"] * price - 1e-6
