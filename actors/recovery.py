"""From the files of a shard back to the shard."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from itertools import pairwise
from pathlib import Path

from actors import records
from actors.quiet import Pace, remove_resting
from actors.snapshot import read_snapshot, snapshots
from actors.state import ShardState
from actors.wal import End, Reader, WalCorrupt, first_seq_of, fsync_folder, segments
from cluster.errors import Unavailable

LOG = logging.getLogger("onehop.actors")

LOCK_WAIT_S = 10.0


def lock_folder(folder: Path, wait_s: float = LOCK_WAIT_S, name: str = "lock") -> int:
    """Hold a folder for this process alone; returns the descriptor that holds it.

    A predecessor that is dying gets `wait_s`. Raises Unavailable if another still holds it then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # What is in a folder is no more durable than the names that lead to it.
    for parent in (folder.parent, folder.parent.parent):
        fsync_folder(parent)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                os.close(descriptor)
                raise Unavailable(f"{folder} is in use by another onehop") from None
            time.sleep(0.05)


def replay(
    state: ShardState, folder: Path, paths: list[Path] | None = None, hurried: bool = True
) -> End:
    """Fill an empty state from the newest snapshot and the log after it; returns the log's end.

    paths    the segments to read, None = all
    hurried  somebody waits for it
    Raises WalCorrupt if snapshot or log can't be trusted: then the shard must not serve.
    """
    kept = snapshots(folder)
    start = read_snapshot(kept[-1], state, hurried) if kept else End(1, 0, None, 0, 0)
    pace = Pace(hurried)
    reader = Reader(folder, start.next_seq, paths)
    for batch in reader:
        # The first segment may begin before the snapshot ends.
        for record in batch.records[max(start.next_seq - batch.first_seq, 0) :]:
            state.replay(records.decode(record))
            pace.rest()
    if reader.end.path is None:
        if kept:
            # A segment is always open; without one, what came after the snapshot is lost.
            raise WalCorrupt(str(folder), 0, "there is a snapshot, and no log")
        return start
    if reader.end.next_seq < start.next_seq:
        # Going on would give out sequence numbers anew, which the snapshot hides from replay.
        reason = f"the log ends before sequence {start.next_seq}, where the snapshot does"
        raise WalCorrupt(str(reader.end.path), reader.end.offset, reason)
    return reader.end


def recover(state: ShardState, folder: Path) -> End:
    """As `replay`, over all there is, and say how long it took."""
    started_s = time.monotonic()
    end = replay(state, folder)
    LOG.info(
        "shard %s: recovered %d profiles up to record %d in %.2f s",
        state.shard_id,
        len(state.store),
        end.next_seq - 1,
        time.monotonic() - started_s,
    )
    return end


def drop_superfluous(folder: Path) -> int:
    """Delete what the newest snapshot covers: older snapshots and segments. Returns how many."""
    kept = snapshots(folder)
    if not kept:
        return 0
    next_seq = int(kept[-1].stem.removeprefix("snap-"), 16)
    old = kept[:-1]
    paths = segments(folder)
    # A segment is covered if the one behind it begins at or before the snapshot's end.
    for path, behind in pairwise(paths):
        if first_seq_of(behind) <= next_seq:
            old.append(path)
    remove_resting(folder, old)
    fsync_folder(folder)
    return len(old)
