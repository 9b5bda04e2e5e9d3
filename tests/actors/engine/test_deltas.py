"""Shards that merged what they learned hold what one shard would that saw everything."""

import threading
from itertools import pairwise

import numpy as np
import pytest

from actors.engine.base import Base
from actors.engine.engine import Delta, NextAction
from actors.engine.history import History
from actors.model import Model
from tests.actors.engine.fakes import FakeItems, FakePeople, history_of

NONE = np.zeros(0, np.int32)
ITEMS = 30
PEOPLE = 60
HISTORY = ("uids", "times", "starts", "items")


def shard(people: FakePeople) -> NextAction:
    return NextAction(people, FakeItems(ITEMS), items_max=ITEMS, profiles_max=PEOPLE)


def stream(seed: int, n: int) -> list[tuple[int, int, int]]:
    generator = np.random.default_rng(seed)
    times = 1000 + np.cumsum(generator.integers(0, 400, n))
    people = generator.integers(0, PEOPLE, n)
    items = generator.integers(0, ITEMS, n)
    return list(zip(people.tolist(), items.tolist(), times.tolist(), strict=True))


def learn(learner: NextAction, people: FakePeople, events: list[tuple[int, int, int]]) -> None:
    for row, item, time_s in events:
        learner.learn(row, item, 1, 0.0, time_s)
        people.append(row, item, time_s)


def test_merged_shards_equal_one_that_saw_everything():
    seed = 21
    events = stream(seed, 900)
    everyone = FakePeople(PEOPLE)
    one = shard(everyone)
    learn(one, everyone, events)
    parts = [FakePeople(PEOPLE) for _ in range(3)]
    shards = [shard(people) for people in parts]
    model = Model()
    for start in range(0, 900, 300):
        for number, (learner, people) in enumerate(zip(shards, parts, strict=True)):
            owned = [e for e in events[start : start + 300] if e[0] % 3 == number]
            learn(learner, people, owned)
        # The order in which the shards' deltas come must not matter.
        order = [0, 1, 2] if start % 600 else [2, 0, 1]
        deltas = {i: shards[i].take_delta() for i in order}
        model.add(list(deltas.values()))
        for number, learner in enumerate(shards):
            base = model.base(ITEMS)
            learner.install(base, model.sums, model.name, deltas[number].number)
    wanted = history_of(one)
    for name in HISTORY:
        assert getattr(model.history, name).tolist() == getattr(wanted, name).tolist(), (seed, name)
    # Each stacker met its lessons with other weights: test_stacker says how far that carries.
    for learner in shards:
        learner.stacker.install(one.stacker.sums())
    for row in range(PEOPLE):
        own = one.rank(row, None, 10, 10**6, NONE, False)
        merged = shards[row % 3].rank(row, None, 10, 10**6, NONE, False)
        assert own.items.tolist() == merged.items.tolist(), (seed, row)
        assert own.probabilities == pytest.approx(merged.probabilities, abs=1e-6)


def test_events_after_a_delta_count_on_top_of_the_base_that_holds_it():
    people = FakePeople(PEOPLE)
    learner = shard(people)
    everything = np.arange(ITEMS, dtype=np.int32)
    learn(learner, people, stream(22, 200))
    delta = learner.take_delta()
    learn(learner, people, stream(23, 50))
    counts = learner._live.counts.copy()
    model = Model()
    model.add([delta])
    learner.install(model.base(ITEMS), model.sums, model.name, 1)
    assert learner._live.counts[:ITEMS].tolist() == counts.tolist()
    assert learner.version == "m1+50"
    model.add([learner.take_delta()])
    learner.install(model.base(ITEMS), model.sums, model.name, 2)
    assert learner.version == "m2+0"
    assert model.base(ITEMS).counts.tolist() == counts.tolist()
    assert learner.rank(3, everything, 5, 10**6, NONE, False).items.size == 5


def test_stackers_sums_lose_nothing_between_delta_and_install():
    people = FakePeople(PEOPLE)
    learner = shard(people)
    learn(learner, people, stream(24, 300))
    delta = learner.take_delta()
    learn(learner, people, stream(25, 300))
    before = learner.stacker.sums()
    model = Model()
    model.add([delta])
    learner.install(model.base(ITEMS), model.sums, model.name, 1)
    for kept, was in zip(learner.stacker.sums(), before, strict=True):
        assert kept == pytest.approx(was, rel=1e-6, abs=1e-6)


def test_a_batch_that_was_consolidated_here_is_in_the_next_delta():
    people = FakePeople(PEOPLE)
    learner = shard(people)
    rows, items, times = (np.array(column) for column in zip(*stream(30, 400), strict=True))
    learner.learn_batch(
        rows.astype(np.int32),
        items.astype(np.int32),
        np.ones(400, np.uint8),
        np.zeros(400, np.float32),
        times.astype(np.uint32),
    )
    learner.consolidate()
    learner.tune()
    assert learner.stacker.samples == 0, "tuning is no live sample"
    assert len(learner.take_delta().history.items) == 400
    assert len(learner.take_delta().history.items) == 0


