"""Copies of shards' logs on this node's disk: `shards/<shard>/<copy>/`, a folder each.

A folder holds a log, its snapshots and `copy.json`, which says what must be known before the log is
read. Only the process that holds a folder's lock may touch what is in it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from glob import glob
from pathlib import Path
from typing import NamedTuple

import msgspec

from actors.quiet import GONE, later, remove_resting
from actors.recovery import lock_folder
from actors.wal import fsync_folder
from cluster.config import Config
from cluster.errors import ConfigError, Unavailable

STATE = "copy.json"
MAKING_S = 60.0
"""How old half a copy is that nobody makes any more."""


class CopyState(msgspec.Struct, frozen=True):
    """What a copy remembers beside its log.

    sealed    the highest epoch that was let in; nothing of a lower one ever gets in
    served    whether an owner has served from this copy: see `cluster.takeover.Takeover`
    made_for  the epoch whose owner may recruit it; 0 = it is no candidate
    """

    sealed: int = 0
    served: bool = False
    made_for: int = 0


class CopyFound(NamedTuple):
    """A copy that lies on a node."""

    shard_id: str
    copy_id: str
    made_for: int


class CopyFolder:
    """One copy on this node's disk."""

    def __init__(self, config: Config, shard_id: str, copy_id: str) -> None:
        self.shard_id = shard_id
        self.copy_id = copy_id
        self.path = config.data_path / "shards" / shard_id / copy_id
        self._lock: int | None = None

    @property
    def exists(self) -> bool:
        return (self.path / STATE).exists()

    def create(self, state: CopyState) -> None:
        """Make an empty copy, durably. A crash leaves it whole, or as what is to be deleted."""
        if self.path.exists():
            self.save(state)
        else:
            begun = self.path.with_name(self.copy_id + GONE)
            lock = lock_folder(begun, 0.0)
            try:
                write_durably(begun / STATE, msgspec.json.encode(state))
                begun.rename(self.path)
            finally:
                os.close(lock)
        for folder in (self.path.parent, self.path.parent.parent):
            fsync_folder(folder)

    @property
    def state(self) -> CopyState:
        """Raises ConfigError if the file can't be read: then nobody knows what was sealed."""
        path = self.path / STATE
        try:
            return msgspec.json.decode(path.read_bytes(), type=CopyState)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"copy file {path}: {error}") from None

    def save(self, state: CopyState) -> None:
        """Durable when it returns. Raises OSError."""
        write_durably(self.path / STATE, msgspec.json.encode(state))

    def lock(self, wait_s: float) -> None:
        """Hold the folder for this process. Raises Unavailable if another does, or it is gone."""
        if not self.exists:
            raise Unavailable(f"there is no copy {self.copy_id} of shard {self.shard_id} here")
        self._lock = lock_folder(self.path, wait_s)
        # Who was erased is not to stay in files that were being deleted.
        later(remove_resting, self.path, ())

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def new_copy_id() -> str:
    return "c" + secrets.token_hex(4)


def copies_here(config: Config) -> list[CopyFound]:
    """All copies in this node's data folder. What was left of others is deleted by and by."""
    shards = config.data_path / "shards"
    # `Path.glob` raises if a folder is removed while it looks.
    for left in glob(f"*/*{GONE}", root_dir=shards):
        later(_sweep, shards / left)
    found = []
    for path in sorted(glob(f"*/*/{STATE}", root_dir=shards)):
        shard_id, copy_id, _ = path.split("/")
        if copy_id.endswith(GONE):
            continue
        folder = CopyFolder(config, shard_id, copy_id)
        try:
            found.append(CopyFound(shard_id, copy_id, folder.state.made_for))
        except ConfigError:
            # What was removed meanwhile is no copy.
            if folder.exists:
                raise
    return found


def remove_copy(config: Config, shard_id: str, copy_id: str) -> None:
    """Delete a copy that no claim names and none will: it is gone when this returns, its blocks are
    freed by and by. Nothing happens if a process holds it."""
    folder = CopyFolder(config, shard_id, copy_id)
    try:
        folder.lock(0.0)
    except Unavailable:
        return
    # By its name first: half a copy must not look like one.
    gone = folder.path.rename(folder.path.with_name(copy_id + GONE))
    fsync_folder(gone.parent)
    later(_free_locked, gone, folder.unlock)


def _sweep(left: Path) -> None:
    """Delete what a crash left of a copy; who deletes it now holds its lock, and who makes one is
    about to."""
    with suppress(Unavailable, OSError):
        if time.time() - left.stat().st_mtime > MAKING_S:
            _free_locked(left, partial(os.close, lock_folder(left, 0.0)))


def _free_locked(gone: Path, unlock: Callable[[], None]) -> None:
    try:
        _free(gone)
    finally:
        unlock()


def _free(gone: Path) -> None:
    remove_resting(gone, [*gone.glob("snap-*"), *gone.glob("wal-*")])
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        # Others are there, or it was the last.
        gone.parent.rmdir()


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file, whole or not at all. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync_folder(path.parent)
