"""Writes a shard's log: group commit in a thread of its own, so that the event loop never waits.

The loop appends records and is told when they are durable. While one batch is being synced the
next one gathers; all that gathered leaves in one write and one fsync. An fsync that fails is never
tried again: the log is failed for good, and nothing more is acknowledged.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple

from actors.disk_stats import DiskStats
from actors.wal import (
    BATCH_BYTES_MAX,
    RECORD_BYTES_MAX,
    SEGMENT_BYTES_HEADER,
    End,
    encode_batch,
    encode_segment,
    fsync_folder,
    segment_path,
    segments,
)
from actors.watermark import IDLE_S, Watermark

LOG = logging.getLogger("onehop.actors")

SEGMENT_BYTES = 64 << 20


class Written(NamedTuple):
    """A batch as bytes, with what its header says of its place."""

    data: bytes
    first_seq: int
    records_n: int
    previous: int
    crc: int


class WalWriter:
    """Appends after `end`, the end of what was read.

    on_batch(batch)  called in the writer's thread before a batch is written, for a copy elsewhere
    on_durable(seq)  called in the writer's thread when all up to `seq` is durable
    on_failed(error) called in the writer's thread, once, when the log can't go on

    A spare segment is always allocated ahead. If there is no room for it, `has_room` turns False
    and the shard takes no more writes; what was taken still fits the current segment.
    """

    def __init__(
        self,
        folder: Path,
        end: End,
        epoch: int,
        on_durable: Callable[[int], None],
        on_failed: Callable[[OSError], None],
        segment_bytes: int = SEGMENT_BYTES,
        on_batch: Callable[[Written], None] | None = None,
    ) -> None:
        self._folder = folder
        self.epoch = epoch
        """Of the batches from now on."""
        self.on_batch = on_batch
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._segment_bytes = segment_bytes
        self._next_seq = end.next_seq
        self._crc = end.crc
        self._pending: list[Any] = []
        self._lock = threading.Lock()
        # Not a Condition: who writes to a descriptor lets go of the interpreter, and the thread has
        # its write under way while the loop still works on the turn. That halves what a disk adds.
        self._wake = os.eventfd(0)
        self._closing = False
        self._sealing = False
        self.failed: OSError | None = None
        self.has_room = True
        self.durable_seq = end.next_seq - 1
        self._durable_end = (end.next_seq - 1, end.crc)
        self.disk = DiskStats()
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor, self._offset = self._open_end(end)
        # What recovery found is on the disk now, and may be told from now on.
        self._mark = Watermark(folder, end.next_seq - 1)
        self._spare: int | None = None
        self._refill_spare()
        self._thread = threading.Thread(target=self._run, name="wal", daemon=True)
        self._thread.start()

    @property
    def last_seq(self) -> int:
        """The last sequence number given out, durable or not."""
        return self._next_seq - 1

    def append(self, record: bytes) -> int:
        """Take one record; returns its sequence number. It is durable after `on_durable`.

        Raises ValueError if it is longer than RECORD_BYTES_MAX, OSError once the log has failed.
        """
        if len(record) > RECORD_BYTES_MAX:
            raise ValueError(f"a record must be <= {RECORD_BYTES_MAX} bytes, got {len(record)}")
        with self._lock:
            if self.failed is not None:
                raise self.failed
            self._pending.append(record)
            self._next_seq += 1
            seq, first = self._next_seq - 1, len(self._pending) == 1
        # Waking the thread for the first record only: the rest joins its batch or the next.
        if first:
            os.eventfd_write(self._wake, 1)
        return seq

    def seal(self) -> None:
        """Let what is appended from now on begin a new segment."""
        self._sealing = True

    def close(self) -> None:
        """Make durable what was appended, then end the thread."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._mark.close()
        for descriptor in (self._descriptor, self._spare, self._wake):
            if descriptor is not None:
                os.close(descriptor)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        while True:
            idle = not (self._pending or self._closing or self._wait(poller))
            with self._lock:
                records, self._pending = self._pending, []
                closing = self._closing
                last_seq = self._next_seq - 1
            try:
                if records:
                    self._write(records, last_seq - len(records) + 1)
                    self._mark.note(last_seq)
                    self.durable_seq = last_seq
                    self._on_durable(last_seq)
                elif idle or closing:
                    self._mark.flush()
                    if closing:
                        return
                if self._spare is None:
                    self._refill_spare()
            except Exception as error:
                # Whatever it was: a thread that ends in silence leaves all who wait waiting.
                self._fail(error if isinstance(error, OSError) else OSError(repr(error)))
                return

    def _wait(self, poller: select.poll) -> bool:
        """Wait for records or the end; False if none came and there is something else to do."""
        due = self._spare is None or not self._mark.flushed
        if not poller.poll(IDLE_S * 1e3 if due else None):
            return False
        os.eventfd_read(self._wake)
        return True

    def _fail(self, error: OSError) -> None:
        LOG.critical("the log in %s failed and will not be written again: %s", self._folder, error)
        with self._lock:
            self.failed = error
        self._on_failed(error)

    def _write(self, records: list[bytes], first_seq: int) -> None:
        """Write records as one batch, or as several if they are large, and sync."""
        start = 0
        while start < len(records):
            stop, size = start, 0
            while stop < len(records) and size + len(records[stop]) + 4 <= BATCH_BYTES_MAX:
                size += len(records[stop]) + 4
                stop += 1
            data, crc = encode_batch(self.epoch, first_seq + start, self._crc, records[start:stop])
            batch = Written(data, first_seq + start, stop - start, self._crc, crc)
            on_batch = self.on_batch
            if on_batch is not None:
                on_batch(batch)
            self._write_batch(batch)
            start = stop

    def _write_batch(self, batch: Written) -> None:
        data = batch.data
        # Without a spare it must wait: what was taken needs the room that is left.
        sealed = self._sealing and self._spare is not None
        if sealed or self._offset + len(data) > self._segment_bytes:
            self._sealing = False
            self._rotate(batch.first_seq)
        _write_all(self._descriptor, data, self._offset)
        started_ns = perf_counter_ns()
        os.fdatasync(self._descriptor)
        self.disk.wrote(batch.records_n, len(data), perf_counter_ns() - started_ns)
        self._offset += len(data)
        self._crc = batch.crc

    def _open_end(self, end: End) -> tuple[int, int]:
        """Descriptor and offset for the next batch; a torn tail behind it is zeroed."""
        if end.path is None:
            return self._begin(self._allocate(), end.next_seq), SEGMENT_BYTES_HEADER
        descriptor = os.open(end.path, os.O_RDWR)
        size = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, end.offset)
        os.posix_fallocate(descriptor, 0, max(size, self._segment_bytes))
        os.fsync(descriptor)
        return descriptor, end.offset

    def _rotate(self, first_seq: int) -> None:
        if self._spare is None:
            self._refill_spare()
        if self._spare is None:
            raise OSError(errno.ENOSPC, "no room for another log segment")
        os.close(self._descriptor)
        self._descriptor = self._begin(self._spare, first_seq)
        self._spare = None
        self._offset = SEGMENT_BYTES_HEADER
        self._refill_spare()

    def _begin(self, descriptor: int, first_seq: int) -> int:
        """Turn an allocated segment into the one that begins with `first_seq`."""
        _write_all(descriptor, encode_segment(self.epoch, first_seq, self._crc), 0)
        os.fsync(descriptor)
        (self._folder / "spare").rename(segment_path(self._folder, first_seq))
        fsync_folder(self._folder)
        return descriptor

    def _refill_spare(self) -> None:
        try:
            self._spare = self._allocate()
            self.has_room = True
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if self.has_room:
                LOG.error("no room for another log segment in %s: read-only", self._folder)
            self.has_room = False

    def _allocate(self) -> int:
        path = self._folder / "spare"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self._segment_bytes)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        return descriptor


class CopyWriter(WalWriter):
    """Writes batches that were made elsewhere, byte for byte: the same log, another copy of it."""

    @property
    def durable_end(self) -> tuple[int, int]:
        """The last durable sequence number, and the crc of its batch."""
        return self._durable_end

    @property
    def end(self) -> End:
        """Where the log ends, once it is closed."""
        path = segments(self._folder)[-1]
        return End(self._next_seq, self.epoch, path, self._offset, self._crc)

    def append_batch(self, batch: Written, begins: bool = False) -> None:
        """Take one batch, the next. It is durable after `on_durable`. Raises OSError.

        begins  a new segment is to begin with it
        """
        with self._lock:
            if self.failed is not None:
                raise self.failed
            if batch.first_seq != self._next_seq:
                raise OSError(f"batch {batch.first_seq} is not {self._next_seq}, the next")
            self._pending.append((batch, begins))
            self._next_seq += batch.records_n
        os.eventfd_write(self._wake, 1)

    def _write(self, records: list[Any], first_seq: int) -> None:
        # Each is synced before the next is written: only the very last may ever be torn.
        for batch, begins in records:
            if begins:
                self.seal()
            self._write_batch(batch)
            self._durable_end = (batch.first_seq + batch.records_n - 1, batch.crc)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
