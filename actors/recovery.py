"""From the files of a shard back to the shard."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path

from actors import records
from actors.state import ShardState
from actors.wal import End, Reader
from cluster.errors import Unavailable

LOG = logging.getLogger("onehop.actors")

LOCK_WAIT_S = 10.0


def lock_folder(folder: Path, wait_s: float = LOCK_WAIT_S) -> int:
    """Hold a folder for this process alone; returns the descriptor that holds it.

    A predecessor that is dying gets `wait_s`. Raises Unavailable if another still holds it then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
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


def recover(state: ShardState, folder: Path) -> End:
    """Replay the log into an empty state; returns where the log goes on.

    Raises WalCorrupt if the log can't be trusted: then the shard must not serve.
    """
    started_s = time.monotonic()
    reader = Reader(folder)
    count = 0
    for batch in reader:
        for record in batch.records:
            state.replay(records.decode(record))
        count += len(batch.records)
    LOG.info(
        "shard %s: %d records replayed in %.2f s, %d profiles",
        state.shard_id,
        count,
        time.monotonic() - started_s,
        len(state.store),
    )
    return reader.end