def test_decisions_go_on_while_bases_are_built_and_swapped():
    people = FakePeople(PEOPLE)
    learner = shard(people)
    learn(learner, people, stream(26, 500))
    model = Model()
    ready: list[Base] = []
    model.add([learner.take_delta()])
    stop = threading.Event()

    def build() -> None:
        while not stop.is_set():
            ready.append(model.base(ITEMS))

    builder = threading.Thread(target=build)
    builder.start()
    try:
        wanted, swaps = None, 0
        for turn in range(1000):
            if ready:
                learner.install(ready.pop(), model.sums, model.name, 1)
                swaps += 1
            ranked = learner.rank(turn % PEOPLE, None, 5, 10**6, NONE, False)
            assert len(ranked.items) == 5
            if turn % PEOPLE == 7 and swaps:
                wanted = wanted or ranked.items.tolist()
                assert ranked.items.tolist() == wanted
    finally:
        stop.set()
        builder.join()
    assert swaps > 1


def test_every_decision_while_models_come_and_tuning_runs_is_of_exactly_one_version():
    """Two models are published in turns as the shard's loop does it, between decisions; another
    thread tunes meanwhile. An answer is that of the version it names, to the last bit until the
    tuning is adopted, and to rounding after."""
    people = FakePeople(PEOPLE)
    learner = shard(people)
    rows, items, times = (np.array(column) for column in zip(*stream(31, 3000), strict=True))
    for part in (slice(0, 1000), slice(1000, 3000)):
        learner.learn_batch(
            rows[part].astype(np.int32),
            items[part].astype(np.int32),
            np.ones(len(rows[part]), np.uint8),
            np.zeros(len(rows[part]), np.float32),
            times[part].astype(np.uint32),
        )
    for row, item, time_s in stream(32, 200):
        people.append(row, item, time_s)
    model = Model()
    model.add([learner.take_delta()])
    published = {model.name: (model.base(ITEMS), model.sums)}
    model.add([Delta(2, events_of(stream(33, 2000)), model.sums.minus(model.sums))])
    published[model.name] = (model.base(ITEMS), model.sums)

    def answers(row: int) -> tuple[list[int], list[float]]:
        ranked = learner.rank(row, None, 10, 10**6, NONE, False)
        return ranked.items.tolist(), [*ranked.scores.tolist(), *ranked.probabilities.tolist()]

    expected: dict[tuple[str, bool], list[tuple[list[int], list[float]]]] = {}
    for name, (base, sums) in published.items():
        learner.install(base, sums, name, 1)
        expected[name, False] = [answers(row) for row in range(PEOPLE)]
    before = learner.stacker.sums()
    tuner = threading.Thread(target=learner.tune)
    tuner.start()
    tuned, turns, last = [], 0, 500
    while turns < last:
        if tuner.is_alive():
            last = turns + 500
        name = f"m{1 + turns // 7 % 2}"
        if turns % 7 == 0:
            learner.install(*published[name], name, 1)
        row = turns % PEOPLE
        answer = answers(row)
        assert learner.version.startswith(f"{name}+")
        if answer != expected[name, False][row]:
            tuned.append((name, row, answer))
        turns += 1
    tuner.join()
    # The other answers are all of the one tuned version.
    for name in published:
        learner.install(*published[name], name, 1)
        expected[name, True] = [answers(row) for row in range(PEOPLE)]
    assert np.any(learner.stacker.sums().precision != before.precision), "tuning came to count"
    assert tuned
    for name, row, answer in tuned:
        assert answer[1] == pytest.approx(expected[name, True][row][1], abs=1e-4), (name, row)


def events_of(events: list[tuple[int, int, int]]) -> History:
    """A history in which every event is a sequence with the one before."""
    pairs = [(a[1], b[1], b[2]) for a, b in pairwise(events)]
    return History(
        np.arange(len(pairs), dtype=np.uint64) + 10**6,
        np.array([time for _, _, time in pairs], np.uint32),
        np.arange(len(pairs) + 1) * 2,
        np.array([item for a, b, _ in pairs for item in (a, b)], np.int32),
    )


def test_a_new_base_is_built_in_the_background():
    people = FakePeople(PEOPLE)
    people.heap[3] = 50
    learner = shard(people)
    events = stream(27, 1200)
    for row, item, time_s in events:
        learner.learn(row, item, 1, 0.0, time_s)
    learner.settle()
    assert learner.version.startswith("local-1")


def test_history_keeps_the_newest_sequences_within_its_bound():
    people = FakePeople(PEOPLE)
    learner = NextAction(
        people, FakeItems(ITEMS), items_max=ITEMS, profiles_max=PEOPLE, events_max=100
    )
    learn(learner, people, stream(29, 600))
    kept = history_of(learner)
    assert len(kept.items) <= 100
    assert kept.times.min() > 1000 + 100
