"""Counts fade by age where what people do changes, and only there."""

import math
from itertools import pairwise

import numpy as np
import pytest

from actors.engine import base as bases
from actors.engine.engine import NextAction
from actors.engine.history import History
from actors.engine.stacker import Stacker
from actors.engine.sums import DAY_S, HALF_LIVES_S
from actors.model import Model
from tests.actors.engine.fakes import FakeItems, FakePeople

ITEMS = 40
PEOPLE = 1500


def counted(history: History, half_life_s: float) -> dict[tuple[int, int], float]:
    """Direct transitions with their weights, by a plain loop."""
    found: dict[tuple[int, int], float] = {}
    for s, time in enumerate(history.times.tolist()):
        weight = 0.5 ** ((int(history.times.max()) - time) / half_life_s)
        sequence = history.items[history.starts[s] : history.starts[s + 1]].tolist()
        for pair in pairwise(sequence):
            found[pair] = found.get(pair, 0.0) + weight
    return found


def test_a_sequence_counts_half_after_a_half_life():
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 6, 60)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    times = np.sort(rng.integers(10**6, 10**6 + 40 * int(DAY_S), 60)).astype(np.uint32)
    items = rng.integers(0, ITEMS, starts[-1]).astype(np.int32)
    history = History(np.arange(60, dtype=np.uint64), times, starts, items)
    base = bases.build(history, ITEMS, 10 * DAY_S)
    wanted = counted(history, 10 * DAY_S)
    after = base.after
    found = {
        (item, int(after.items[k])): float(after.direct[k])
        for item in range(ITEMS)
        for k in range(after.indptr[item], after.indptr[item + 1])
        if after.direct[k]
    }
    assert found == pytest.approx(wanted, rel=1e-4)
    ages = (int(times[-1]) - times.astype(np.int64)) / (10 * DAY_S)
    assert base.counts.sum() == pytest.approx((0.5**ages * lengths).sum(), rel=1e-4)
    assert bases.freshness(times, math.inf).tolist() == [1.0] * 60


def tuned(changes: bool) -> NextAction:
    """An engine that has seen 100 days of pairs; with `changes` others follow from day 55 on."""
    people = FakePeople(PEOPLE)
    learner = NextAction(people, FakeItems(ITEMS), items_max=ITEMS, profiles_max=PEOPLE)
    rng = np.random.default_rng(2)
    columns: list[tuple[int, int, int]] = []
    for row in range(PEOPLE):
        day = row * 100 // PEOPLE
        item = int(rng.integers(0, ITEMS))
        for step in range(4):
            columns.append((row, item, 10**9 + day * int(DAY_S) + row % 15 * 5000 + step))
            item = (item + (7 if changes and day >= 55 else 3)) % ITEMS
    rows, items, times = (np.array(column) for column in zip(*columns, strict=True))
    learner.learn_batch(
        rows.astype(np.int32),
        items.astype(np.int32),
        np.ones(len(rows), np.uint8),
        np.zeros(len(rows), np.float32),
        times.astype(np.uint32),
    )
    learner.consolidate()
    learner.tune()
    learner.consolidate()
    return learner


def test_the_half_life_is_chosen_by_how_well_it_predicts():
    assert tuned(changes=False).stacker.sums().half_life_s == math.inf
    assert tuned(changes=True).stacker.sums().half_life_s < 30 * DAY_S


def test_what_several_shards_found_of_fading_adds_up_and_survives_its_file():
    stacker = Stacker(np.zeros(24))
    start = stacker.sums()
    gain = np.array([0.0, 1.0, 4.0, 3.0, -9.0])
    stacker.note_ages(gain)
    assert stacker.sums().half_life_s == math.inf, "no more than chance"
    twice = stacker.sums().plus(stacker.sums().minus(start))
    assert twice.half_life_s == HALF_LIVES_S[2]
    model = Model()
    model.sums = twice
    assert Model.from_bytes(model.to_bytes()).sums.half_life_s == twice.half_life_s
