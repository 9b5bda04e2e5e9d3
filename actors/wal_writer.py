"""Writes a shard's log: group commit in a thread of its own, so that the event loop never waits.

While one batch is being written and synced the next one gathers; all that gathered leaves in one
write and one fsync. An fsync that fails is never tried again: the log is failed for good, and
nothing more is acknowledged.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from actors import disk_thread
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
_TURNED, _ENDED = -1, -2
"""In place of a result's errno: a segment has begun; the thread has met an error of its own."""


class Written(NamedTuple):
    """A batch as bytes, with what its header says of its place."""

    data: bytes
    first_seq: int
    records_n: int
    previous: int
    crc: int


class _Start(NamedTuple):
    """Of a segment: what its header says."""

    epoch: int
    first_seq: int
    previous: int


class WalWriter:
    """Appends after `end`, the end of what was read. All methods are called in one thread.

    on_durable(seq)  called when all up to `seq` is durable
    on_failed(error) called once, when the log can't go on
    on_batch(batch)  called before a batch is written, for a copy elsewhere
    loop             learns of results by itself; None: by `wait`

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
        loop: asyncio.AbstractEventLoop | None = None,
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
        self._pending: list[bytes] = []
        self._batch: Written | None = None
        """The one that is on its way to the disk."""
        self._start: _Start | None = None
        """Of the segment that the thread is asked to begin, for that batch."""
        self._sealing = False
        self.failed: OSError | None = None
        self.has_room = True
        self.durable_seq = end.next_seq - 1
        self.disk = DiskStats()
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor, self._offset = self._open_end(end)
        # What recovery found is on the disk now, and may be told from now on.
        self._mark = Watermark(folder, end.next_seq - 1)
        self._spare: int | None = None
        self._refill_spare()
        self._memory = np.zeros(disk_thread.SYNC_NS + 1, np.int64)
        self._asked, self._told = os.eventfd(0), os.eventfd(0)
        self._error: Exception | None = None
        self._loop = loop
        if loop is not None:
            loop.add_reader(self._told, self._settle)
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
        if self.failed is not None:
            raise self.failed
        self._pending.append(record)
        self._next_seq += 1
        seq = self._next_seq - 1
        # The disk works while the loop still does this turn; what comes meanwhile shares a batch.
        if self._batch is None:
            self._write_next()
        return seq

    def rouse(self) -> None:
        """Something is appended within microseconds: let the thread wake up meanwhile."""
        if self._batch is None:
            os.eventfd_write(self._asked, disk_thread.ROUSE)

    def seal(self) -> None:
        """Let what is appended from now on begin a new segment."""
        self._sealing = True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a result, and do what it brings about; False if none came in time."""
        poller = select.poll()
        poller.register(self._told, select.POLLIN)
        if not poller.poll(None if timeout_s is None else timeout_s * 1e3):
            return False
        self._settle()
        return True

    def close(self) -> None:
        """Make durable what was appended, then end the thread."""
        if self._loop is not None:
            self._loop.remove_reader(self._told)
        while self._batch is not None and self.failed is None:
            self.wait()
        self._ask(disk_thread.CLOSE)
        self._thread.join()
        self._mark.close()
        for descriptor in (self._asked, self._told, self._descriptor, self._spare):
            if descriptor is not None:
                os.close(descriptor)

    def _write_next(self) -> None:
        """Give the disk the next batch, if there is one."""
        try:
            self._batch = batch = self._next_batch()
            if batch is None:
                return
            # Without room a seal must wait: what was taken needs what is left.
            if not self._fits(batch) or (self._sealing and self.has_room):
                self._sealing = False
                self._start = _Start(self.epoch, batch.first_seq, batch.previous)
                self._ask(disk_thread.CONTROL)
            else:
                self._write(batch)
        except Exception as error:
            # Whatever it was: a log that ends in silence leaves all who wait waiting.
            self._fail(error)

    def _next_batch(self) -> Written | None:
        records, size = self._pending, 0
        for count, record in enumerate(records):
            size += len(record) + 4
            if size > BATCH_BYTES_MAX:
                records, self._pending = records[:count], records[count:]
                break
        else:
            self._pending = []
        if not records:
            return None
        first_seq, previous = self._next_seq - len(self._pending) - len(records), self._crc
        data, self._crc = encode_batch(self.epoch, first_seq, previous, records)
        batch = Written(data, first_seq, len(records), previous, self._crc)
        if self.on_batch is not None:
            self.on_batch(batch)
        return batch

    def _fits(self, batch: Written) -> bool:
        return self._offset + len(batch.data) <= self._segment_bytes

    def _write(self, batch: Written) -> None:
        size = len(batch.data)
        address = np.frombuffer(batch.data, np.uint8).__array_interface__["data"][0]
        self._ask(self._descriptor, address, size, self._offset)

    def _ask(self, descriptor: int, address: int = 0, size: int = 0, offset: int = 0) -> None:
        self._memory[disk_thread.DESCRIPTOR : disk_thread.ERROR] = descriptor, address, size, offset
        os.eventfd_write(self._asked, disk_thread.ASK)

    def _settle(self) -> None:
        """Take the thread's result."""
        os.eventfd_read(self._told)
        if self.failed is not None:
            return
        code, sync_ns = self._memory[disk_thread.ERROR :].tolist()
        if code not in (0, _TURNED):
            self._fail(self._error or OSError(code, os.strerror(code)))
            return
        batch = self._batch
        assert batch is not None
        if code == _TURNED:
            self._write(batch)
        else:
            self._offset += len(batch.data)
            self.disk.wrote(batch.records_n, len(batch.data), sync_ns)
            self._made_durable(batch)
            self._write_next()
            self._on_durable(self.durable_seq)

    def _made_durable(self, batch: Written) -> None:
        self.durable_seq = batch.first_seq + batch.records_n - 1
        self._mark.note(self.durable_seq)

    def _fail(self, error: Exception) -> None:
        self.failed = error if isinstance(error, OSError) else OSError(repr(error))
        LOG.critical("the log in %s failed and is written no more: %s", self._folder, self.failed)
        self._on_failed(self.failed)

    # What the thread does within the interpreter; `_batch` waits for it, if it is asked to.

    def _run(self) -> None:
        memory = self._memory
        try:
            while True:
                idle_ms, written = int(IDLE_S * 1e3), not self._mark.flushed
                full = self._spare is None
                why = disk_thread.serve(self._asked, self._told, memory, idle_ms, written, full)
                if why == disk_thread.FAILED:
                    return
                if (
                    why == disk_thread.ASKED
                    and memory[disk_thread.DESCRIPTOR] == disk_thread.CONTROL
                ):
                    self._turn()
                    self._tell(_TURNED)
                else:
                    self._mark.flush()
                    if why == disk_thread.ASKED:
                        return
                if self._spare is None:
                    self._refill_spare()
        except Exception as error:
            self._error = error
            self._tell(_ENDED)

    def _tell(self, code: int) -> None:
        self._memory[disk_thread.ERROR] = code
        os.eventfd_write(self._told, 1)

    def _open_end(self, end: End) -> tuple[int, int]:
        """Descriptor and offset for the next batch; a torn tail behind it is zeroed."""
        if end.path is None:
            start = _Start(self.epoch, end.next_seq, end.crc)
            return self._begin(self._allocate(), start), SEGMENT_BYTES_HEADER
        descriptor = os.open(end.path, os.O_RDWR)
        size = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, end.offset)
        os.posix_fallocate(descriptor, 0, max(size, self._segment_bytes))
        os.fsync(descriptor)
        return descriptor, end.offset

    def _turn(self) -> None:
        """Begin the segment that is asked for; later, if there is no room and it can wait."""
        if self._spare is None:
            self._refill_spare()
        assert self._start is not None
        assert self._batch is not None
        if self._spare is None:
            if not self._fits(self._batch):
                raise OSError(errno.ENOSPC, "no room for another log segment")
            self._sealing = True
            return
        os.close(self._descriptor)
        self._descriptor, self._spare = self._spare, None
        self._begin(self._descriptor, self._start)
        self._offset = SEGMENT_BYTES_HEADER

    def _begin(self, descriptor: int, start: _Start) -> int:
        """Turn an allocated segment into the one that begins so."""
        _write_all(descriptor, encode_segment(*start), 0)
        os.fsync(descriptor)
        (self._folder / "spare").rename(segment_path(self._folder, start.first_seq))
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

    def __init__(
        self,
        folder: Path,
        end: End,
        on_durable: Callable[[int], None],
        on_failed: Callable[[OSError], None],
        segment_bytes: int = SEGMENT_BYTES,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(folder, end, end.epoch, on_durable, on_failed, segment_bytes, None, loop)
        self._waiting: deque[tuple[Written, bool]] = deque()
        self.durable_end = (end.next_seq - 1, end.crc)
        """The last durable sequence number, and the crc of its batch."""

    @property
    def end(self) -> End:
        """Where the log ends, once it is closed."""
        path = segments(self._folder)[-1]
        return End(self._next_seq, self.epoch, path, self._offset, self.durable_end[1])

    def append_batch(self, batch: Written, begins: bool = False) -> None:
        """Take one batch, the next. It is durable after `on_durable`. Raises OSError.

        begins  a new segment is to begin with it
        """
        if self.failed is not None:
            raise self.failed
        if batch.first_seq != self._next_seq:
            raise OSError(f"batch {batch.first_seq} is not {self._next_seq}, the next")
        self._waiting.append((batch, begins))
        self._next_seq += batch.records_n
        if self._batch is None:
            self._write_next()

    def _next_batch(self) -> Written | None:
        if not self._waiting:
            return None
        batch, begins = self._waiting.popleft()
        if begins:
            self.seal()
        return batch

    def _made_durable(self, batch: Written) -> None:
        super()._made_durable(batch)
        self.durable_end = (self.durable_seq, batch.crc)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
