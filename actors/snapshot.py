"""A shard's state at one sequence number, as a file: the arenas' bytes themselves, checksummed.

    magic 8s | crc u32 | bytes u32 | meta (msgpack) | zeros to a page | array | zeros | ...

`crc` covers meta, and meta holds the crc of every array and where it lies. A snapshot is written
beside the one before and renamed once it is durable; so there is always a whole one.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from struct import Struct
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors import store_kernels as kernels
from actors.books import Books
from actors.catalogue import CatalogueDump
from actors.documents import Stored
from actors.open_decisions import OpenDecision
from actors.outbox import Message
from actors.quiet import Pace, write_resting
from actors.recent import Answered, DecisionRecord
from actors.state import ShardState
from actors.wal import End, WalCorrupt, fsync_folder
from cluster.errors import ConfigError

VERSION = 1
MAGIC = b"1HOPSNP\n"
PAGE = 4096
_HEAD = Struct("<8sII")
CRC_BYTES = 1 << 21
READERS = 2


class _Array(msgspec.Struct, array_like=True):
    """One array of the file: `offset` in bytes from its start."""

    name: str
    offset: int
    size: int
    crc: int


class _Tenant(msgspec.Struct, array_like=True):
    event_names: list[str]
    catalogue: CatalogueDump
    documents: list[Stored] = []
    books: Books = msgspec.field(default_factory=Books)


class _Meta(msgspec.Struct, array_like=True):
    """Everything of a snapshot that is no large array. New fields go to the end."""

    version: int
    next_seq: int
    epoch: int
    crc: int
    ring_events_max: int
    swept_to: int
    tenants: dict[str, _Tenant]
    loaded: dict[str, int]
    answered: list[tuple[str, str, Answered]]
    decisions: list[tuple[int, DecisionRecord]]
    arrays: list[_Array]
    dedupe_dropped_s: int = 0
    messages: list[Message] = []
    erased: list[tuple[bytes, int]] = []
    opened: list[OpenDecision] = []
    closed: list[OpenDecision] = []
    closed_total: int = 0
    dropped: dict[int, int] = {}
    dropped_s: int = 0


def snapshot_path(folder: Path, next_seq: int) -> Path:
    return folder / f"snap-{next_seq:016x}.bin"


def snapshots(folder: Path) -> list[Path]:
    """Snapshot files, oldest first."""
    return sorted(folder.glob("snap-*.bin"))


def write_snapshot(state: ShardState, folder: Path, end: End, hurried: bool = False) -> Path:
    """Write the state as of `end`; returns the file, which is durable then.

    hurried  somebody waits for it
    """
    arrays = _arrays(state)
    pace = Pace(hurried)
    meta = _Meta(
        VERSION,
        end.next_seq,
        end.epoch,
        end.crc,
        int(state.store.heap[kernels.RING_MAX]),
        state.swept_to,
        {
            name: _Tenant(
                tenant.event_types.names,
                tenant.catalogue.dump(),
                tenant.documents.dump(),
                tenant.books,
            )
            for name, tenant in state.tenants.items()
        },
        state.loads.applied,
        state.dedupe.entries(),
        state.decisions.entries(),
        [_Array(name, 0, array.nbytes, _crc(array, pace)) for name, array in arrays.items()],
        state.dedupe.dropped_s,
        state.outbox.entries(),
        state.tombstones.entries(),
        *state.rewards.decisions.entries(),
        state.rewards.decisions.dropped,
        state.rewards.decisions.dropped_s,
    )
    # Offsets depend on the size of meta, which depends on the offsets' digits: leave a page.
    at = _page(_HEAD.size + len(msgspec.msgpack.encode(meta)) + PAGE)
    for entry in meta.arrays:
        entry.offset, at = at, _page(at + entry.size)
    encoded = msgspec.msgpack.encode(meta)
    path = snapshot_path(folder, end.next_seq)
    temporary = path.with_suffix(".tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(_HEAD.pack(MAGIC, crc32(encoded), len(encoded)))
            file.write(encoded)
            for entry, array in zip(meta.arrays, arrays.values(), strict=True):
                file.seek(entry.offset)
                write_resting(file, array.view(np.uint8).data, hurried)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # Half a snapshot must not keep the log from the last room on the disk.
        temporary.unlink(missing_ok=True)
        raise
    temporary.rename(path)
    fsync_folder(folder)
    return path


def snapshot_end(path: Path) -> End:
    """Where the log goes on after a snapshot. Raises WalCorrupt if the file can't be trusted."""
    with path.open("rb") as file:
        meta = _read_meta(path, file)
    return End(meta.next_seq, meta.epoch, None, 0, meta.crc)


