"""A copy of what is on disk in an object store, made beside serving: what a lost cluster leaves.

Its one rule: objects never change. A file's bytes go up in pieces; a manifest, written last, names
the pieces of one consistent state and their checksums; what no kept manifest names is deleted.

    <uri>/<scope>/<path below the data folder>.<start>-<crc>     a piece
    <uri>/<scope>/manifest-<epoch>-<number>.json                 a state; the greatest counts

A scope is one shard, or "cluster" for the files that belong to none. A manifest of a greater epoch
than ours says that somebody took over: then this side archives no more.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from actors.snapshot import snapshots
from actors.wal import durable_end, first_seq_of, segments
from cluster.errors import ConfigError, OnehopError

LOG = logging.getLogger("onehop.actors")

VERSION = 1
CHUNK = 1 << 20
PIECE_BYTES_MAX = 64 << 20
"""What fails is begun again with the piece; and a restore holds one in memory."""
MANIFESTS_KEPT = 2
"""A reader of the one before the last still finds its pieces, for as long as a restore takes."""
RESTORE_S = 3600.0
LISTINGS_MAX = 5
CLUSTER = "cluster"
SHARDS = "shards/"
_MANIFEST = re.compile(r"manifest-([0-9a-f]{16})-([0-9a-f]{16})\.json$")


class ArchiveCorrupt(OnehopError):
    """An archive can't be restored: where, and what is wrong."""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Bytes `start` to `start` + `size` of a file; `path` is relative to the data folder."""

    path: str
    start: int
    size: int
    crc: int

    @property
    def name(self) -> str:
        return f"{self.path}.{self.start:x}-{self.crc:08x}"


class Manifest(msgspec.Struct, frozen=True):
    """One state of a scope: all that was durable before record `next_seq`, as of `time_s`."""

    version: int
    epoch: int
    number: int
    next_seq: int
    time_s: float
    pieces: list[Piece]


class Extent(NamedTuple):
    """A file to be archived: a log's segment up to `stop`, any other as a whole (None)."""

    path: Path
    stop: int | None = None


class State(NamedTuple):
    """What is to be archived now, and up to which record it goes."""

    extents: list[Extent]
    next_seq: int


