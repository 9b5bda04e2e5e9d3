"""Files of a cluster that belong to no shard, in the archive; shards that are gone, out of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

from actors.archive import CLUSTER, RESTORE_S, Archive, Extent, State, Store

LOG = logging.getLogger("onehop.actors")

# Whoever has the archive must not have the keys with it.
SECRETS = frozenset(("keys.json", "keys.env", "cluster.secret"))


class ClusterArchive:
    """Keeps what belongs to no shard, the table of claims among it, and drops shards that are gone.

    `step` is called from one thread.
    """

    def __init__(self, store: Store, data_path: Path) -> None:
        self._store = store
        self._data_path = data_path
        self._archive = Archive(store, CLUSTER, data_path)
        self._gone_s: dict[str, float] = {}

    def step(self, epoch: int, named: Collection[str], now_s: float) -> None:
        """Archive all of it, if every shard that the table names is there: else it could not be
        restored. `now_s` is monotonic."""
        self._archive.try_step(epoch, partial(self._look, named))
        try:
            self._drop_gone(self._store.shards().difference(named), now_s)
        except Exception as error:
            self._archive.failures += 1
            LOG.error("shards that are gone stay in the archive: %r", error)

    def _look(self, named: Collection[str]) -> State:
        missing = set(named) - self._store.shards()
        if missing:
            raise OSError(f"the table waits for shards {', '.join(sorted(missing))}")
        return cluster_state(self._data_path)

    def _drop_gone(self, gone: set[str], now_s: float) -> None:
        # A restore may be reading an older table for as long.
        self._gone_s = {shard: self._gone_s.get(shard, now_s) for shard in gone}
        for shard_id, since_s in self._gone_s.items():
            if now_s - since_s >= RESTORE_S:
                self._store.drop_shard(shard_id)


def cluster_state(data_path: Path) -> State:
    """The files of a data folder that belong to no shard, but for keys and what is unfinished."""
    found = []
    for folder, folders, names in os.walk(data_path):
        if Path(folder) == data_path / "shards":
            folders.clear()
        for path in (Path(folder, name) for name in names):
            skipped = path.name in SECRETS or path.suffix in (".tmp", ".lock")
            if not skipped and path.name != "lock" and path.is_file():
                found.append(Extent(path))
    return State(sorted(found), 0)
