"""Nodes and links die under load at level replica: what was acknowledged is in every copy, once."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import judge
from tests.faults.load import Load
from tests.faults.replicated import FAULTS, Replicated

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

ROUNDS = 2


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Replicated]:
    running = Replicated(tmp_path)
    yield running
    running.close()


def test_memory_backup_and_a_full_restart_have_all_that_was_acknowledged_once(
    replicated: Replicated, kept: Path
) -> None:
    generator = random.Random(11)
    faults = [name for name in FAULTS for _ in range(ROUNDS)]
    generator.shuffle(faults)
    replicated.wait_paired()
    with Load(replicated.wire, seed=11) as load:
        for name in faults:
            load.wait_answers(30)
            getattr(replicated, name)()
            time.sleep(generator.random() / 2)
        load.wait_answers(60)
    judge(load, kept)
    assert replicated.check_copies(load) == []
    replicated.restart()
    judge(load, kept)
