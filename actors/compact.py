"""Turns sealed log segments into a snapshot, in a process of its own: `python -m actors.compact`.

It replays what recovery would replay, so serving is never paused, nothing is forked, and every
snapshot is the proof that the log before it can be recovered. The settings come as a line of JSON
on standard input, which stays open for as long as the shard lives; the shard that started it
deletes what the snapshot makes superfluous.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec

from actors.records import Purging
from actors.recovery import drop_superfluous, lock_folder, replay
from actors.snapshot import write_snapshot
from actors.state import ShardState
from actors.wal import WalCorrupt, first_seq_of, segments
from cluster.config import Config
from cluster.keys import HASH_SPACE, KeyRange

NICE = 10
LOCK = "compact.lock"


def compact(folder: Path, config: Config) -> Path | None:
    """Write a snapshot up to the last sealed segment; None if there is no sealed one.

    Raises Unavailable if another process does so already, WalCorrupt if the log can't be trusted.
    """
    # A compaction may outlive its shard; beside the successor's, both would write the same file.
    lock = lock_folder(folder, 0.0, LOCK)
    try:
        for unfinished in folder.glob("snap-*.tmp"):
            unfinished.unlink()
        found = segments(folder)
        if len(found) < 2:  # None at all: the copy was lost with its disk meanwhile.
            return None
        *sealed, active = found
        state = ShardState("compact", KeyRange(0, HASH_SPACE), config, learns=False)
        end = replay(state, folder, sealed, hurried=False)
        if end.next_seq != first_seq_of(active):
            raise WalCorrupt(str(sealed[-1]), end.offset, f"ends before {active.name} begins")
        return write_snapshot(state, folder, end)
    finally:
        os.close(lock)


async def run_compaction(folder: Path, config: Config) -> None:
    """Let a process of its own write a snapshot, then delete what it covers. Raises OSError."""
    await _run(folder, config)
    await asyncio.to_thread(drop_superfluous, folder)


async def _run(folder: Path, config: Config) -> None:
    """Start the process and wait for it. Raises OSError if there is no new snapshot."""
    process = await asyncio.to_thread(_start, folder, config)
    assert process.stdin is not None
    try:
        code = await asyncio.to_thread(process.wait)
    finally:
        # Whoever is no longer waited for ends.
        process.stdin.close()
    if code != 0:
        raise OSError(f"compaction ended with code {code}")


def _start(folder: Path, config: Config) -> subprocess.Popen[bytes]:
    """By vfork: uvloop's own way copies the tables of all of a shard's memory, and stops for it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "actors.compact", str(folder)],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    # From its first import on: who answers does not wait for it.
    os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(config) + b"\n")
    process.stdin.flush()
    return process


async def tidy(state: ShardState, folder: Path, config: Config, files: asyncio.Lock) -> None:
    """One round: what is sealed becomes a snapshot, and the erased leave the files in time.

    For that a segment is sealed early, so that a snapshot takes its place. None while the log is
    followed. Raises OSError.

    files  held by whoever reads them; not for as long as the process takes, which on a machine that
           has no time may be minutes
    """
    if state.followed:
        return
    journal, tombstones, now_s = state.journal, state.tombstones, int(state.now())
    assert journal is not None
    purged_s = 0
    if journal.has_room and tombstones.due(now_s, config.erase_within_s):
        purged_s = tombstones.unpurged_s
        await journal.sync()
        journal.writer.seal()
        state.log(Purging(now_s))
        # What was logged in the last moments may stand behind the seal; it has its time again.
        tombstones.unpurged_s = tombstones.latest_s if tombstones.latest_s > now_s - 60 else 0
        await journal.sync()
    try:
        if len(segments(folder)) > 1:
            await _run(folder, config)
            async with files:
                # Who follows by now was told of files by name. The next round drops them.
                if not state.followed:
                    await asyncio.to_thread(drop_superfluous, folder)
    except OSError:
        tombstones.unpurged_s = purged_s or tombstones.unpurged_s
        raise


def _end_with_the_shard() -> None:
    # Not through sys.stdin, whose lock the interpreter wants when it ends.
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> int:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=Config)
    threading.Thread(target=_end_with_the_shard, daemon=True).start()
    compact(Path(sys.argv[1]), config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
