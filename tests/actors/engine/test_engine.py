"""The engine learns what follows what, and keeps its promises about what it never returns."""

import numpy as np
import pytest

from actors.engine import engine as engine_module
from actors.engine import features
from actors.engine.engine import NextAction
from actors.engine.vector import VectorPolicy
from tests.actors.engine.fakes import FakeItems, FakePeople, history_of

NONE = np.zeros(0, np.int32)


def engine(people_n: int = 50, items_n: int = 20) -> tuple[NextAction, FakePeople, FakeItems]:
    people, items = FakePeople(people_n), FakeItems(items_n)
    return NextAction(people, items, items_max=items_n, profiles_max=people_n), people, items


def feed(learner: NextAction, people: FakePeople, row: int, sequence: list[int]) -> None:
    for step, item in enumerate(sequence):
        learner.learn(row, item, 0, 0.0, 1000 + step)
        people.append(row, item, 1000 + step)


def test_what_followed_for_others_comes_first():
    learner, people, _ = engine()
    for row in range(10):
        feed(learner, people, row, [3, 7])
    feed(learner, people, 20, [3])
    assert learner.rank(20, None, 1, 1010, NONE, False).items.tolist() == [7]


def test_consolidating_changes_no_ranking():
    learner, people, _ = engine()
    rng = np.random.default_rng(5)
    for row in range(40):
        feed(learner, people, row, rng.integers(0, 20, 6).tolist())
    # Not learned: what a person did themselves is no evidence while it is only in the log.
    people.append(45, 3, 1000)
    people.append(45, 4, 1001)
    # All weights 1: what the components say, whatever the stacker makes of it.
    learner.stacker.weights[:] = 1.0
    everything = np.arange(20, dtype=np.int32)
    counted = [features.AFTER, features.DIRECT, features.BEFORE, features.POPULAR]
    before = learner.explain(45, everything)[:, counted]
    learner.consolidate()
    assert learner.explain(45, everything)[:, counted] == pytest.approx(before, abs=1e-5)
    assert np.abs(before).sum(axis=0).min() > 1.0, "each component has something to say"


def test_a_batch_leaves_the_history_that_single_events_leave():
    single, _, _ = engine()
    batched, _, _ = engine()
    rng = np.random.default_rng(6)
    rows = rng.integers(0, 40, 300).astype(np.int32)
    items = rng.integers(0, 20, 300).astype(np.int32)
    times = np.cumsum(rng.integers(0, 200, 300)).astype(np.uint32) + 1000
    for row, item, time in zip(rows.tolist(), items.tolist(), times.tolist(), strict=True):
        single.learn(row, item, 0, 0.0, time)
    batched.learn_batch(rows, items, np.zeros(300, np.uint8), np.zeros(300, np.float32), times)
    one, other = history_of(single), history_of(batched)
    assert len(one.uids) > 40, "pauses have split some people's events"
    for name in ("uids", "times", "starts", "items"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


def test_contributions_add_up_to_the_score():
    learner, people, _ = engine()
    rng = np.random.default_rng(10)
    for row in range(40):
        feed(learner, people, row, rng.integers(0, 20, 6).tolist())
    learner.consolidate()
    ranked = learner.rank(3, None, 20, 1010, NONE, False)
    assert learner.explain(3, ranked.items).sum(axis=1) == pytest.approx(ranked.scores, abs=1e-4)
    asked = learner.rank(3, np.array([4, 9], np.int32), 20, 1010, NONE, False)
    assert learner.explain(3, asked.items).sum(axis=1) == pytest.approx(asked.scores, abs=1e-4)


def test_events_contribute_what_the_score_of_a_shorter_history_lacks():
    learner, people, _ = engine()
    rng = np.random.default_rng(13)
    for row in range(40):
        feed(learner, people, row, rng.integers(0, 20, 6).tolist())
    learner.consolidate()
    history = [3, 9, 9, 4]
    for row, known in ((45, 4), (46, 3), (47, 2), (48, 1)):
        for step, item in enumerate(history[:known]):
            people.append(row, item, 1000 + step)
    everything = np.arange(20, dtype=np.int32)
    scores = {row: learner.explain(row, everything).sum(axis=1) for row in (*range(45, 49), -1)}
    changes = learner.explain_events(45, everything)
    assert changes.shape == (20, 4)
    for j, (longer, shorter) in enumerate([(45, 46), (46, 47), (47, 48), (48, -1)]):
        assert changes[:, j] == pytest.approx(scores[longer] - scores[shorter], abs=1e-4)
    assert changes.sum(axis=1) + scores[-1] == pytest.approx(scores[45], abs=1e-4)
    assert np.abs(changes).max() > 0.1
    assert learner.explain_events(-1, everything).shape == (20, 0)


def test_dead_excluded_and_seen_items_are_never_returned():
    learner, people, items = engine()
    rng = np.random.default_rng(7)
    for row in range(40):
        feed(learner, people, row, rng.integers(0, 20, 6).tolist())
    items.alive[4] = 0
    feed(learner, people, 45, [1, 2])
    ranked = learner.rank(45, None, 20, 1010, np.array([3], np.int32), True)
    assert not {1, 2, 3, 4} & set(ranked.items.tolist())
    explicit = learner.rank(
        45, np.arange(20, dtype=np.int32), 20, 1010, np.array([3], np.int32), True
    )
    assert sorted(explicit.items.tolist()) == [0, *range(5, 20)]
    again = learner.rank(45, None, 20, 1010, NONE, False)
    assert {1, 2, 3} <= set(again.items.tolist()), "a rule must not outlive its call"


def test_unknown_person_and_empty_model_get_an_answer():
    learner, _, _ = engine()
    assert len(learner.rank(-1, None, 5, 1000, NONE, False).items) == 5
    assert learner.rank(-1, np.array([4], np.int32), 5, 1000, NONE, False).items.tolist() == [4]


def test_probabilities_sum_to_at_most_one():
    learner, people, _ = engine()
    rng = np.random.default_rng(8)
    for row in range(40):
        feed(learner, people, row, rng.integers(0, 20, 6).tolist())
    total = learner.rank(3, None, 20, 1010, NONE, False).probabilities.sum()
    assert 0.5 < total <= 1.0001


def test_a_forgotten_row_does_not_continue_the_sequence_of_the_person_before():
    learner, people, _ = engine()
    learner.learn(1, 3, 0, 0.0, 1000)
    learner.forget(1)
    learner.learn(1, 7, 0, 0.0, 1001)
    feed(learner, people, 2, [3])
    ranked = learner.rank(2, None, 20, 1010, NONE, True)
    fresh = dict(zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True))
    assert fresh.get(7, 0.0) < 0.1


