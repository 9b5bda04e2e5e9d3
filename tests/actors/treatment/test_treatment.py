"""What the treatment engine promises: exact propensities, sums that add up, learning."""

from collections import Counter
from itertools import pairwise
from math import erf, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.treatment import belief, choosing
from actors.treatment.features import NO_FEATURES, Arm, Value, arms_of, features_of
from actors.treatment.policy import RULES, THOMPSON, PolicySpec, policy_of
from actors.treatment.traces import traced
from actors.treatment.treatment import Treatment
from cluster.errors import RequestError

FIVE = arms_of([Arm(name, {"price": 5.0 + i}) for i, name in enumerate("abcde")])
RATES = {"a": 0.05, "b": 0.1, "c": 0.3, "d": 0.12, "e": 0.2}


def taught(seed=3, policy=None, rounds=400):
    """A treatment that has seen some of every arm; not enough to be sure."""
    treatment, rng = Treatment(), np.random.default_rng(seed)
    policy = policy or policy_of("p", PolicySpec("ui"))
    for _ in range(rounds):
        context = features_of({"device": str(rng.integers(2))})
        choice = treatment.choose(policy, context, FIVE, rng)
        rate = RATES[FIVE.ids[choice.order[0]]]
        treatment.learn(policy, choice.trace, 0, float(rng.random() < rate))
    return treatment


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("slots", [1, 3])
def test_empirical_frequencies_match_the_recorded_propensities(rule, slots):
    """Orders are drawn as often as the product of their propensities says, by a chi-square test."""
    policy = policy_of("p", PolicySpec("ui", rule=rule, floor=0.2))
    treatment, rng = taught(), np.random.default_rng(11)
    context, eligible = features_of({"device": "1"}), np.array([0, 1, 3, 4], np.int32)
    seen: Counter[tuple[int, ...]] = Counter()
    said: dict[tuple[int, ...], float] = {}
    draws = 8000
    for _ in range(draws):
        choice = treatment.choose(policy, context, FIVE, rng, slots, eligible)
        order = tuple(choice.order.tolist())
        seen[order] += 1
        claimed = prod(choice.propensities.tolist())
        assert said.setdefault(order, claimed) == pytest.approx(claimed, rel=1e-9)
    assert sum(said.values()) == pytest.approx(1.0, abs=0.02)
    chi2 = sum((seen[o] - draws * p) ** 2 / (draws * p) for o, p in said.items())
    freedom = max(len(said) - 1, 1)
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5, f"{chi2} with {freedom} degrees of freedom"


