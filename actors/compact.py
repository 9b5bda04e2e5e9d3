"""Turns sealed log segments into a snapshot, in a process of its own: `python -m actors.compact`.

It replays what recovery would replay, so serving is never paused, nothing is forked, and every
snapshot is the proof that the log before it can be recovered. The settings come as JSON on
standard input; the shard that started it deletes what the snapshot makes superfluous.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from actors.recovery import replay
from actors.snapshot import write_snapshot
from actors.state import ShardState
from actors.wal import segments
from cluster.config import Config
from cluster.keys import HASH_SPACE, KeyRange

NICE = 10


def compact(folder: Path, config: Config) -> Path | None:
    """Write a snapshot up to the last sealed segment; None if there is no sealed one."""
    sealed = segments(folder)[:-1]
    if not sealed:
        return None
    state = ShardState("compact", KeyRange(0, HASH_SPACE), config, learns=False)
    end = replay(state, folder, sealed)
    return write_snapshot(state, folder, end)


def main() -> int:
    os.nice(NICE)
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=Config)
    compact(Path(sys.argv[1]), config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
