"""The estimators against plain loops, known truths, and themselves."""

import math

import numpy as np
import pytest

from actors.evaluation import Logged, doubly_robust, ips, judge, snips
from actors.treatment.features import NO_FEATURES, Arm, arms_of, features_of
from actors.treatment.policy import PolicySpec, policy_of
from actors.treatment.treatment import Treatment

ARMS = arms_of([Arm(name) for name in "abcd"])
RATES = np.array([0.1, 0.2, 0.4, 0.15])


def logged(rule="uniform", slots=1, decisions=3000, seed=1):
    """Decisions of a logging policy over a known world, as they are recorded."""
    policy = policy_of("log", PolicySpec("ui", rule=rule, floor=0.3))
    treatment, rng = Treatment(), np.random.default_rng(seed)
    found = []
    for _ in range(decisions):
        context = features_of({"device": str(rng.integers(2))})
        choice = treatment.choose(policy, context, ARMS, rng, slots)
        rewards = (rng.random(len(choice.order)) < RATES[choice.order]).astype(float).tolist()
        for slot, reward in enumerate(rewards):
            treatment.learn(policy, choice.trace, slot, reward)
        found.append(Logged(choice.trace, rewards))
    return found


def test_estimators_agree_with_plain_loops():
    rng = np.random.default_rng(3)
    n = 500
    weights, rewards = rng.exponential(1.0, n), (rng.random(n) < 0.3).astype(float)
    predicted, expected, before = rng.random(n), rng.random(n), rng.exponential(1.0, n)
    total = weighted = corrected = squares = 0.0
    for w, r, q, e, b in zip(weights, rewards, predicted, expected, before, strict=True):
        total += w
        weighted += w * r
        corrected += b * e + w * (r - q)
        squares += w * w
    assert ips(weights, rewards).value == pytest.approx(weighted / n)
    assert snips(weights, rewards).value == pytest.approx(weighted / total)
    found = doubly_robust(weights, rewards, predicted, expected, before)
    assert found.value == pytest.approx(corrected / n)
    assert found.effective == pytest.approx(total**2 / squares)
    spread = math.sqrt(
        sum((w * r - weighted / n) ** 2 for w, r in zip(weights, rewards, strict=True))
    )
    error = spread / math.sqrt(n - 1) / math.sqrt(n)
    assert ips(weights, rewards).high - weighted / n == pytest.approx(1.959964 * error)


@pytest.mark.parametrize(("rule", "slots"), [("uniform", 1), ("thompson", 1), ("thompson", 3)])
def test_the_logging_policy_is_worth_what_it_earned(rule, slots):
    decisions = logged(rule, slots, 300)
    observed = float(np.mean([reward for one in decisions for reward in one.rewards]))
    for estimate in judge(decisions, None).estimates().values():
        assert estimate.value == pytest.approx(observed)
        assert estimate.effective == pytest.approx(300 * slots)


def test_replaying_the_uniform_policy_weighs_every_slot_one():
    judged = judge(logged("uniform", 3, 200), policy_of("u", PolicySpec("ui", rule="uniform")))
    assert judged.weights == pytest.approx(np.ones(600))


def test_intervals_hold_what_a_policy_is_truly_worth():
    """A candidate that always knows nothing but learns: c is best, .4; three logging policies."""
    for rule in ("uniform", "epsilon-greedy", "thompson"):
        decisions = logged(rule)
        candidate = policy_of("new", PolicySpec("ui", rule="fixed", floor=0.0))
        judged = judge(decisions[500:], candidate)
        for name, estimate in judged.estimates().items():
            assert estimate.low - 0.02 < 0.4 < estimate.high + 0.02, (rule, name, estimate)
            assert estimate.effective > 300


def test_doubly_robust_is_surer_than_ips():
    judged = judge(logged(), policy_of("new", PolicySpec("ui", rule="epsilon-greedy")))
    found = judged.estimates()
    assert found["dr"].high - found["dr"].low < found["ips"].high - found["ips"].low


def test_nothing_logged_is_no_number():
    found = judge([], policy_of("new", PolicySpec("ui"))).estimates()
    assert all(math.isnan(estimate.value) for estimate in found.values())


def test_a_pinned_slot_weighs_one():
    policy = policy_of("log", PolicySpec("ui"))
    choice = Treatment().choose(
        policy, NO_FEATURES, ARMS, np.random.default_rng(1), 2, None, {0: 3}
    )
    judged = judge(
        [Logged(choice.trace, [1.0, 0.0])], policy_of("u", PolicySpec("ui", rule="fixed"))
    )
    assert judged.weights[0] == 1.0
    assert judged.before.tolist() == [1.0, 1.0]
