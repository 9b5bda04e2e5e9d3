"""The network between gateway and owner, and the owner's clock, misbehave under load."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import judge
from tests.faults.load import Load
from tests.faults.namespaces import FarOwner, Namespace
from tests.faults.owned import (
    NETWORK_FAULTS,
    Owner,
    cut,
    heal,
    hold,
    hold_answers,
    hold_requests,
)
from tests.faults.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

FAULT_S = 0.8
HOUR_S = 3600.0


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Owner]:
    running = Owner(tmp_path)
    yield running
    running.close()


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("fault", NETWORK_FAULTS)
def test_a_partition_costs_nothing_that_was_acknowledged(
    owned: Owner, kept: Path, fault: Callable[[TcpProxy], None], lost: bool
) -> None:
    """lost: what was under way in the partition never arrives; else it arrives late."""
    with Load(owned.wire, seed=3) as load:
        for _ in range(2):
            load.wait_answers(20)
            owned(fault)
            time.sleep(FAULT_S)
            if lost:
                owned(cut)
            owned(heal)
        load.wait_answers(20)
    judge(load, kept)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[FarOwner, Namespace]]:
    try:
        namespace = Namespace()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces may not be made here")
    running = None
    try:
        running = FarOwner(tmp_path, namespace)
        yield running, namespace
    finally:
        if running is not None:
            running.close()
        namespace.close()


@pytest.mark.parametrize("way", ["both", "there", "back"])
def test_packets_that_the_kernel_loses_cost_nothing_that_was_acknowledged(
    far: tuple[FarOwner, Namespace], kept: Path, way: str
) -> None:
    owner, namespace = far
    with Load(owner.wire, seed=6) as load:
        for _ in range(2):
            load.wait_answers(20)
            namespace.cut(way)
            time.sleep(FAULT_S)
            answered = load.answered()
            time.sleep(FAULT_S)
            assert load.answered() == answered, "something was answered through a cut"
            namespace.heal(way)
        load.wait_answers(20)
    judge(load, kept)


def test_a_flapping_network_only_delays(owned: Owner, kept: Path) -> None:
    with Load(owned.wire, seed=4) as load:
        for turn in range(12):
            owned((hold, hold_answers, hold_requests)[turn % 3])
            time.sleep(0.2)
            owned(heal)
            time.sleep(0.1)
        load.wait_answers(20)
    judge(load, kept)


def test_a_jumping_clock_loses_and_doubles_nothing(owned: Owner, kept: Path) -> None:
    with Load(owned.wire, seed=5) as load:
        for ahead_s in (HOUR_S, 0.0, -HOUR_S, HOUR_S, -HOUR_S):
            load.wait_answers(40)
            owned.ahead_s = ahead_s
        load.wait_answers(40)
    judge(load, kept)
    # What the log says is applied by its own times, whatever time it is now.
    owned.ahead_s = -2 * HOUR_S
    owned.restart()
    judge(load, kept)
