"""Handoffs under faults, and whether the checks would notice if they were done wrongly."""

from collections import Counter

import pytest

from tests.sim import virtual_loop
from tests.sim.handoff_world import BUGS, World, judge

SEEDS = 100
BUG_SEEDS = 1000


def play(seed: int, bug: str = "") -> tuple[World, list[str]]:
    world = World(seed, bug)
    virtual_loop.run(world.run())
    return world, judge(world)


def test_nothing_is_lost_or_doubled_whatever_fails_and_when():
    outcomes: Counter[str] = Counter()
    for seed in range(SEEDS):
        world, wrong = play(seed)
        assert wrong == [], f"seed {seed}"
        assert len(world.acked) >= 40
        outcomes.update(world.outcomes)
    # Both ways of ending have to have been tried.
    assert outcomes["done"] > SEEDS
    assert outcomes["aborted"] > SEEDS / 10


@pytest.mark.parametrize("bug", BUGS)
def test_each_planted_bug_is_noticed(bug: str):
    for seed in range(BUG_SEEDS):
        try:
            _, wrong = play(seed, bug)
        except (TimeoutError, AssertionError):
            return
        if wrong:
            return
    pytest.fail(f"{bug!r} was not noticed in {BUG_SEEDS} seeds")