def read_snapshot(path: Path, state: ShardState, hurried: bool = True) -> End:
    """Fill an empty state; returns where the log goes on.

    hurried  somebody waits for it
    Raises WalCorrupt if the file can't be trusted, ConfigError if the settings do not fit it.
    """
    with path.open("rb") as file:
        meta = _read_meta(path, file)
        store = state.store
        if meta.ring_events_max != store.heap[kernels.RING_MAX]:
            raise ConfigError(
                f"ring_events_max must stay {meta.ring_events_max} for the data in {path.parent}, "
                f"got {int(store.heap[kernels.RING_MAX])}"
            )
        sizes = {entry.name: entry.size for entry in meta.arrays}
        if sizes["rows"] > store.rows.nbytes or sizes["words"] > store.words.nbytes:
            raise ConfigError(
                f"profiles_max and profile_bytes_max must be >= {sizes['rows'] // 64} and "
                f"{sizes['words']} for the data in {path.parent}"
            )
        limits = {slot: int(store.heap[slot]) for slot in (kernels.HEAP_LIMIT, kernels.ROWS_LIMIT)}
        store.index = np.zeros(sizes["index"] // 4, np.int32)
        store.old_index = np.zeros(sizes["old_index"] // 4, np.int32)
        targets: dict[str, NDArray[Any]] = {
            "heap": store.heap,
            "index": store.index,
            "old_index": store.old_index,
            "rows": store.rows[: sizes["rows"] // 64],
            "words": store.words[: sizes["words"] // 4],
        }
        _read_arrays(path, file.fileno(), meta.arrays, targets, Pace(hurried, time.monotonic))
        for slot, limit in limits.items():
            store.heap[slot] = limit
    for name, kept in meta.tenants.items():
        tenant = state.tenant(name)
        tenant.catalogue.load(kept.catalogue)
        for stored in kept.documents:
            tenant.documents.apply(stored)
        tenant.books = kept.books
        for event_name in kept.event_names:
            tenant.event_types.number(event_name)
    state.loads.applied.update(meta.loaded)
    state.swept_to = meta.swept_to
    state.dedupe.dropped_s = meta.dedupe_dropped_s
    for tenant_name, message_id, answered in meta.answered:
        state.dedupe.add(tenant_name, message_id, answered)
    for sequence, record in meta.decisions:
        state.decisions.add(sequence, record)
    state.tombstones.restore(meta.erased)
    for message in meta.messages:
        state.outbox.add(message)
    state.rewards.decisions.restore(meta.opened, meta.closed, meta.closed_total)
    state.rewards.decisions.note_dropped(meta.dropped, meta.dropped_s)
    return End(meta.next_seq, meta.epoch, None, 0, meta.crc)


def _arrays(state: ShardState) -> dict[str, NDArray[Any]]:
    store = state.store
    return {
        "heap": store.heap,
        "index": store.index,
        "old_index": store.old_index,
        "rows": store.rows[: int(store.heap[kernels.ROWS_NEXT])],
        "words": store.words[: int(store.heap[kernels.HEAP_NEXT])],
    }


def _read_meta(path: Path, file: BufferedReader) -> _Meta:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise WalCorrupt(str(path), 0, "a snapshot is longer than its head")
    magic, crc, size = _HEAD.unpack(head)
    encoded = file.read(size)
    if magic != MAGIC or len(encoded) != size or crc != crc32(encoded):
        raise WalCorrupt(str(path), 0, "not a whole snapshot: its meta does not check")
    meta = msgspec.msgpack.decode(encoded, type=_Meta)
    if meta.version > VERSION:
        raise WalCorrupt(str(path), 0, f"version must be <= {VERSION}, got {meta.version}")
    return meta


def _read_arrays(
    path: Path,
    descriptor: int,
    entries: list[_Array],
    targets: dict[str, NDArray[Any]],
    pace: Pace,
) -> None:
    """Fill the targets, pieces ahead in threads; checksums follow while a piece is in the cache."""

    def read(piece: memoryview, offset: int) -> int:
        count = os.preadv(descriptor, [piece], offset)
        pace.rest()
        return count

    pieces: list[tuple[_Array, memoryview, Future[int]]] = []
    with ThreadPoolExecutor(READERS if pace.hurried else 1) as pool:
        for entry in entries:
            whole = targets[entry.name].view(np.uint8).data
            for start in range(0, entry.size, CRC_BYTES):
                piece = whole[start : min(start + CRC_BYTES, entry.size)]
                pieces.append((entry, piece, pool.submit(read, piece, entry.offset + start)))
        try:
            crcs = dict.fromkeys((entry.name for entry in entries), 0)
            for entry, piece, found in pieces:
                if found.result() != len(piece):
                    raise WalCorrupt(str(path), entry.offset, f"array {entry.name!r} is cut off")
                crcs[entry.name] = crc32(piece, crcs[entry.name])
        finally:
            pool.shutdown(cancel_futures=True)
    for entry in entries:
        if crcs[entry.name] != entry.crc:
            raise WalCorrupt(str(path), entry.offset, f"array {entry.name!r} does not check")


def _crc(array: NDArray[Any], pace: Pace) -> int:
    data = array.view(np.uint8).data
    crc = 0
    for start in range(0, len(data), CRC_BYTES):
        crc = crc32(data[start : start + CRC_BYTES], crc)
        pace.rest()
    return crc


def _page(offset: int) -> int:
    return -(-offset // PAGE) * PAGE
