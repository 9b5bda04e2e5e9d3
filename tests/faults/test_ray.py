"""Ray's own processes die under load: onehop starts itself again, and nothing was lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from serve.cli import SERVED_S_MIN
from serve.processes import alive
from tests.faults.conftest import SMALL, judge, new_load, put_item
from tests.faults.onehop import GCS, RAYLET, Onehop

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("word", "kills"), [(RAYLET, 5), (GCS, 3)], ids=["raylet", "gcs"])
def test_onehop_starts_again_when_ray_breaks(
    tmp_path: Path, kept: Path, word: str, kills: int
) -> None:
    with Onehop(tmp_path, **SMALL) as onehop:
        put_item(onehop)
        with new_load(onehop, seed=80) as load:
            for number in range(kills):
                load.wait_answers(200)
                # One that breaks at once is not started again.
                time.sleep(SERVED_S_MIN)
                before = onehop.processes()
                (victim,) = onehop.named(word)
                os.kill(victim.pid, signal.SIGKILL)
                onehop.wait_served(number + 2)
                load.wait_answers(100)
                # Nothing of the broken one is left beside the new one, but the command itself.
                assert [process for process in before if alive(process)] == before[:1]
        judge(load, kept)
