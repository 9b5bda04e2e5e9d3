"""Experiments: who gets what, exposed once, and results that may be looked at any time."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest

from actors.sequential import MINIMUM, Sample, compare
from actors.surfaces.common import share_of
from cluster.frames import Op
from tests.actors.surfaces.shop import SERVER, Shop, key_of

FLAG = {"variants": {"red": 1, "blue": 2}, "default": "red"}
ASK = {"surface": "ui", "flagKey": "banner"}
METRIC = {"event": "Item Purchased", "outcome": "conversion", "windowS": 1000}
VARIANTS = [{"key": "control", "arm": "red"}, {"key": "new", "arm": "blue"}]


def with_experiment(**fields: object) -> Shop:
    shop = Shop()
    shop.put("flags", "banner", **FLAG)
    body = {"surface": "ui", "key": "banner", "variants": VARIANTS, "metric": METRIC} | fields
    shop.put("experiments", "e", **body)
    return shop


def test_assignment_is_a_hash_in_the_shares_that_were_asked_for() -> None:
    shop = with_experiment(percent=50)
    seen: Counter[str] = Counter()
    for i in range(1000):
        (made,) = shop.decide(f"u{i}", ASK)
        variant = made.get("experiment", {}).get("variant", "none")
        seen[variant] += 1
        shown = made["flags"]["banner"]["variant"]
        assert shown == {"control": "red", "new": "blue", "none": "red"}[variant]
        if i < 100:
            (again,) = shop.decide(f"u{i}", ASK)
            assert again.get("experiment") == made.get("experiment")
    assert 440 <= seen["none"] <= 560
    assert abs(seen["control"] - seen["new"]) < 100


def test_salts_divide_people_independently() -> None:
    people = [key_of(f"u{i}") for i in range(4000)]
    both = sum(share_of("a", key) < 0.5 and share_of("b", key) < 0.5 for key in people)
    assert 900 <= both <= 1100


def test_a_person_is_exposed_once_and_the_outcome_counts_within_the_window() -> None:
    shop = with_experiment()
    buy = {"event": "Item Purchased", "properties": {"itemId": "p1", "revenue": 20}}
    shop.ask(Op.TRACK, userId="ada", **buy)
    assert shop.tenant.books.experiments == {}, "not exposed yet"
    for _ in range(3):
        (made,) = shop.decide("ada", ASK)
    variant = made["experiment"]["variant"]
    tally = shop.tenant.books.experiments["e"][variant]
    assert (tally.n, tally.total) == (1, 0.0)
    for _ in range(2):
        shop.ask(Op.TRACK, userId="ada", **buy)
    assert (tally.n, tally.total, tally.squares) == (1, 1.0, 1.0), "a conversion counts once"
    shop.decide("bob", ASK)
    shop.now_s += 1001
    shop.ask(Op.TRACK, userId="bob", **buy)
    assert sum(one.total for one in shop.tenant.books.experiments["e"].values()) == 1.0


def test_revenue_adds_up_per_person() -> None:
    shop = with_experiment(metric=METRIC | {"outcome": "revenue"})
    (made,) = shop.decide("ada", ASK)
    for revenue in (20, 5):
        bought = {"itemId": "p1", "revenue": revenue}
        shop.decide("ada", ASK, events=[{"event": "Item Purchased", "properties": bought}])
    tally = shop.tenant.books.experiments["e"][made["experiment"]["variant"]]
    assert (tally.n, tally.total, tally.squares) == (1, 25.0, 625.0)
    assert shop.replayed().tenant("default").books == shop.tenant.books


def test_held_out_people_get_the_baseline_on_every_surface_that_is_named() -> None:
    shop = with_experiment()
    shop.put(
        "offers", "o", levels=[{"id": "half", "discount": 0.5}, {"id": "list"}], baseline="list"
    )
    shop.put("holdouts", "h", percent=20, surfaces=["ui", "offer", "product"])
    held = 0
    for i in range(300):
        offer = {"surface": "offer", "offerId": "o", "itemId": "p1"}
        asked = (ASK, offer, {"surface": "product", "numResults": 2}, {"surface": "content"})
        ui, quote, product, content = shop.decide(f"u{i}", *asked)
        holdouts = {one.get("holdout") for one in (ui, quote, product)}
        assert len(holdouts) == 1
        assert "holdout" not in content
        if holdouts == {"h"}:
            held += 1
            assert ui["flags"]["banner"]["variant"] == "red"
            assert quote["ranking"][0]["id"] == "list"
            assert product["policyId"] == "popular"
            assert "experiment" not in ui
    assert 40 <= held <= 80


def test_looking_all_the_time_finds_something_in_noise_no_more_often_than_alpha() -> None:
    seed, runs, people, alpha, rate = 11, 1000, 3000, 0.05, 0.1
    generator = np.random.default_rng(seed)
    outcomes = (generator.random((2, runs, people)) < rate).cumsum(2)
    found = naive = 0
    for run in range(runs):
        fooled = False
        for n in range(MINIMUM, people, 25):
            a, b = (float(outcomes[arm, run, n - 1]) for arm in (0, 1))
            control, group = Sample(n, a, a), Sample(n, b, b)
            if compare(control, group, alpha).p_value <= alpha:
                found += 1
                break
            spread = ((control.variance + group.variance) / n) ** 0.5
            fooled |= abs(group.mean - control.mean) > 1.96 * spread
        naive += fooled
    assert found / runs <= alpha, f"seed {seed}"
    assert naive / runs > 4 * alpha, "a fixed-horizon test would be fooled"


def test_a_real_difference_is_found_and_lies_within_the_interval() -> None:
    generator = np.random.default_rng(5)
    found = covered = 0
    for _ in range(200):
        a = float((generator.random(4000) < 0.10).sum())
        b = float((generator.random(4000) < 0.14).sum())
        result = compare(Sample(4000, a, a), Sample(4000, b, b), 0.05)
        found += result.p_value <= 0.05
        covered += result.low <= 0.04 <= result.high
        assert (result.p_value <= 0.05) == (not result.low <= 0.0 <= result.high)
    assert found >= 180
    assert covered >= 190


def test_too_few_outcomes_say_nothing() -> None:
    result = compare(Sample(99, 0, 0), Sample(99, 99, 99), 0.05)
    assert result.p_value == 1.0
    assert result.effect == pytest.approx(1.0)
    assert compare(Sample(500, 0, 0), Sample(500, 0, 0), 0.05).p_value == 1.0


def test_slots_are_named_and_hold_their_baseline_for_people_of_a_holdout() -> None:
    shop = Shop()
    slots = [{"id": "hero", "baselineAction": "p3"}, {"id": "side"}]
    ask = {"surface": "content", "slots": slots, "actions": ["p1", "p2", "p3"]}
    (made,) = shop.decide("ada", ask)
    assert [slot["id"] for slot in made["slots"]] == ["hero", "side"]
    assert [slot["rewardActionId"] for slot in made["slots"]] == [r["id"] for r in made["ranking"]]
    shop.put("holdouts", "h", percent=50)
    held = [shop.decide(f"u{i}", ask)[0] for i in range(40)]
    firsts = {one["slots"][0]["rewardActionId"] for one in held if "holdout" in one}
    assert firsts == {"p3"}
    twice = ask | {"slots": [{"id": "a"}, {"id": "a"}]}
    body = msgspec.json.encode({"userId": "ada", "decisions": [twice]})
    status, problem = shop.shard.handle(Op.DECIDE, SERVER, body, 0)
    assert (status, msgspec.json.decode(problem)["field"]) == (422, "decisions[0].slots")
