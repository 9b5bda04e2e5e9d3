"""Processes are killed or stopped under load: nothing acknowledged is lost, doubled or reordered.

The same onehop goes through all of it; at the end everything is killed at once, twice, and what
all the tests before had acknowledged must be there still.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from serve.processes import Process
from tests.faults.conftest import judge, new_load
from tests.faults.load import Load
from tests.faults.onehop import (
    CONTROLLER,
    COORDINATOR,
    GATEWAY,
    MODEL,
    PROXY,
    SHARD,
    Onehop,
)

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(900)]

AGAIN = 20
"""Answers to calls that began after a fault: then it is over."""
SPARE_S = 60.0
survived: list[Load] = []


@pytest.mark.parametrize(
    ("word", "kills"),
    [(SHARD, 20), (GATEWAY, 10), (PROXY, 5), (CONTROLLER, 5), (MODEL, 3), (COORDINATOR, 5)],
)
def test_a_killed_process_costs_no_acknowledged_event(
    onehop: Onehop, kept: Path, word: str, kills: int
) -> None:
    generator = random.Random(word)
    with new_load(onehop, seed=kills) as load:
        load.wait_answers(AGAIN)
        for _ in range(kills):
            running = onehop.wait_shards(2) if word == SHARD else onehop.wait_named(word, 1)
            victim = generator.choice(running)
            os.kill(victim.pid, signal.SIGKILL)
            killed_ns = time.monotonic_ns()
            load.wait_answers(AGAIN)
            time.sleep(generator.random())
            print(f"{word}: longest call {load.longest_s(killed_ns):.2f} s")
    judge(load, kept)
    survived.append(load)


def wait_spare(onehop: Onehop) -> Process:
    """The process that waits to become a shard, once there is one."""
    deadline_s = time.monotonic() + SPARE_S
    # A coordinator that is about to start ends the spare of the one before.
    while True:
        try:
            onehop.call("GET", "/v1/nodes", timeout_s=SPARE_S)
            break
        except RuntimeError:
            assert time.monotonic() < deadline_s, "there is no coordinator"
            time.sleep(0.1)
    while not (found := onehop.spares()):
        assert time.monotonic() < deadline_s, "there is no spare"
        time.sleep(0.1)
    return found[0]


def test_a_spare_goes_on_as_the_shard_that_died(onehop: Onehop, kept: Path) -> None:
    with new_load(onehop, seed=21) as load:
        for _ in range(3):
            spare = wait_spare(onehop)
            os.kill(onehop.wait_shards(2)[0].pid, signal.SIGKILL)
            assert spare in onehop.wait_shards(2)
            load.wait_answers(AGAIN)
    judge(load, kept)


def test_a_spare_that_stands_still_is_not_waited_for_long(onehop: Onehop, kept: Path) -> None:
    with new_load(onehop, seed=22) as load:
        spare = wait_spare(onehop)
        os.kill(spare.pid, signal.SIGSTOP)
        os.kill(onehop.wait_shards(2)[0].pid, signal.SIGKILL)
        assert spare not in onehop.wait_shards(2)
        load.wait_answers(AGAIN)
        # It is dead to Ray by now, and can't tell of it while it stands still.
        with suppress(ProcessLookupError):
            os.kill(spare.pid, signal.SIGKILL)
    judge(load, kept)


def test_a_new_coordinator_keeps_the_shards_and_no_spare_of_the_old(
    onehop: Onehop, kept: Path
) -> None:
    with new_load(onehop, seed=23) as load:
        load.wait_answers(AGAIN)
        shards, spare = onehop.wait_shards(2), wait_spare(onehop)
        os.kill(onehop.wait_named(COORDINATOR, 1)[0].pid, signal.SIGKILL)
        deadline_s = time.monotonic() + SPARE_S
        while onehop.spares() in ([], [spare]):
            assert time.monotonic() < deadline_s, "a spare outlived its coordinator"
            time.sleep(0.1)
        assert onehop.shards() == shards
        load.wait_answers(AGAIN)
    judge(load, kept)


def test_both_shards_killed_at_once(onehop: Onehop, kept: Path) -> None:
    with new_load(onehop, seed=20) as load:
        for _ in range(5):
            load.wait_answers(AGAIN)
            for victim in onehop.wait_shards(2):
                os.kill(victim.pid, signal.SIGKILL)
    judge(load, kept)
    survived.append(load)


def test_a_shard_that_stands_still_is_replaced_and_never_heard_of_again(
    onehop: Onehop, kept: Path
) -> None:
    with new_load(onehop, seed=30) as load:
        for _ in range(3):
            load.wait_answers(AGAIN)
            victim = onehop.wait_shards(2)[0]
            os.kill(victim.pid, signal.SIGSTOP)
            time.sleep(6.0)
            # By now it was ended, and a successor has its log.
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGCONT)
        load.wait_answers(AGAIN)
    judge(load, kept)
    survived.append(load)


def test_all_is_there_after_the_whole_cluster_was_killed(onehop: Onehop, kept: Path) -> None:
    for _ in range(5):
        with new_load(onehop, seed=40) as load:
            load.wait_answers(200)
            # Callers are cut off in the middle of their calls, and go on with the next cluster.
            onehop.kill()
            onehop.start()
            load.wait_answers(AGAIN)
        survived.append(load)
    for load in survived:
        judge(load, kept)
