"""A cluster lost for good, data folder and all, comes back from its archive."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import SMALL, new_load, put_item
from tests.faults.onehop import Onehop
from tests.history import Append, check

pytestmark = [pytest.mark.cluster, pytest.mark.faults]

ARCHIVE_S = 0.5


def test_a_lost_data_folder_comes_back_as_far_as_the_archive_said(
    tmp_path: Path, kept: Path
) -> None:
    uri = (tmp_path / "archive").as_uri()
    settings: dict[str, str | int | float] = {
        **SMALL,
        "ONEHOP_ARCHIVE_URI": uri,
        "ONEHOP_ARCHIVE_S": ARCHIVE_S,
        "ONEHOP_WAL_SEGMENT_BYTES": 1 << 16,
    }
    onehop = Onehop(tmp_path, **settings)
    try:
        onehop.start()
        put_item(onehop)
        with new_load(onehop, seed=90) as load:
            load.wait_answers(800)
            lags = [owner["stats"]["archiveLagSeconds"] for owner in _shards(onehop)]
            # Whatever was acknowledged longer ago than the lag that is told must be there.
            told_ns = time.monotonic_ns() - int(max(lags) * 1e9)
            assert max(lags) < 30.0
            onehop.kill()
            keys = {name: (onehop.data / name).read_bytes() for name in ("keys.json", "keys.env")}
            shutil.rmtree(onehop.data)
            done = _restore(uri, onehop.data)
            assert done.returncode == 0, done.stderr
            assert "shards/0: " in done.stdout
            assert _restore(uri, onehop.data).returncode == 2
            # An operator keeps keys elsewhere: they are not in the archive.
            for name, content in keys.items():
                assert not (onehop.data / name).exists()
                (onehop.data / name).write_bytes(content)
                (onehop.data / name).chmod(0o600)
            onehop.start()
            load.wait_answers(100)
        # What came after the watermark may be lost with the folder; all else holds.
        history = [
            call
            for call in load.history
            if not (isinstance(call, Append) and call.returned_ns > told_ns)
        ]
        recent = {
            call.number
            for call in load.history
            if isinstance(call, Append) and call.returned_ns > told_ns
        }
        final = {
            key: [number for number in numbers if number not in recent]
            for key, numbers in load.final().items()
        }
        appends = [call for call in history if isinstance(call, Append)]
        assert len(appends) > 300
        assert check(appends, final) == []
    finally:
        onehop.kill()


def _shards(onehop: Onehop) -> list[dict[str, dict[str, float]]]:
    owners: list[dict[str, dict[str, float]]] = onehop.call("GET", "/v1/shards")["owners"]
    return owners


def _restore(uri: str, data: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from serve.cli import main; main()", "restore"]
    command += ["--from", uri, "--data-dir", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
