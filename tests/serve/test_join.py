"""`onehop up --address` joins a Ray cluster that runs already, and leaves it as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.processes import descendants
from tests.faults.onehop import COORDINATOR, SHARD, Onehop

GONE_S = 60.0
"""Ray ends actors beside the call that asks for it."""
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def head() -> Iterator[tuple[str, int]]:
    """Address of the cluster, and the process below which all of it runs."""
    # Not pytest's folder: sockets have paths of up to 107 bytes.
    folder = tempfile.mkdtemp(prefix="oh-", dir="/tmp")
    environment = {**os.environ, "RAY_TMPDIR": folder}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.serve.ray_head"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address
        yield address, process.pid
        process.terminate()
        process.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


def commands_below(pid: int) -> list[str]:
    found = []
    for process in descendants(pid):
        try:
            line = Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace")
        except OSError:
            continue
        found.append(line.replace("\0", " "))
    return found


def test_up_joins_a_running_ray_serves_and_leaves_it_behind(
    head: tuple[str, int], tmp_path: Path
) -> None:
    address, pid = head
    for name in ("onehop", "other"):
        (tmp_path / name).mkdir()
    settings: dict[str, str | int | float] = {
        "ONEHOP_ADDRESS": address,
        "ONEHOP_SHARDS": 2,
        "ONEHOP_SPARES": "false",
    }
    with Onehop(tmp_path / "onehop", **settings) as onehop:
        track = {"userId": "ada", "event": "Item Viewed", "messageId": "m-1"}
        assert onehop.call("POST", "/v1/track", track)["durability"] == "disk"
        running = commands_below(pid)
        # It is their Ray that runs our actors.
        assert sum(SHARD in line for line in running) == 2
        assert sum(COORDINATOR in line for line in running) == 1
        assert not onehop.named("gcs_server")
    deadline_s = time.monotonic() + GONE_S
    while ours := [line for line in commands_below(pid) if SHARD in line or COORDINATOR in line]:
        assert time.monotonic() < deadline_s, ours
        time.sleep(0.1)
    assert any("gcs_server" in line for line in commands_below(pid))
    # What was acknowledged is there for the next that joins, on another port.
    with Onehop(tmp_path / "onehop", **settings) as onehop:
        assert onehop.call("GET", "/v1/profiles/ada")["eventsTotal"] == 1
        assert onehop.call("POST", "/v1/track", track)["duplicate"]
        with pytest.raises(RuntimeError, match="Ray Serve listens on port"):
            Onehop(tmp_path / "other", ONEHOP_ADDRESS=address).start()
