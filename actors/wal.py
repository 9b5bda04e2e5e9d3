"""The write-ahead log of one shard: what is in it survives the process. Format and files only.

A log is a row of segment files, each preallocated, named by the first sequence number in it.
A segment is a header and batches; a batch is what one fsync makes durable:

    segment  magic 8s | crc u32 | version u32 | epoch u64 | first_seq u64 | previous u32 | zeros
    batch    magic u32 | crc u32 | payload crc u32 | bytes u32 | count u32 | first_seq u64
             | epoch u64 | previous u32 | payload: records
    record   bytes u32 | content

A segment's header is 64 bytes. `crc` covers what follows it in the header, the payload's crc
included; `previous` is the crc of the batch before, so a batch that is lost, changed or out of
order breaks the chain. A batch is written only after the one before is durable; thus only the
very last can be torn, and a tear shows as a short file or as a sector of zeros. Anything else
that does not check is corruption, and the log refuses to be read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from cluster.errors import OnehopError

VERSION = 1
SEGMENT_MAGIC = b"1HOPWAL\n"
BATCH_MAGIC = 0x48504F31
_SEGMENT = Struct("<8sIIQQI")
_SEGMENT_CHECKED = Struct("<IQQI")
SEGMENT_BYTES_HEADER = 64
_BATCH = Struct("<IIIIIQQI")
_BATCH_CHECKED = Struct("<IIIQQI")
_LENGTH = Struct("<I")
SECTOR = 512
BATCH_BYTES_MAX = 32 << 20
RECORD_BYTES_MAX = BATCH_BYTES_MAX - _LENGTH.size


class WalCorrupt(OnehopError):
    """A log can't be trusted: path, offset, what is wrong."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(path, offset, reason)
        self.path, self.offset, self.reason = path, offset, reason

    def __str__(self) -> str:
        return f"{self.path} at byte {self.offset}: {self.reason}"


class Batch(NamedTuple):
    """One durable batch: records `first_seq`, `first_seq` + 1, ...

    previous  crc of the batch before
    """

    epoch: int
    first_seq: int
    records: list[bytes]
    previous: int = 0


class End(NamedTuple):
    """Where a log ends: the next sequence number, and where the next batch goes."""

    next_seq: int
    epoch: int
    path: Path | None
    offset: int
    crc: int


def encode_segment(epoch: int, first_seq: int, previous: int) -> bytes:
    """A segment's header, SEGMENT_BYTES_HEADER bytes."""
    checked = _SEGMENT_CHECKED.pack(VERSION, epoch, first_seq, previous)
    head = SEGMENT_MAGIC + _LENGTH.pack(crc32(checked)) + checked
    return head.ljust(SEGMENT_BYTES_HEADER, b"\0")


def encode_batch(
    epoch: int, first_seq: int, previous: int, records: Sequence[bytes]
) -> tuple[bytes, int]:
    """A batch as bytes, and its crc, which the next batch names as `previous`."""
    payload = b"".join([part for r in records for part in (_LENGTH.pack(len(r)), r)])
    if len(payload) > BATCH_BYTES_MAX:
        raise ValueError(f"a batch must be <= {BATCH_BYTES_MAX} bytes, got {len(payload)}")
    checked = _BATCH_CHECKED.pack(
        crc32(payload), len(payload), len(records), first_seq, epoch, previous
    )
    crc = crc32(checked)
    return b"%b%b%b%b" % (_LENGTH.pack(BATCH_MAGIC), _LENGTH.pack(crc), checked, payload), crc


def decode_batch(data: bytes) -> Batch:
    """The batch that `data` is, whole. Raises WalCorrupt if it is none, or more than one."""
    found = _read_batch(Path("a batch"), data, 0, last=False) if len(data) else None
    if found is None or found[2] != len(data):
        raise WalCorrupt("a batch", 0, "is not one whole batch")
    return found[0]


def segments(folder: Path) -> list[Path]:
    """Segment files in order of their first sequence number."""
    return sorted(folder.glob("wal-*.log"))


def segment_path(folder: Path, first_seq: int) -> Path:
    return folder / f"wal-{first_seq:016x}.log"


def first_seq_of(path: Path) -> int:
    """The first sequence number of a segment, from its name."""
    return int(path.stem.removeprefix("wal-"), 16)


class Reader:
    """Reads a log, or `paths` of it, from the segment that holds `from_seq` on.

    `end` is set once all is read.

    Raises WalCorrupt where the log can't be trusted, never because of a torn last batch.
    """

    def __init__(
        self, folder: Path, from_seq: int = 1, paths: Sequence[Path] | None = None
    ) -> None:
        self._paths = segments(folder) if paths is None else list(paths)
        older = [path for path in self._paths if first_seq_of(path) <= from_seq]
        if older:
            self._paths = self._paths[self._paths.index(older[-1]) :]
        self._from_seq = from_seq
        self.end = End(from_seq, 0, None, 0, 0)

    def __iter__(self) -> Iterator[Batch]:
        previous: int | None = None
        next_seq: int | None = None
        for path in self._paths:
            last = path == self._paths[-1]
            data = read_segment(path)
            epoch, first_seq, named = _read_header(path, data)
            if previous is not None and (named != previous or first_seq != next_seq):
                raise WalCorrupt(str(path), 0, f"does not follow sequence {next_seq}")
            if next_seq is None and first_seq > self._from_seq:
                raise WalCorrupt(str(path), 0, f"sequence {self._from_seq} is missing")
            previous, next_seq = named, first_seq
            offset = SEGMENT_BYTES_HEADER
            while (found := _read_batch(path, data, offset, last)) is not None:
                batch, crc, size, named = found
                if named != previous or batch.first_seq != next_seq or batch.epoch < epoch:
                    raise WalCorrupt(str(path), offset, "does not follow the batch before")
                offset += size
                previous, epoch = crc, batch.epoch
                next_seq = batch.first_seq + len(batch.records)
                yield batch
            self.end = End(next_seq, epoch, path, offset, previous)


