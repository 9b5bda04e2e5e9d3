"""Sums of a comparison against plain loops over all decisions, and against a known world."""

from __future__ import annotations

import random

import numpy as np
import pytest

from actors.comparison import VERSIONS_MAX, Compared, compared_of, count, merged
from actors.evaluation import ips, snips


def test_sums_say_what_the_estimators_say_of_all_decisions() -> None:
    generator = random.Random(4)
    sums = [Compared(3, "shadow"), Compared(3, "shadow")]
    weights, rewards = [], []
    for i in range(600):
        weight, reward = generator.random(), float(generator.random() < 0.3) * 2.5
        count(sums[i % 2], [reward], i % 3 == 0, [weight])
        weights.append(weight)
        rewards.append(reward)
    (both,) = merged([[sums[0]], [sums[1]]])
    w, r = np.array(weights), np.array(rewards)
    assert both.n == both.slots == 600
    assert both.agreed == 200
    assert both.ips == pytest.approx(ips(w, r))
    assert both.snips == pytest.approx(snips(w, r))
    assert both.acted == pytest.approx(ips(np.ones(600), r))


def test_slots_of_one_decision_are_one_sample() -> None:
    one = Compared(1, "shadow")
    for _ in range(2):
        count(one, [1.0, 0.0, 2.0], 1, [0.5, 0.25, 0.25])
    assert (one.n, one.slots, one.agreed) == (2, 6, 2)
    assert one.acted.value == pytest.approx(1.0)
    assert one.ips.value == pytest.approx((0.5 + 0.5) / 3)
    assert one.ips.low == pytest.approx(one.ips.high), "both decisions were the same"


def test_the_newest_versions_are_kept_apart() -> None:
    every: dict[str, list[Compared]] = {}
    for version in (2, 1, 5, 4, 3, 1):
        found = compared_of(every, "p", version, "shadow")
        if found is not None:
            count(found, [1.0], 1, [1.0])
    assert [one.version for one in every["p"]] == [3, 4, 5][-VERSIONS_MAX:]
    assert compared_of(every, "p", 1, "shadow") is None
    assert compared_of(every, "p", 9, "") is None, "decided before versions were noted"


def test_nothing_counted_is_no_number() -> None:
    empty = Compared(1, "shadow")
    assert [np.isnan(one.value) for one in (empty.acted, empty.ips, empty.snips)] == [True] * 3
