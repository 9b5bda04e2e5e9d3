"""What is learned of one choice: weights per surface, and probabilities that come true."""

import numpy as np
import pytest

from actors.engine.engine import NextAction
from actors.engine.shown import Shown
from actors.engine.stacker import Stacker
from actors.engine.sums import EVERYWHERE, SURFACES
from tests.actors.engine.fakes import FakeItems, FakePeople

CONTENT, PRODUCT = SURFACES["content"], SURFACES["product"]
N = 8


def choose(rng: np.random.Generator, truth: np.ndarray) -> tuple[np.ndarray, int]:
    """Features of N candidates, and one of them drawn by a softmax with the true weights."""
    features = rng.normal(size=(len(truth), N)).astype(np.float32)
    p = np.exp(truth @ features)
    return features, int(rng.choice(N, p=p / p.sum()))


def test_each_surface_learns_the_weights_of_its_own_people():
    rng = np.random.default_rng(1)
    truths = {CONTENT: np.array([1.5, -0.5, 0.0]), PRODUCT: np.array([-0.5, 1.0, 1.0])}
    stacker = Stacker(np.zeros(3))
    for _ in range(3000):
        for surface, truth in truths.items():
            features, chosen = choose(rng, truth)
            stacker.observe(features, N, chosen, 3, surface)
    for surface, truth in truths.items():
        assert stacker.weights[surface] == pytest.approx(truth, abs=0.25)
    between = (truths[CONTENT] + truths[PRODUCT]) / 2
    assert stacker.weights[EVERYWHERE] == pytest.approx(between, abs=0.5)


def test_a_surface_without_lessons_weighs_as_all_together_do():
    rng = np.random.default_rng(2)
    truth = np.array([1.0, -1.0])
    stacker = Stacker(np.zeros(2))
    for turn in range(400):
        features, chosen = choose(rng, truth)
        stacker.observe(features, N, chosen, 3, PRODUCT if turn % 2 else EVERYWHERE)
    assert stacker.weights[EVERYWHERE] == pytest.approx(truth, abs=0.3)
    assert stacker.weights[CONTENT].tolist() == stacker.weights[EVERYWHERE].tolist()
    assert stacker.missed_share(3, CONTENT) == stacker.missed_share(3)
    # Its first lessons move it a little from there, not back to the start.
    for _ in range(10):
        features, chosen = choose(rng, -truth)
        stacker.observe(features, N, chosen, 3, CONTENT)
    assert stacker.weights[CONTENT] == pytest.approx(truth, abs=0.4)


def test_what_two_learned_of_the_same_lessons_adds_up_to_what_one_did():
    """Up to what each shard did not know when it met its lessons: other weights, other fading."""
    rng = np.random.default_rng(3)
    truth = np.array([1.0, -0.7])
    one, start = Stacker(np.zeros(2)), Stacker(np.zeros(2)).sums()
    parts = [Stacker(np.zeros(2)) for _ in range(2)]
    for turn in range(2000):
        features, chosen = choose(rng, truth)
        for stacker in (one, parts[turn % 2]):
            stacker.observe(features, N, chosen, 1 + turn % 5, PRODUCT)
    merged = Stacker(np.zeros(2))
    total = start
    for part in parts:
        total = total.plus(part.sums().minus(start))
    merged.install(total)
    for surface in (EVERYWHERE, PRODUCT):
        # A belief's standard error here is 0.03: the linearisation costs less than that.
        assert merged.weights[surface] == pytest.approx(one.weights[surface], abs=0.03)
        assert merged.missed_share(2, surface) == pytest.approx(
            one.missed_share(2, surface), abs=1e-4
        )


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_sharpness_makes_the_first_answers_probability_true(scale: float):
    """Scores that are `scale` times too large are held in by weights that can't move."""
    rng = np.random.default_rng(4)
    truth = np.array([1.2, -0.8])
    stacker = Stacker(truth * scale, strength=1e9)
    said, came = [], []
    for turn in range(4000):
        features, chosen = choose(rng, truth)
        stacker.observe(features, N, chosen, 4)
        if turn >= 2000:
            z = stacker.sharpness(4) * (stacker.weights[0] @ features)
            p = np.exp(z - z.max())
            said.append(p.max() / p.sum() * (1 - stacker.missed_share(4)))
            came.append(p.argmax() == chosen)
    assert stacker.sharpness(4) == pytest.approx(1 / scale, rel=0.15)
    assert np.mean(said) == pytest.approx(np.mean(came), abs=0.03)


def test_an_item_teaches_the_surface_where_it_was_last_shown():
    shown = Shown()
    shown.note(7, CONTENT, np.array([1, 2], np.int32))
    shown.note(7, PRODUCT, np.array([2, 3], np.int32))
    assert [shown.surface(7, item) for item in (1, 2, 3, 4)] == [CONTENT, PRODUCT, PRODUCT, 0]
    assert shown.surface(8, 1) == 0
    assert shown.surface(-7, 1) == 0


def test_an_event_after_a_decision_teaches_that_surface_alone(monkeypatch):
    monkeypatch.setattr("actors.engine.engine.TUNE_EVERY", 1)
    people, items = FakePeople(50), FakeItems(20)
    learner = NextAction(people, items, items_max=20, profiles_max=50)
    rng = np.random.default_rng(5)
    for row in range(40):
        for step, item in enumerate(rng.integers(0, 20, 6).tolist()):
            learner.learn(row, item, 0, 0.0, 1000 + step)
            people.append(row, item, 1000 + step)
    start = learner.stacker.sums()
    assert start.missed[PRODUCT].sum() == start.missed[CONTENT].sum() == 0
    ranked = learner.rank(3, None, 5, 1010, np.zeros(0, np.int32), False, PRODUCT)
    learner.showed((3 * 7919).to_bytes(8, "big"), PRODUCT, ranked.items)
    learner.learn(3, int(ranked.items[2]), 0, 0.0, 1011)
    change = learner.stacker.sums().minus(start)
    assert change.missed[PRODUCT].sum() >= 1
    assert change.missed[CONTENT].sum() == 0
    assert change.missed[EVERYWHERE].sum() == pytest.approx(1, abs=0.05)
    assert np.any(learner.stacker.weights[PRODUCT] != learner.stacker.weights[CONTENT])
