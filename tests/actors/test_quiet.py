"""Files that are written and deleted bit by bit, and a thread that yields."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from actors import quiet
from actors.quiet import (
    FREED_BYTES,
    GONE,
    PIECE_BYTES,
    WORK_S,
    Pace,
    quietly,
    remove_resting,
    write_resting,
)


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("actors.quiet.time.sleep", found.append)
    return found


def filled(path: Path, size: int) -> Path:
    path.write_bytes(b"x" * size)
    return path


def test_work_rests_as_long_as_it_took_unless_somebody_waits(rests: list[float]) -> None:
    now_s = 0.0
    pace, hurried = Pace(clock=lambda: now_s), Pace(hurried=True)
    for worked_s in (WORK_S / 2, WORK_S, 4 * WORK_S):
        now_s += worked_s
        pace.rest()
        hurried.rest()
    # The first was too short, and is counted with the second.
    assert rests == pytest.approx([1.5 * WORK_S, 4 * WORK_S])


def test_what_is_written_is_all_there_and_the_disk_rests_after_each_piece(
    tmp_path: Path, rests: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet, "WORK_S", 0.0)
    data = os.urandom(3 * PIECE_BYTES + 1)
    with (tmp_path / "file").open("wb") as file:
        write_resting(file, memoryview(data))
    assert (tmp_path / "file").read_bytes() == data
    assert len(rests) == 4


def test_files_are_deleted_bit_by_bit(tmp_path: Path, rests: list[float]) -> None:
    large, small = filled(tmp_path / "large", 3 * FREED_BYTES + 1), filled(tmp_path / "small", 1)
    filled(tmp_path / "kept", 1)
    # As a process leaves one that ended in the middle.
    filled(tmp_path / f"before{GONE}", 2 * FREED_BYTES)
    remove_resting(tmp_path, [large, small])
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert len(rests) == 3 + 1


def test_who_reads_a_file_that_is_deleted_reads_all_of_it(
    tmp_path: Path, rests: list[float]
) -> None:
    path = filled(tmp_path / "read", 3 * FREED_BYTES)
    linked = filled(tmp_path / "linked", 3 * FREED_BYTES)
    other = tmp_path / "other"
    other.mkdir()
    os.link(linked, other / "linked")
    with path.open("rb") as reader:
        remove_resting(tmp_path, [path, linked])
        assert len(reader.read()) == 3 * FREED_BYTES
    assert (other / "linked").stat().st_size == 3 * FREED_BYTES
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert not rests


def test_only_the_quiet_thread_yields() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    assert asyncio.run(quietly(priority)) == max(before, quiet.NICE)
    assert priority() == before


def test_who_answers_comes_first_and_its_quiet_thread_still_yields() -> None:
    """In a process of its own, since a niceness can't always be taken back."""
    script = """
import asyncio, os, resource, threading
from actors.quiet import NICE, come_first, quietly, starting_niceness

CAP_SYS_NICE = 23
STATUS = dict(line.split(":") for line in open("/proc/self/status"))
MAY_LOWER = int(STATUS["CapEff"], 16) >> CAP_SYS_NICE & 1 or (
    resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20
)

def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

async def run():
    assert await quietly(niceness) == NICE
    began = starting_niceness()
    assert began == (NICE if MAY_LOWER else 0) and niceness() == 0
    os.setpriority(os.PRIO_PROCESS, 0, began)
    come_first()
    assert niceness() == 0
    assert await quietly(niceness) == NICE

asyncio.run(run())
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