class Store:
    """A folder of an object store, by URI: file, s3, gs, abfs, hdfs, or a plain absolute path.

    Raises ConfigError if the URI can't be used; all else raises OSError.
    """

    def __init__(self, uri: str) -> None:
        # Imports for 100 ms, in every shard: only where there is an archive.
        from pyarrow import ArrowException, fs

        self._fs_module = fs
        try:
            self._fs, self._root = fs.FileSystem.from_uri(uri)
        except (ArrowException, ValueError, OSError) as error:
            raise ConfigError(f"archive_uri: {error}, got {uri!r}") from None
        self._folders: set[str] = set()

    def names(self, scope: str) -> list[str]:
        """Every object below a scope, relative to it."""
        root = f"{self._root}/{scope}"
        selector = self._fs_module.FileSelector(root, recursive=True, allow_not_found=True)
        return [
            info.path[len(root) + 1 :]
            for info in self._fs.get_file_info(selector)
            if info.type == self._fs_module.FileType.File
        ]

    def scopes(self) -> list[str]:
        """The scopes that have a manifest."""
        found = (name.rpartition("/") for name in self.names("."))
        return sorted({scope for scope, _, name in found if _MANIFEST.match(name)})

    def read(self, name: str) -> bytes:
        with self._fs.open_input_file(f"{self._root}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write an object whole, or not at all."""
        path = f"{self._root}/{name}"
        local = isinstance(self._fs, self._fs_module.LocalFileSystem)
        # Object stores show an object once it is whole, file systems do not.
        target = path + ".tmp" if local else path
        folder = path.rpartition("/")[0]
        if local and folder not in self._folders:
            self._fs.create_dir(folder, recursive=True)
            self._folders.add(folder)
        with self._fs.open_output_stream(target) as file:
            for part in parts:
                file.write(part)
        if local:
            self._fs.move(target, path)

    def delete(self, name: str) -> None:
        self._fs.delete_file(f"{self._root}/{name}")

    def shards(self) -> set[str]:
        """Shards of which there is a state."""
        scopes = self.scopes()
        return {scope.removeprefix(SHARDS) for scope in scopes if scope.startswith(SHARDS)}

    def drop_shard(self, shard_id: str) -> None:
        """Delete all there is of a shard, manifests first: half a state must not look like one."""
        names = self.names(f"{SHARDS}{shard_id}")
        for name in sorted(names, key=lambda name: not _MANIFEST.match(name)):
            self.delete(f"{SHARDS}{shard_id}/{name}")


class Archive:
    """Keeps one scope of an archive like what is on disk. `step` is called from one thread.

    before_s  how long the state before the last is kept: who was erased may still be in it
    """

    def __init__(
        self, store: Store, scope: str, data_path: Path, before_s: float = RESTORE_S
    ) -> None:
        self._store = store
        self._scope = scope
        self._data_path = data_path
        self._pieces: list[Piece] = []
        self._number = 0
        self._before_s = before_s
        self._alone_s: float | None = 0.0
        """When the state before the last is to go, seconds since 1970; None: it has."""
        self._opened = False
        self._covered_s: float | None = None
        self._started_s = time.monotonic()
        self.next_seq = 0
        """Everything before this record is in the archive."""
        self.failures = 0
        self.bytes_written = 0
        self.fenced = False
        """Somebody with a greater epoch archives this scope now."""

    def report(self, next_seq: int) -> dict[str, Any]:
        """For operators; `next_seq` is the record after the last durable one."""
        return {
            "archiveLagSeconds": round(self.lag_s(next_seq), 3),
            "archiveFailures": self.failures,
            "archiveBytes": self.bytes_written,
            "archiveFenced": self.fenced,
        }

    def lag_s(self, next_seq: int | None = None) -> float:
        """How old the newest archived state is; 0 if nothing came after it.

        next_seq  the record after the last durable one
        """
        if next_seq is not None and self._covered_s is not None and next_seq <= self.next_seq:
            return 0.0
        since_s = self._started_s if self._covered_s is None else self._covered_s
        return time.monotonic() - since_s

    def try_step(self, epoch: int, look: Callable[[], State]) -> None:
        """As `step` with what `look` finds; a failure is counted, and the next step tries again."""
        try:
            self.step(epoch, look())
        except Exception as error:
            # Whatever it was: the archive falls behind, says so, and the shard serves.
            self.failures += 1
            LOG.error("archive of %s: %s: %s", self._scope, type(error).__name__, error)

    def step(self, epoch: int, state: State) -> None:
        """Archive `state`, then delete what no kept manifest needs.

        Raises OSError if the store or the disk fails; the archive is as it was then.
        """
        began_s = time.monotonic()
        names = self._store.names(self._scope)
        if not self._opened:
            self._open(names)
        if max((key[0] for key in map(_manifest_key, names) if key), default=0) > epoch:
            if not self.fenced:
                LOG.error("archive of %s: taken over at a greater epoch", self._scope)
            self.fenced = True
            return
        pieces = [piece for extent in state.extents for piece in self._upload(extent, names)]
        if pieces != self._pieces or state.next_seq != self.next_seq:
            self._number += 1
            manifest = Manifest(VERSION, epoch, self._number, state.next_seq, time.time(), pieces)
            name = f"manifest-{epoch:016x}-{self._number:016x}.json"
            self._store.write(f"{self._scope}/{name}", [msgspec.json.encode(manifest)])
            names.append(name)
            self._pieces = pieces
            self.next_seq = state.next_seq
            self._drop_superfluous(names, MANIFESTS_KEPT)
            self._alone_s = manifest.time_s + self._before_s
        elif self._alone_s is not None and time.time() >= self._alone_s:
            self._drop_superfluous(names, 1)
            self._alone_s = None
        self._covered_s = began_s

    def _open(self, names: Iterable[str]) -> None:
        """Go on with the newest manifest, if there is one."""
        found = newest_manifest(self._store, self._scope, names)
        if found is not None:
            self._number = found.number
            self._alone_s = found.time_s + self._before_s
            # A machine that lost power may have lost what it had archived before the flush.
            self._pieces = [piece for piece in found.pieces if self._is_as_here(piece)]
        self._opened = True

    def _is_as_here(self, piece: Piece) -> bool:
        try:
            with (self._data_path / piece.path).open("rb") as file:
                return _crc(file, piece.start, piece.start + piece.size) == piece.crc
        except OSError:
            return False

    def _upload(self, extent: Extent, names: list[str]) -> list[Piece]:
        """The pieces that make up a file now; those that are not there yet are written."""
        path = extent.path.relative_to(self._data_path).as_posix()
        present = set(names)
        kept: list[Piece] = []
        start = 0
        with extent.path.open("rb") as file:
            # One descriptor for all of it: another file may get the name meanwhile.
            stop = os.fstat(file.fileno()).st_size if extent.stop is None else extent.stop
            for piece in self._pieces if extent.stop is not None else ():
                follows = piece.start == start and start + piece.size <= stop
                if piece.path == path and follows and piece.name in present:
                    kept.append(piece)
                    start += piece.size
            while start < stop or not kept:
                end = min(start + PIECE_BYTES_MAX, stop)
                piece = Piece(path, start, end - start, _crc(file, start, end))
                if piece.name not in present:
                    self._store.write(f"{self._scope}/{piece.name}", _read(file, start, end))
                    self.bytes_written += piece.size
                    names.append(piece.name)
                kept.append(piece)
                start = end
        return kept

    def _drop_superfluous(self, names: list[str], count: int) -> None:
        """Delete what none of the last `count` manifests names."""
        manifests = sorted(name for name in names if _MANIFEST.match(name))
        needed = {*manifests[-count:], *(piece.name for piece in self._pieces)}
        for name in manifests[-count:-1]:
            manifest = _decode(self._store.read(f"{self._scope}/{name}"), name)
            needed |= {piece.name for piece in manifest.pieces}
        for name in names:
            if name not in needed:
                self._store.delete(f"{self._scope}/{name}")


def shard_state(folder: Path) -> State:
    """The newest snapshot, the log after it as far as it is whole, and what is kept beside them.

    Raises OSError if it changes faster than it can be listed.
    """
    for _ in range(LISTINGS_MAX):
        kept = snapshots(folder)[-1:]
        paths = segments(folder)
        snapshot_seq = int(kept[0].stem.removeprefix("snap-"), 16) if kept else 1
        older = [path for path in paths if first_seq_of(path) <= snapshot_seq]
        try:
            extents = [Extent(path) for path in (*kept, *folder.glob("*.json"))]
            next_seq = snapshot_seq
            for path in paths[paths.index(older[-1]) :] if older else ():
                stop, next_seq = durable_end(path)
                extents.append(Extent(path, stop))
        except FileNotFoundError:
            # A compaction has deleted it, and left a newer snapshot.
            continue
        if older:
            return State(extents, next_seq)
    raise OSError(f"{folder} changes faster than it can be listed")


def newest_manifest(store: Store, scope: str, names: Iterable[str]) -> Manifest | None:
    """The manifest that counts; None if there is none. Raises ArchiveCorrupt, OSError."""
    manifests = sorted(name for name in names if _MANIFEST.match(name))
    if not manifests:
        return None
    return _decode(store.read(f"{scope}/{manifests[-1]}"), manifests[-1])


def _decode(data: bytes, name: str) -> Manifest:
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise ArchiveCorrupt(f"{name}: {error}") from None
    if manifest.version > VERSION:
        raise ArchiveCorrupt(f"{name}: version must be <= {VERSION}, got {manifest.version}")
    return manifest


def _manifest_key(name: str) -> tuple[int, int] | None:
    found = _MANIFEST.match(name)
    return (int(found[1], 16), int(found[2], 16)) if found else None


def _crc(file: BufferedReader, start: int, stop: int) -> int:
    crc = 0
    for part in _read(file, start, stop):
        crc = crc32(part, crc)
    return crc


def _read(file: BufferedReader, start: int, stop: int) -> Iterator[bytes]:
    """The bytes of a file, bounded parts at a time. Raises OSError if it is shorter."""
    file.seek(start)
    while start < stop:
        part = file.read(min(CHUNK, stop - start))
        if not part:
            raise OSError(f"{file.name} ended at byte {start}, wanted {stop}")
        start += len(part)
        yield part
