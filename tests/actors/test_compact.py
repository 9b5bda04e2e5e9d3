"""Compaction beside a log that goes on, beside another compaction, and cut short anywhere."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from actors import recovery
from actors.compact import LOCK, compact, run_compaction, tidy
from actors.journal import Journal
from actors.people import Caller
from actors.recovery import lock_folder, recover
from actors.shard import Shard
from actors.snapshot import snapshots
from actors.wal import End, WalCorrupt, segments
from cluster.config import Config
from cluster.errors import Unavailable
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange

CONFIG = Config(profiles_max=4096, profile_bytes_max=1 << 24, items_max=256)


def unexpected(error: OSError) -> None:
    pytest.fail(str(error))


def new_shard() -> Shard:
    return Shard("0", KeyRange(0, HASH_SPACE), CONFIG, now=lambda: 1_790_000_000.0)


def write_log(folder: Path, people: int = 200) -> None:
    """A log of several segments: each person was seen once."""

    async def write() -> None:
        shard = new_shard()
        shard.journal = Journal(folder, End(1, 0, None, 0, 0), unexpected, segment_bytes=1 << 12)
        for number in range(people):
            body = msgspec.json.encode({"userId": f"u{number}", "event": "Searched"})
            assert shard.handle(Op.TRACK, Caller("s", "default"), body, 0)[0] == 200
            if number % 10 == 0:
                await shard.journal.sync()
        await shard.journal.sync()
        shard.journal.close()

    asyncio.run(write())
    assert len(segments(folder)) > 2


def people_in(folder: Path) -> int:
    shard = new_shard()
    recover(shard, folder)
    shard.store.check()
    return len(shard.store)


def test_the_process_writes_a_snapshot_and_the_shard_drops_what_it_covers(tmp_path: Path) -> None:
    write_log(tmp_path)
    asyncio.run(run_compaction(tmp_path, CONFIG))
    assert (len(segments(tmp_path)), len(snapshots(tmp_path))) == (1, 1)
    assert people_in(tmp_path) == 200


def test_who_begins_to_follow_meanwhile_does_not_wait_and_keeps_its_files(tmp_path: Path) -> None:
    write_log(tmp_path)
    named = segments(tmp_path)

    async def act() -> None:
        shard, files = new_shard(), asyncio.Lock()
        end = recover(shard, tmp_path)
        shard.journal = Journal(tmp_path, end, unexpected, segment_bytes=1 << 12)
        tidying = asyncio.create_task(tidy(shard, tmp_path, CONFIG, files))
        await asyncio.sleep(0)
        shard.followed = True
        while not snapshots(tmp_path):
            assert not files.locked()
            await asyncio.sleep(0.01)
        await tidying
        await tidy(shard, tmp_path, CONFIG, files)
        assert set(named) <= set(segments(tmp_path))
        shard.followed = False
        await tidy(shard, tmp_path, CONFIG, files)
        assert len(segments(tmp_path)) == 1
        shard.journal.close()

    asyncio.run(act())
    assert people_in(tmp_path) == 200


def test_two_compactions_at_once_are_impossible(tmp_path: Path) -> None:
    write_log(tmp_path)
    held = lock_folder(tmp_path, 0.0, LOCK)
    with pytest.raises(Unavailable, match="in use"):
        compact(tmp_path, CONFIG)
    with pytest.raises(OSError, match="code 1"):
        asyncio.run(run_compaction(tmp_path, CONFIG))
    assert not snapshots(tmp_path)
    os.close(held)
    assert compact(tmp_path, CONFIG) is not None


def test_a_compaction_ends_when_its_shard_dies(tmp_path: Path) -> None:
    write_log(tmp_path)
    os.mkfifo(tmp_path / f"snap-{1:016x}.bin")  # reading this snapshot never ends
    process = subprocess.Popen(
        [sys.executable, "-m", "actors.compact", str(tmp_path)], stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(CONFIG) + b"\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.stdin.close()
    assert process.wait(20) == 1


def test_half_a_snapshot_is_removed_at_once_or_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path)
    (tmp_path / f"snap-{7:016x}.tmp").write_bytes(b"left by a kill")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "injected")

    with monkeypatch.context() as patched:
        patched.setattr("actors.snapshot.os.fsync", refuse)
        patched.setattr(recovery, "fsync_folder", lambda folder: None)
        with pytest.raises(OSError, match="injected"):
            compact(tmp_path, CONFIG)
    assert not list(tmp_path.glob("*.tmp"))
    assert not snapshots(tmp_path)
    assert people_in(tmp_path) == 200


def test_a_sealed_segment_that_lost_its_end_makes_no_snapshot(tmp_path: Path) -> None:
    write_log(tmp_path)
    sealed = segments(tmp_path)[-2]
    os.truncate(sealed, 1000)
    with pytest.raises(WalCorrupt, match="ends before"):
        compact(tmp_path, CONFIG)
    assert not snapshots(tmp_path)


def test_a_log_that_ends_before_its_snapshot_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path)
    assert compact(tmp_path, CONFIG) is not None
    segments(tmp_path)[-1].unlink()
    os.truncate(segments(tmp_path)[-1], 1000)
    with pytest.raises(WalCorrupt, match="where the snapshot does"):
        recover(new_shard(), tmp_path)


def test_a_snapshot_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_log(tmp_path)
    path = compact(tmp_path, CONFIG)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600


def test_of_a_copy_that_was_lost_meanwhile_nothing_is_made(tmp_path: Path) -> None:
    assert compact(tmp_path, CONFIG) is None
    assert snapshots(tmp_path) == []
