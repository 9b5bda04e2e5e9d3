"""What the disk does to a onehop under load: it fails, or is full."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import SMALL, judge, new_load, put_item
from tests.faults.faults import failing
from tests.faults.onehop import SHARD, Onehop
from tests.history import check

pytestmark = [pytest.mark.cluster, pytest.mark.faults]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_a_disk_error_ends_the_owner_before_it_acknowledges(
    onehop: Onehop, kept: Path, call: str
) -> None:
    with new_load(onehop, seed=50) as load:
        for _ in range(5):
            load.wait_answers(20)
            victim = onehop.wait_shards(2)[0]
            with failing(victim.pid, call):
                deadline = time.monotonic() + 30
                while victim in onehop.named(SHARD):
                    assert time.monotonic() < deadline, "it goes on after a failed write"
                    time.sleep(0.05)
        load.wait_answers(20)
    judge(load, kept)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at `folder`; skips where that may not be made."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "onehop-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_makes_read_only_and_room_makes_writable_again(
    tmp_path: Path, kept: Path
) -> None:
    onehop = Onehop(tmp_path, **SMALL | {"ONEHOP_SHARDS": 1, "ONEHOP_WAL_SEGMENT_BYTES": 1 << 17})
    with small_disk(onehop.data, 4 << 20), onehop:
        put_item(onehop)
        ballast = onehop.data / "ballast"
        with new_load(onehop, seed=60) as load:
            for _ in range(5):
                load.wait_answers(50)
                _fill(ballast)
                _wait_refusing(onehop)
                # Reads are served, and show what was acknowledged.
                wrong = check(list(load.history), load.final())
                assert not [violation for violation in wrong if violation.rule == "lost"]
                ballast.unlink()
            load.wait_answers(50)
        judge(load, kept)


def _fill(path: Path) -> None:
    """Take what is left of a file system."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _wait_refusing(onehop: Onehop) -> None:
    """Wait until writes are refused for want of room."""
    message = {"userId": "nobody", "event": "Tried"}
    deadline = time.monotonic() + 60
    refusal = ""
    while "the disk is full" not in refusal:
        assert time.monotonic() < deadline, f"a full disk is not told, but {refusal!r}"
        time.sleep(0.02)
        try:
            onehop.call("POST", "/v1/track", message)
        except RuntimeError as error:
            refusal = str(error)
