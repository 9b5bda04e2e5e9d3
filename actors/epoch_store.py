"""Where the table of claims is kept, on one node: a file, changed under a lock.

In a fleet a Kubernetes Lease keeps it, which outlives every node (actors/lease_store.py). A data
folder that was made before there were claims is taken over as it is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from actors.copies import CopyFolder, CopyState, write_durably
from actors.layout import old_layout
from cluster.config import Config
from cluster.errors import ConfigError, Unavailable
from cluster.keys import split_evenly
from cluster.ownership import Copy, EpochStore, Table, claim_of

TABLE = "table.json"
OLD_COPY = "c0"


class _Document(msgspec.Struct, frozen=True):
    version: int
    table: Table


class FileEpochStore:
    """`shards/table.json` of the coordinator's node. One file lock orders all who change it."""

    def __init__(self, config: Config) -> None:
        self._path = config.data_path / "shards" / TABLE

    async def read(self) -> tuple[int, Table | None]:
        return await asyncio.to_thread(self.read_now)

    async def swap(self, version: int, table: Table) -> bool:
        return await asyncio.to_thread(self._swap, version, table)

    def read_now(self) -> tuple[int, Table | None]:
        """As `read`. Raises ConfigError if the file can't be used."""
        try:
            document = msgspec.json.decode(self._path.read_bytes(), type=_Document)
        except FileNotFoundError:
            return 0, None
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"table of claims {self._path}: {error}") from None
        return document.version, document.table

    def _swap(self, version: int, table: Table) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._path.parent / "table.lock"):
            if self.read_now()[0] != version:
                return False
            try:
                write_durably(self._path, msgspec.json.encode(_Document(version + 1, table)))
            except OSError as error:
                raise Unavailable(f"the table of claims can't be written: {error}") from None
            return True


class MemoryEpochStore:
    """For durability "memory": what it says lives as long as the coordinator."""

    def __init__(self) -> None:
        self._version = 0
        self._table: Table | None = None

    async def read(self) -> tuple[int, Table | None]:
        return self._version, self._table

    async def swap(self, version: int, table: Table) -> bool:
        if version != self._version:
            return False
        self._version, self._table = version + 1, table
        return True


def open_store(config: Config) -> EpochStore:
    """The epoch store that the settings name. Raises ConfigError if it can't be had here."""
    if config.durability == "memory":
        return MemoryEpochStore()
    if config.epoch_store == "lease":
        # Its HTTP client takes a quarter of a second to import, in every process of one node.
        from actors.lease_store import in_cluster

        return in_cluster()
    return FileEpochStore(config)


def reached_directly(config: Config) -> bool:
    """Whether every node reaches the store by itself. A file is reached through the coordinator,
    on whose node it lies."""
    return config.epoch_store == "lease"


def check_folder(config: Config) -> Table | None:
    """The table of a data folder. Raises ConfigError if the settings do not fit what is there."""
    if config.durability == "memory":
        return None
    table = FileEpochStore(config).read_now()[1]
    layout = old_layout(config) if table is None else None
    kept = table or layout
    if kept is not None and kept.ring_events_max != config.ring_events_max:
        raise ConfigError(
            f"ring_events_max must stay {kept.ring_events_max} for the data in "
            f"{config.data_path}, got {config.ring_events_max}; change it back or name another "
            "data_dir"
        )
    return table


def adopt_old_folder(config: Config) -> Table | None:
    """The first table of a folder from before there were claims; None if it is none.

    Its logs become the owners' copies. May be called again after it was interrupted."""
    layout = old_layout(config)
    if layout is None:
        return None
    claims = []
    for number, key_range in enumerate(split_evenly(layout.shards)):
        folder = CopyFolder(config, str(number), OLD_COPY)
        folder.path.mkdir(parents=True, exist_ok=True)
        for path in (*folder.path.parent.glob("wal-*"), *folder.path.parent.glob("snap-*")):
            path.rename(folder.path / path.name)
        folder.create(CopyState(served=True))
        claims.append(claim_of(str(number), key_range, 1, Copy(OLD_COPY)))
    return Table(tuple(claims), layout.ring_events_max, epochs_before=layout.epoch)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
