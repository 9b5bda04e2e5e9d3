"""The simulated shop of the benchmark, in small: no rule is broken, and the checker would tell."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.bench import treatments_rules as rules
from tests.bench.treatments_shop import VISITS_EACH, Simulation, run


@pytest.fixture(scope="module")
def visited() -> Simulation:
    """Ten people, each with all visits."""
    simulation = Simulation(seed=3)
    run(simulation, 10 * VISITS_EACH)
    return simulation


def test_five_surfaces_break_no_rule_and_never_beat_the_oracle(visited: Simulation) -> None:
    assert visited.rules.violations.total() == 0, visited.rules.examples
    assert visited.rules.seen == 5 * 10 * VISITS_EACH
    learned, oracle, uniform = visited.earned.sum(axis=(1, 2))
    assert 0 < uniform < oracle
    assert learned <= oracle
    assert visited.rules.bitten["held"] > 0


def made(**changed: dict[str, Any]) -> list[dict[str, Any]]:
    """The decisions of a call that breaks no rule, or some, as changed by surface."""
    entry = {"id": "a1", "probability": 0.5}
    slots = [
        {"id": slot, "rewardActionId": part, "probability": 0.5}
        for slot, part in zip(rules.SLOTS, rules.PARTS, strict=False)
    ]
    price = {
        "ranking": [{"id": "ten", "probability": 0.5}],
        "price": 18.0,
        "quoteId": "q",
        "expiresAt": NOW_S + rules.HOLD_S,
    }
    usual: dict[str, dict[str, Any]] = {
        "content": {"ranking": [entry]},
        "product": {"ranking": [{"id": "tea", "probability": 0.5}]},
        "offer": price,
        "ui": {"slots": slots},
        "communication": {
            "send": True,
            "channel": "push",
            "sendAt": "2026-09-21T14:13:20Z",
            "propensity": 0.5,
        },
    }
    return [fields | changed.get(surface, {}) for surface, fields in usual.items()]


NOW_S = 1_790_000_000
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("excluded", {"content": {"ranking": [{"id": "a0", "probability": 0.5}]}}),
    ("propensity", {"content": {"ranking": [{"id": "a1", "probability": 0.0}]}}),
    ("bought", {"product": {"ranking": [{"id": "cup", "probability": 0.5}]}}),
    ("taken down", {"product": {"ranking": [{"id": "pot", "probability": 0.5}]}}),
    ("price", {"offer": {"price": 17.0}}),
    ("discount", {"offer": {"price": 10.0, "ranking": [{"id": "half", "probability": 1.0}]}}),
    ("expiry", {"offer": {"expiresAt": NOW_S + 1}}),
    ("layout", {"ui": {"slots": [{"id": "hero", "rewardActionId": "x", "probability": 1.0}]}}),
    ("quiet hours", {"communication": {"sendAt": "2026-09-21T22:00:00Z"}}),
    ("past", {"communication": {"sendAt": "2026-09-20T14:13:20Z"}}),
]


def checker() -> rules.Rules:
    found = rules.Rules({"tea": 20.0, "cup": 20.0}, {"tea": 8.0, "cup": 8.0})
    found.down.add("pot")
    found.events["ada"].append(("cup", True))
    found.consent["ada"] = True
    found.zones["ada"] = ZoneInfo("UTC")
    found.granted = 5.0
    return found


@pytest.mark.parametrize(("rule", "changed"), [("", {}), *CHANGES], ids=lambda v: str(v)[:12])
def test_the_checker_names_the_rule_that_a_decision_breaks(rule: str, changed: Any) -> None:
    watch = checker()
    watch.check("ada", "tea", ["a0"], made(**changed), NOW_S)
    assert set(watch.violations) >= ({rule} if rule else set()), watch.examples
    assert rule or not watch.violations, watch.examples


def test_the_checker_sees_a_second_price_an_overspent_budget_and_one_message_too_many() -> None:
    watch = checker()
    watch.check("ada", "tea", ["a0"], made(), NOW_S)
    again = {"quoteId": "r", "price": 20.0, "ranking": [{"id": "list", "probability": 1.0}]}
    watch.check("ada", "tea", ["a0"], made(offer=again), NOW_S)
    assert dict(watch.violations) == {"hold": 1, "contact cap": 1}, watch.examples
    for person in ("bob", "eve"):
        watch.zones[person] = watch.zones["ada"]
        watch.check(person, "tea", ["a0"], made(communication={"send": False}), NOW_S)
    assert watch.violations["budget"] == 1, "three times 2.0 of 5.0"
    watch.check("bob", "tea", ["a0"], made(offer={"ranking": []}), NOW_S)
    assert watch.violations["consent"] == 1
    for step in range(rules.CAP + 1):
        later_s = NOW_S + 1000 * step
        price = {"expiresAt": later_s + rules.HOLD_S, "quoteId": f"c{step}"}
        quiet = made(offer=price, communication={"send": False})
        watch.check("cat", "tea", ["a0"], quiet, later_s)
    assert watch.violations["cap"] == 1