def read_segment(path: Path) -> bytes:
    """A segment without the blocks at its end that were allocated and never written: of most of
    64 MB the file system knows that they are zeros."""
    with path.open("rb") as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        end = 0
        while end < size:
            try:
                begun = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    end = size  # A file system that knows no holes.
                break
            end = os.lseek(descriptor, begun, os.SEEK_HOLE)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return file.read(end)


def _read_header(path: Path, data: bytes) -> tuple[int, int, int]:
    """(epoch, first_seq, previous) of a segment's header."""
    if len(data) < SEGMENT_BYTES_HEADER:
        raise WalCorrupt(str(path), 0, f"a segment has {SEGMENT_BYTES_HEADER} bytes or more")
    magic, crc, version, epoch, first_seq, previous = _SEGMENT.unpack_from(data)
    if magic != SEGMENT_MAGIC:
        raise WalCorrupt(str(path), 0, f"not a segment: begins with {magic!r}")
    if crc != crc32(data[12 : _SEGMENT.size]):
        raise WalCorrupt(str(path), 0, "the header's checksum is wrong")
    if version > VERSION:
        raise WalCorrupt(str(path), 0, f"version must be <= {VERSION}, got {version}")
    if first_seq != first_seq_of(path):
        raise WalCorrupt(str(path), 0, f"is named for another sequence than {first_seq}")
    return epoch, first_seq, previous


def durable_end(path: Path) -> tuple[int, int]:
    """Where the last batch that checks ends in a segment, and the sequence after it.

    What was written but is not synced may be among it: it was not acknowledged, and may stay.
    Raises WalCorrupt if the header does not check, OSError.
    """
    data = read_segment(path)
    _, next_seq, _ = _read_header(path, data)
    offset = SEGMENT_BYTES_HEADER
    while (head := _read_head(data, offset)) is not None and head.first_seq == next_seq:
        if _payload(data, offset, head) is None:
            break
        offset += _BATCH.size + head.size
        next_seq += head.records_n
    return offset, next_seq


class _Head(NamedTuple):
    """The header of a batch whose crc is right."""

    crc: int
    payload_crc: int
    size: int
    records_n: int
    first_seq: int
    epoch: int
    previous: int


def _read_head(data: bytes, offset: int) -> _Head | None:
    """The batch header at `offset`, or None if there is none that checks."""
    if len(data) - offset < _BATCH.size:
        return None
    magic, crc, *fields = _BATCH.unpack_from(data, offset)
    if magic != BATCH_MAGIC or crc != crc32(data[offset + 8 : offset + _BATCH.size]):
        return None
    return _Head(crc, *fields)


def _payload(data: bytes, offset: int, head: _Head) -> bytes | None:
    """The payload of the batch at `offset`, or None if it does not check."""
    start = offset + _BATCH.size
    payload = data[start : start + head.size]
    if len(payload) != head.size or head.payload_crc != crc32(payload):
        return None
    return payload


def _read_batch(
    path: Path, data: bytes, offset: int, last: bool
) -> tuple[Batch, int, int, int] | None:
    """(batch, crc, size, previous) at `offset`; None at the end of the log or at a torn batch."""
    # Equal to zeros: `any` takes a second for what is left of a segment, and recovery must be fast.
    if not any(data[offset : offset + _BATCH.size]) and data[offset:] == bytes(len(data) - offset):
        return None
    head = _read_head(data, offset)
    if head is not None:
        payload = _payload(data, offset, head)
        if payload is not None:
            records = _split(path, offset, payload, head.records_n)
            batch = Batch(head.epoch, head.first_seq, records, head.previous)
            return batch, head.crc, _BATCH.size + head.size, head.previous
    if last and _is_torn(data, offset, head):
        return None
    raise WalCorrupt(str(path), offset, "a batch does not check and is not a torn last one")


def _split(path: Path, offset: int, payload: bytes, count: int) -> list[bytes]:
    records = []
    at = 0
    for _ in range(count):
        size = _LENGTH.unpack_from(payload, at)[0]
        records.append(payload[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(payload):
        raise WalCorrupt(str(path), offset, "records do not fill their batch")
    return records


def _is_torn(data: bytes, offset: int, head: _Head | None) -> bool:
    """Whether what stands at `offset` looks like an interrupted write of one batch.

    Its end is missing (the file is short) or a sector of it was never written (is zero), and
    nothing that checks stands behind it.
    """
    stop = offset + _BATCH.size + (head.size if head is not None else 0)
    if _batch_behind(data, offset + 1):
        return False
    if stop > len(data):
        return True
    sectors = range(offset - offset % SECTOR, stop, SECTOR)
    return any(not any(data[max(start, offset) : min(start + SECTOR, stop)]) for start in sectors)


def _batch_behind(data: bytes, offset: int) -> bool:
    """Whether a batch that checks begins anywhere from `offset` on."""
    mark = _LENGTH.pack(BATCH_MAGIC)
    while (offset := data.find(mark, offset)) >= 0:
        head = _read_head(data, offset)
        if head is not None and _payload(data, offset, head) is not None:
            return True
        offset += 1
    return False


def fsync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
