"""From an archive back to a data folder that `onehop up` serves. Nothing unverified is kept."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from zlib import crc32

import msgspec
from msgspec.structs import replace

from actors.archive import ArchiveCorrupt, Manifest, Piece, Store, newest_manifest
from actors.wal import Reader, fsync_folder
from cluster.errors import ConfigError
from cluster.ownership import Copy, Table


class _Document(msgspec.Struct, frozen=True):
    """The file of the table of claims."""

    version: int
    table: Table


class Restored(NamedTuple):
    """What a scope came back as: up to which record, and how old that state is."""

    scope: str
    next_seq: int
    age_s: float
    size: int


def restore(uri: str, data_path: Path, now_s: float | None = None) -> list[Restored]:
    """Write the newest state of every scope to `data_path`, which must be empty.

    Every piece's checksum is compared, and every log is read to its end, before the folder gets
    its name; so there is all of it or nothing.

    Raises ConfigError if the folder is not empty or there is no archive, ArchiveCorrupt or
    WalCorrupt if what is there does not check, OSError.
    """
    if data_path.exists() and any(data_path.iterdir()):
        raise ConfigError(f"data_dir must be empty to restore into, got {data_path}")
    store = Store(uri)
    scopes = store.scopes()
    if not scopes:
        raise ConfigError(f"there is no archive at {uri!r}")
    now_s = time.time() if now_s is None else now_s
    temporary = data_path.with_name(data_path.name + ".restoring")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True, mode=0o700)
        restored = []
        for scope in scopes:
            manifest = newest_manifest(store, scope, store.names(scope))
            assert manifest is not None
            size = _write_scope(store, scope, manifest, temporary)
            restored.append(Restored(scope, manifest.next_seq, now_s - manifest.time_s, size))
        _settle_claims(temporary / "shards")
        for folder in {path.parent for path in temporary.rglob("wal-*.log")}:
            for _ in Reader(folder, _snapshot_seq(folder)):
                pass
        if data_path.exists():
            data_path.rmdir()
        temporary.rename(data_path)
        fsync_folder(data_path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return restored


def _write_scope(store: Store, scope: str, manifest: Manifest, folder: Path) -> int:
    """Write all pieces of a scope, made durable; returns how many bytes."""
    written: dict[Path, int] = {}
    for piece in manifest.pieces:
        path = _inside(folder, piece)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = store.read(f"{scope}/{piece.name}")
        if len(data) != piece.size or crc32(data) != piece.crc:
            raise ArchiveCorrupt(f"{scope}/{piece.name} does not check")
        if piece.start != written.get(path, 0):
            raise ArchiveCorrupt(f"{scope}/{piece.name} does not follow the piece before")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written[path] = piece.start + piece.size
    for parent in {path.parent for path in written}:
        fsync_folder(parent)
    return sum(written.values())


def _settle_claims(folder: Path) -> None:
    """Let the table of claims name the copies that were restored, at greater epochs.

    An archive has one copy of each shard; the backup is gone, and a takeover may lie between the
    moments at which table and log were archived. Nothing happens where there is no table.
    Raises ArchiveCorrupt if a shard of the table has no copy.
    """
    path = folder / "table.json"
    if not path.exists():
        return
    document = msgspec.json.decode(path.read_bytes(), type=_Document)
    table = document.table
    for claim in table.claims:
        copies = {found.parent.name for found in folder.glob(f"{claim.shard_id}/*/copy.json")}
        named = [claim.owner.copy_id, *([claim.backup.copy_id] if claim.backup else [])]
        owner = next((copy_id for copy_id in named if copy_id in copies), min(copies, default=""))
        if not owner:
            raise ArchiveCorrupt(f"there is no copy of shard {claim.shard_id} in the archive")
        settled = replace(claim, epoch=claim.epoch + 1, owner=Copy(owner), backup=None)
        table = table.with_claim(settled)
    for other in folder.iterdir():
        if other.is_dir() and other.name not in {claim.shard_id for claim in table.claims}:
            # Its range went to others before the table was archived.
            shutil.rmtree(other)
    path.write_bytes(msgspec.json.encode(_Document(document.version + 1, table)))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _inside(folder: Path, piece: Piece) -> Path:
    """Where a piece goes. Raises ArchiveCorrupt for a name that leads out of the folder."""
    parts = PurePosixPath(piece.path).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise ArchiveCorrupt(f"a piece must lie in the data folder, got {piece.path!r}")
    return folder.joinpath(*parts)


def _snapshot_seq(folder: Path) -> int:
    kept = sorted(folder.glob("snap-*.bin"))
    return int(kept[-1].stem.removeprefix("snap-"), 16) if kept else 1
