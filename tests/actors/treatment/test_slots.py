"""Slots that exclude arms of their own, against every assignment there is; and their draws."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.evaluation import Logged, judge
from actors.treatment.baseline import baseline_order
from actors.treatment.features import NO_FEATURES, Arm, arms_of
from actors.treatment.policy import RULES, PolicySpec, policy_of
from actors.treatment.slots import fillable, open_at
from actors.treatment.treatment import Treatment
from tests.actors.surfaces.shop import Shop

ARMS = arms_of([Arm(name) for name in "abcde"])


def ways(allowed, pins, stop):
    """Every way to fill the first `stop` slots, as arms by slot; a pinned one is -1."""
    free = [s for s in range(stop) if pins[s] < 0]
    found = []
    for arms in permutations(range(allowed.shape[1]), len(free)):
        if all(allowed[s, a] for s, a in zip(free, arms, strict=True)):
            filled = dict(zip(free, arms, strict=True))
            found.append([filled.get(s, -1) for s in range(stop)])
    return found


tables = st.integers(1, 4).flatmap(
    lambda k: st.integers(1, 5).flatmap(
        lambda m: st.tuples(
            st.lists(st.lists(st.booleans(), min_size=m, max_size=m), min_size=k, max_size=k),
            st.lists(st.sampled_from([-1, -1, -1, 7]), min_size=k, max_size=k),
        )
    )
)


@settings(max_examples=200, deadline=None)
@given(tables)
def test_a_slot_may_take_what_some_whole_assignment_gives_it(table):
    rows, pinned = table
    allowed, pins = np.array(rows, np.bool_), np.array(pinned, np.int32)
    stop = fillable(allowed, pins)
    assert ways(allowed, pins, stop)
    assert stop == len(pins) or not ways(allowed, pins, stop + 1)
    left, may = np.ones(allowed.shape[1], np.bool_), np.zeros(allowed.shape[1], np.bool_)
    so_far: list[int] = []
    for place in range(stop):
        if pins[place] >= 0:
            so_far.append(-1)
            continue
        count = open_at(place, stop, allowed, left, pins, may)
        possible = {way[place] for way in ways(allowed, pins, stop) if way[:place] == so_far}
        assert set(np.flatnonzero(may).tolist()) == possible
        assert count == len(possible) > 0
        so_far.append(min(possible))
        left[so_far[-1]] = False


EXCLUDED = np.array(
    [[True] * 5, [True, True, False, False, False], [True, True, True, False, False]], np.bool_
)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pins", [{}, {1: 4}])
def test_frequencies_match_propensities_under_exclusions_of_slots(rule, pins):
    policy = policy_of("p", PolicySpec("ui", rule=rule, floor=0.3))
    treatment, rng = Treatment(), np.random.default_rng(3)
    for _ in range(300):
        choice = treatment.choose(policy, NO_FEATURES, ARMS, rng)
        treatment.learn(policy, choice.trace, 0, float(choice.order[0] == 2))
    eligible = np.array([0, 1, 2, 4], np.int32)
    seen: Counter[tuple[int, ...]] = Counter()
    said: dict[tuple[int, ...], float] = {}
    draws = 5000
    for _ in range(draws):
        choice = treatment.choose(
            policy, NO_FEATURES, ARMS, rng, 3, eligible, pins, allowed=EXCLUDED
        )
        order = tuple(choice.order.tolist())
        assert len(order) == 3
        for place, arm in enumerate(order):
            assert place in pins or EXCLUDED[place, arm]
        seen[order] += 1
        claimed = prod(choice.propensities.tolist())
        assert said.setdefault(order, claimed) == pytest.approx(claimed, rel=1e-9)
    assert sum(said.values()) == pytest.approx(1.0, abs=0.02)
    chi2 = sum((seen[o] - draws * p) ** 2 / (draws * p) for o, p in said.items())
    freedom = max(len(said) - 1, 1)
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5, f"{chi2} with {freedom} degrees of freedom"


def test_evaluation_knows_what_slots_excluded():
    uniform = policy_of("u", PolicySpec("ui", rule="uniform"))
    rng = np.random.default_rng(5)
    logged = []
    for _ in range(100):
        choice = Treatment().choose(uniform, NO_FEATURES, ARMS, rng, 3, allowed=EXCLUDED)
        logged.append(Logged(choice.trace, [1.0, 0.0, 0.0]))
    assert judge(logged, uniform).weights == pytest.approx(np.ones(300))


def test_the_baseline_keeps_to_exclusions_and_to_what_slots_name():
    policy = policy_of("p", PolicySpec("ui", mode="off", baseline=("b", "a")))
    every = np.arange(5, dtype=np.int32)

    def order(*own, allowed=EXCLUDED):
        rows = baseline_order(policy, ARMS, 3, every, allowed, own)
        return "".join(ARMS.ids[row] for row in rows)

    assert order() == "bac"
    assert order(None, "b") == "abc"
    assert order("a", "a", "c") == "abc"
    assert order("e", "d", "a", allowed=None) == "eda"
    assert order("e", "d", "d") == "eba", "d may not stand there"


def test_slots_that_cannot_all_be_filled_are_filled_from_the_first():
    allowed = np.array([[True, False], [True, False], [True, True]], np.bool_)
    arms = arms_of([Arm("a"), Arm("b")])
    policy, rng = policy_of("p", PolicySpec("ui")), np.random.default_rng(1)
    choice = Treatment().choose(policy, NO_FEATURES, arms, rng, 3, allowed=allowed)
    assert choice.order.tolist() == [0]


def test_the_engine_has_no_slots_of_its_own_kind():
    shop = Shop()
    ask = {"surface": "product", "slots": [{"id": "s", "excludedActions": ["p1"]}]}
    with pytest.raises(AssertionError, match="policies of documents"):
        shop.decide("ada", ask)
