"""The protocol under thousands of seeds of faults, and the proof that the simulation can fail."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.sim.bugs import BUGS
from tests.sim.run import play

SEEDS = 10_000
PART = 250
BUG_SEEDS = 1000


def play_part(first: int) -> tuple[list[str], int]:
    """(what failed, how often answers left as a pair)."""
    failures, paired = [], 0
    for seed in range(first, first + PART):
        try:
            paired += play(seed).foreign
        except Exception as error:
            failures.append(f"python -m tests.sim --seed {seed}: {error!r}")
    return failures, paired


def test_ten_thousand_seeds_keep_every_promise() -> None:
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        parts = list(pool.map(play_part, range(0, SEEDS, PART)))
    assert not [failure for failures, _ in parts for failure in failures]
    # A run without a takeover by a backup would prove little.
    assert sum(foreign for _, foreign in parts) > SEEDS / 10


def test_a_seed_gives_the_same_run_again() -> None:
    first, second = play(12), play(12)
    assert (first.steps, first.now_s, first.table) == (second.steps, second.now_s, second.table)
    assert first.history.longest == second.history.longest


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_a_planted_bug_is_found(bug: str) -> None:
    for seed in range(BUG_SEEDS):
        try:
            play(seed, BUGS[bug]())
        except Exception:
            return
    pytest.fail(f"{bug} was not found in {BUG_SEEDS} seeds")