def test_a_new_item_with_known_attributes_is_not_cold():
    learner, people, items = engine(items_n=40)
    items.attribute_ids[:, 0] = np.arange(40) % 4
    rng = np.random.default_rng(11)
    for row in range(40):
        # Each person stays within one category; items 36 to 39 are new to everybody.
        feed(learner, people, row, (rng.integers(0, 9, 6) * 4 + row % 4).tolist())
    learner.consolidate()
    for row in range(4):
        new = learner.rank(row, np.arange(36, 40, dtype=np.int32), 4, 2000, NONE, False)
        assert new.items[0] == 36 + row
        assert new.scores[0] > new.scores[1]


def test_a_catalogue_of_one_item_has_one_answer_with_certainty():
    learner, people, _ = engine(items_n=1)
    feed(learner, people, 0, [0, 0, 0])
    ranked = learner.rank(0, None, 10, 2000, NONE, False)
    assert ranked.items.tolist() == [0]
    assert ranked.probabilities == pytest.approx([1.0])
    assert len(learner.rank(0, None, 10, 2000, NONE, True).items) == 0


def test_repeated_candidates_and_nobodys_person_are_answered():
    learner, _, _ = engine()
    ranked = learner.rank(-1, np.array([4, 4, 5], np.int32), 3, 1000, NONE, False)
    assert set(ranked.items.tolist()) == {4, 5}


def test_the_log_may_wrap_and_still_links_only_what_it_holds(monkeypatch):
    monkeypatch.setattr(engine_module, "LOG_EVENTS", 256)
    learner, people, _ = engine()
    rng = np.random.default_rng(12)
    for turn in range(40):
        feed(learner, people, turn % 40, rng.integers(0, 20, 40).tolist())
    assert len(history_of(learner).items) == 1600, (
        "decisions wait for a base before the log loses events"
    )


def test_no_action_is_as_likely_as_sessions_of_that_length_ended():
    learner, people, _ = engine(people_n=500)
    for row in range(400):
        feed(learner, people, row, [1, 2] if row % 4 else [1, 2, 3])
    learner.consolidate()
    people.rows["session_events"][450] = 1
    assert learner.rank(450, None, 3, 2000, NONE, False).no_action == pytest.approx(0, abs=0.01)
    people.rows["session_events"][450] = 2
    assert learner.rank(450, None, 3, 2000, NONE, False).no_action == pytest.approx(0.75, abs=0.01)
    assert learner.rank(-1, None, 3, 2000, NONE, False).no_action == 0.0


def test_vector_policy_is_the_dot_product():
    people, items = FakePeople(4), FakeItems(30)
    rng = np.random.default_rng(9)
    items.embeddings = rng.normal(size=(30, 8)).astype(np.float32)
    vector = rng.normal(size=8).astype(np.float32)
    people.set_vector(2, vector)
    policy = VectorPolicy(people, items, 30)
    candidates = np.arange(5, 30, dtype=np.int32)
    ranked = policy.rank(2, candidates, 6, np.array([9], np.int32))
    scores = items.embeddings @ vector
    wanted = sorted((i for i in range(5, 30) if i != 9), key=lambda i: -scores[i])[:6]
    assert ranked.items.tolist() == wanted
    assert ranked.scores == pytest.approx(scores[wanted], rel=1e-5)