def test_thompson_draws_an_arm_as_often_as_a_sample_of_the_posterior_is_highest():
    """Against the definition: sample every arm's log-odds, count who is highest."""
    rng = np.random.default_rng(5)
    for values in (np.ones(4, np.float32), np.array([1.0, 2.0, 3.0, 0.5], np.float32)):
        beliefs = np.zeros((4, 4))
        beliefs[:, 0] = rng.normal(-1.0, 0.7, 4)
        beliefs[:, 1] = rng.uniform(0.1, 0.8, 4)
        computed = choosing.first_slot(beliefs, values, THOMPSON, 1.0, 0.0)
        samples = rng.normal(beliefs[:, 0], beliefs[:, 1], (200_000, 4))
        worth = values / (1.0 + np.exp(-samples))
        counted = np.bincount(worth.argmax(1), minlength=4) / len(samples)
        assert computed == pytest.approx(counted, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(sorted(RULES)),
    eligible=st.lists(st.integers(0, 4), unique=True, max_size=5),
    pinned=st.dictionaries(st.integers(0, 3), st.integers(0, 4), max_size=2).filter(
        lambda pins: len(set(pins.values())) == len(pins)
    ),
    slots=st.integers(1, 5),
    values=st.lists(st.sampled_from([0.0, 1.0, 7.5]), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_only_what_is_eligible_is_chosen_once_and_pins_stand_where_they_belong(
    rule, eligible, pinned, slots, values, seed
):
    arms = arms_of([Arm(name, {}, value) for name, value in zip("abcde", values, strict=True)])
    policy = policy_of("p", PolicySpec("ui", rule=rule))
    allowed = np.array(eligible, np.int32)
    rng = np.random.default_rng(seed)
    choice = Treatment().choose(policy, NO_FEATURES, arms, rng, slots, allowed, pinned)
    order = choice.order.tolist()
    assert len(set(order)) == len(order)
    for place, arm in enumerate(order):
        if place in pinned:
            assert arm == pinned[place]
            assert choice.propensities[place] == 1.0
        else:
            assert arm in eligible
            assert arm not in pinned.values()
            assert choice.propensities[place] >= policy.floor / 5 - 1e-12
    assert (choice.propensities > 0).all()
    assert (choice.propensities <= 1.0 + 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(
    means=st.lists(st.floats(-8, 8), min_size=1, max_size=12),
    sd=st.floats(1e-4, 3),
    floor=st.floats(0, 1),
)
def test_probabilities_sum_to_one_and_keep_the_floor(means, sd, floor):
    beliefs = np.zeros((len(means), 4))
    beliefs[:, 0], beliefs[:, 1] = means, sd
    values = np.ones(len(means), np.float32)
    for rule in RULES.values():
        out = choosing.first_slot(beliefs, values, rule, 1.0, floor)
        assert out.sum() == pytest.approx(1.0)
        assert (out >= floor / len(means) - 1e-12).all()


def test_it_learns_which_arm_is_best():
    treatment, policy = taught(rounds=4000), policy_of("p", PolicySpec("ui"))
    for device in ("0", "1"):
        chances = treatment.predict(policy, features_of({"device": device}), FIVE)
        assert FIVE.ids[int(chances.argmax())] == "c"
        assert chances[2] == pytest.approx(0.3, abs=0.05)


def test_shards_that_merge_believe_what_one_that_saw_all_believes():
    """Four shards, merged every 200 outcomes, against one shard: nearer than either is sure.

    What is counted is the same to the last outcome.
    """
    policy = policy_of("p", PolicySpec("ui"))
    rng = np.random.default_rng(9)
    one, shards = Treatment(), [Treatment() for _ in range(4)]
    total = np.zeros(belief.SIZE)
    for n in range(8000):
        device = str(rng.integers(3))
        arm = np.array([rng.integers(5)], np.int32)
        context = features_of({"device": device})
        choice = one.choose(policy, context, FIVE, rng, 1, arm)
        reward = float(rng.random() < RATES["abcde"[arm[0]]] * (1 + int(device)) / 2)
        one.learn(policy, choice.trace, 0, reward)
        shards[n % 4].learn(policy, choice.trace, 0, reward)
        if n % 200 == 199:
            for shard in shards:
                delta = shard.take()
                assert delta is not None
                total[delta.slots] += delta.changes
            for shard in shards:
                shard.install(total, f"m{n}")
    for device in "012":
        context = features_of({"device": device})
        for index in range(5):
            alone = one.explain(policy, context, FIVE, index)
            merged = shards[index % 4].explain(policy, context, FIVE, index)
            doubt = alone.pop("uncertainty")
            assert merged.pop("uncertainty") == pytest.approx(doubt, rel=0.07)
            assert abs(sum(merged.values()) - sum(alone.values())) < 0.75 * doubt
    for arm in FIVE.hashes:
        at = 2 * belief.counts_slot(policy.salt, arm)
        assert total[at : at + 2] == pytest.approx(one._sums[at : at + 2], rel=1e-9)


def test_what_was_learned_between_take_and_install_is_kept():
    policy = policy_of("p", PolicySpec("ui"))
    treatment = taught()
    first = treatment.take()
    total = np.zeros(belief.SIZE)
    total[first.slots] = first.changes
    choice = treatment.choose(policy, NO_FEATURES, FIVE, np.random.default_rng(1))
    treatment.learn(policy, choice.trace, 0, 1.0)
    before = treatment.predict(policy, NO_FEATURES, FIVE)
    treatment.install(total, "m1")
    assert treatment.predict(policy, NO_FEATURES, FIVE) == pytest.approx(before)
    second = treatment.take()
    total[second.slots] += second.changes
    fresh = Treatment()
    fresh.install(total, "m2")
    assert fresh.predict(policy, NO_FEATURES, FIVE) == pytest.approx(before)


def test_a_fresh_policy_is_indifferent_and_a_value_breaks_the_tie():
    arms = arms_of([Arm("cheap", value=1.0), Arm("dear", value=5.0), Arm("free", value=0.0)])
    policy = policy_of("p", PolicySpec("offer", floor=0.0))
    chances = Treatment().probabilities(policy, NO_FEATURES, arms)
    assert chances[1] > 0.8
    assert chances[2] == 0.0
    same = Treatment().probabilities(policy_of("q", PolicySpec("ui")), NO_FEATURES, FIVE)
    assert same == pytest.approx(np.full(5, 0.2), abs=0.05)


def test_a_worse_slot_is_not_the_arms_fault():
    """Only position differs: both arms are as good, the second slot gets a tenth of the clicks."""
    policy = policy_of("p", PolicySpec("ui", rule="uniform"))
    arms = arms_of([Arm("a"), Arm("b")])
    treatment, rng = Treatment(), np.random.default_rng(2)
    for _ in range(3000):
        # "a" stands first in 9 of 10, so a model without slots would find it better.
        pins = {0: 0} if rng.random() < 0.8 else {}
        choice = treatment.choose(policy, NO_FEATURES, arms, rng, 2, None, pins)
        for place in (0, 1):
            rate = (0.3, 0.03)[place]
            treatment.learn(policy, choice.trace, place, float(rng.random() < rate))
    chances = treatment.predict(policy, NO_FEATURES, arms)
    assert chances[0] == pytest.approx(chances[1], abs=0.04)
    shown = treatment.choose(policy, NO_FEATURES, arms, rng, 2)
    assert shown.chances[0] > 4 * shown.chances[1]


def test_off_and_shadow_show_the_baseline():
    for mode in ("off", "shadow"):
        spec = PolicySpec("ui", mode=mode, baseline=("d", "b"))
        policy = policy_of("p", spec)
        rng = np.random.default_rng(1)
        choice = taught().choose(policy, NO_FEATURES, FIVE, rng, 3, np.array([0, 1, 3], np.int32))
        assert [FIVE.ids[a] for a in choice.order] == ["d", "b", "a"]
        assert choice.propensities.tolist() == [1.0, 1.0, 1.0]
        assert not choice.acted
        assert len(choice.shadow) == (3 if mode == "shadow" else 0)


def imitated(mode, rounds=3000, seed=6):
    """How often a policy would do as a baseline that knows the device, of the last 500; the
    baseline earns 30 %, everything else nothing that anybody sees."""
    policy = policy_of("p", PolicySpec("ui", mode=mode))
    treatment, rng = Treatment(), np.random.default_rng(seed)
    agreed = []
    for _ in range(rounds):
        device = int(rng.integers(2))
        choice = treatment.choose(
            policy, features_of({"device": str(device)}), FIVE, rng, baseline=("ad"[device],)
        )
        assert FIVE.ids[choice.order[0]] == "ad"[device]
        agreed.append(choice.shadow[0] == choice.order[0])
        alike = traced(choice.trace).alike
        assert 0.0 < alike[0] <= 1.0
        treatment.learn(policy, choice.trace, 0, float(rng.random() < 0.3))
    return float(np.mean(agreed[-500:]))


def test_an_apprentice_learns_to_do_as_the_baseline_does():
    assert imitated("apprentice") > 0.9


def test_how_likely_it_was_to_do_the_same_is_how_often_it_does():
    """`alike` of a trace against frequencies of draws, with pins and slots that exclude arms."""
    policy = policy_of("p", PolicySpec("ui", mode="shadow", floor=0.1, baseline=("b", "e")))
    treatment, rng = taught(policy=policy), np.random.default_rng(8)
    allowed = np.ones((3, 5), np.bool_)
    allowed[2, [0, 2]] = False
    same, claimed = np.zeros(3), set()
    for _ in range(4000):
        choice = treatment.choose(policy, NO_FEATURES, FIVE, rng, 3, pins={1: 3}, allowed=allowed)
        claimed.add(tuple(traced(choice.trace).alike.round(12).tolist()))
        same += np.cumprod(choice.order == choice.shadow)
    (alike,) = claimed
    assert alike[1] == 1.0
    assert same / 4000 == pytest.approx(np.cumprod(alike), abs=0.025)


def test_a_person_is_known_by_what_they_did():
    """Everybody likes a, one person likes b: with memory b is found for them alone."""
    policy = policy_of("p", PolicySpec("ui", rule="uniform"))
    arms, rng = arms_of([Arm("a"), Arm("b")]), np.random.default_rng(4)
    treatment = Treatment()
    likes = [0 if rng.random() < 0.7 else 1 for _ in range(200)]
    memories = [b""] * len(likes)
    for _ in range(20):
        for person, liked in enumerate(likes):
            choice = treatment.choose(
                policy, NO_FEATURES, arms, rng, 1, None, None, memories[person]
            )
            reward = float(rng.random() < (0.6 if choice.order[0] == liked else 0.05))
            treatment.learn(policy, choice.trace, 0, reward)
            memories[person] = treatment.remember(policy, memories[person], choice.trace, 0, reward)
    right = sum(
        int(treatment.predict(policy, NO_FEATURES, arms, memories[person]).argmax()) == liked
        for person, liked in enumerate(likes)
    )
    assert right >= 0.9 * len(likes)
    assert max(map(len, memories)) <= 40


def test_a_choice_teaches_what_is_preferred_side_by_side():
    """A conditional logit with a known price effect: chances match those it was made from."""
    policy = policy_of("p", PolicySpec("offer", outcome="choice", rule="uniform"))
    treatment, rng = Treatment(), np.random.default_rng(8)
    prices = np.array([4.0, 8.0, 16.0])
    arms = arms_of([Arm(f"o{i}", {"price": price}) for i, price in enumerate(prices)])
    utility = -0.8 * np.log1p(prices)
    true = np.exp(utility) / np.exp(utility).sum()
    for _ in range(3000):
        choice = treatment.choose(policy, NO_FEATURES, arms, rng, 3)
        taken = rng.choice(3, p=true)
        treatment.learn_choice(policy, choice.trace, choice.order.tolist().index(taken))
    assert treatment.predict(policy, NO_FEATURES, arms) == pytest.approx(true, abs=0.03)


def test_explained_parts_add_up_to_the_log_odds():
    treatment, policy = taught(), policy_of("p", PolicySpec("ui"))
    context = features_of({"device": "1", "age": 33})
    parts = treatment.explain(policy, context, FIVE, 2)
    sure = parts.pop("uncertainty")
    odds = sum(parts.values()) / (1 + np.pi * sure**2 / 8) ** 0.5
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(treatment.predict(policy, context, FIVE)[2])


def test_what_is_retold_of_a_decision_names_what_mattered():
    """Devices differ in what they like, days do not matter: the parts add up, by name."""
    policy = policy_of("p", PolicySpec("ui", rule="uniform"))
    arms, treatment, rng = arms_of([Arm("a"), Arm("b")]), Treatment(), np.random.default_rng(1)
    for _ in range(3000):
        device = int(rng.integers(2))
        known: dict[str, Value] = {"device": f"d{device}", "age": 30, "none": None}
        known["day"] = f"day{rng.integers(3)}"
        choice = treatment.choose(policy, features_of(known), arms, rng)
        rate = 0.4 if choice.order[0] == device else 0.05
        treatment.learn(policy, choice.trace, 0, float(rng.random() < rate))
    context = features_of({"device": "d1", "age": 30, "day": "day0"})
    choice = treatment.choose(policy, context, arms, rng, eligible=np.array([1], np.int32))
    told = treatment.retold(policy, choice.trace, 0)
    assert told.parts == treatment.explain(policy, context, arms, 1)
    assert told.features.keys() == {"device", "age", "day"}
    assert told.features["device"] > max(0.2, 2 * abs(told.features["day"]))


def test_the_normal_distribution_is_near_enough():
    for x in np.linspace(-5, 5, 101):
        assert choosing._below(x) == pytest.approx(0.5 * (1 + erf(x / 2**0.5)), abs=2e-4)
    below = [choosing._below(x) for x in np.linspace(-7, 7, 500)]
    assert all(a <= b for a, b in pairwise(below))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (PolicySpec("ui", reward_min=1.0), "rewardMax"),
        (PolicySpec("ui", default_reward=2.0), "defaultReward"),
        (PolicySpec("ui", baseline=("a", "a")), "baseline"),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(spec, field):
    with pytest.raises(RequestError) as refused:
        policy_of("p", spec)
    assert refused.value.field == field


def test_arms_must_differ():
    with pytest.raises(ValueError, match="differ"):
        arms_of([Arm("a"), Arm("a")])
    with pytest.raises(ValueError, match="value"):
        arms_of([Arm("a", value=-1.0)])


def test_a_trace_says_what_every_candidate_was_like():
    """Also where pins and exclusions put candidates into another order than the arms'."""
    arms = arms_of([Arm("a", {"x": 1.0}), Arm("b"), Arm("c", {"x": 7.0, "y": "z"})])
    policy, rng = policy_of("p", PolicySpec("ui")), np.random.default_rng(1)
    for eligible, pins in (([0, 1, 2], {0: 0}), ([2, 1], {}), ([1], {}), ([], {1: 2, 0: 1})):
        allowed = np.array(eligible, np.int32)
        choice = Treatment().choose(policy, features_of({"d": "e"}), arms, rng, 3, allowed, pins)
        seen = traced(choice.trace)
        assert seen.arms[seen.shown].tolist() == arms.hashes[choice.order].tolist()
        for at, arm in enumerate(seen.arms.tolist()):
            own = int(np.flatnonzero(arms.hashes == arm)[0])
            here = slice(seen.starts[at], seen.starts[at + 1])
            there = slice(arms.starts[own], arms.starts[own + 1])
            assert seen.features.hashes[here].tolist() == arms.features.hashes[there].tolist()
            assert seen.features.values[here].tolist() == arms.features.values[there].tolist()
