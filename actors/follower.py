"""One copy that follows an owner: its gate, its log and its own life.

It takes the owner's batches as they are, byte for byte, syncs them, and says so; it keeps no
profiles in memory. `cluster.replication.Backup` decides what gets in.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from actors.compact import run_compaction
from actors.copies import CopyFolder
from actors.log_files import batches_from, encoded, log_end
from actors.quiet import quietly, write_resting
from actors.wal import End, fsync_folder, segments
from actors.wal_writer import CopyWriter, Written
from actors.watermark import check_end
from cluster.config import Config
from cluster.replication import Backup
from cluster.replication_messages import (
    Append,
    Beat,
    Fetch,
    Fetched,
    Rejected,
    Request,
    Seal,
    Sealed,
)

LOG = logging.getLogger("onehop.actors")

COMPACT_S = 5.0
COMPACT_RETRY_S = 60.0
LOCK_S = 5.0
SEED = "seed.tmp"
"""The owner's snapshot, while it comes."""
_encode = msgspec.msgpack.Encoder().encode


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a snapshot's file, which a copy without a log may begin with."""

    name: str
    offset: int
    last: bool


class Follower:
    """One copy that follows an owner."""

    def __init__(self, folder: CopyFolder, config: Config) -> None:
        self._folder = folder
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._writer: CopyWriter | None = None
        self._piece_at = 0
        self._piece_turn = asyncio.Lock()
        self._compacter: asyncio.Task[None] | None = None
        self._sealing: set[asyncio.Task[None]] = set()
        self.failed: Exception | None = None
        folder.lock(LOCK_S)
        try:
            end = log_end(folder.path)
            check_end(folder.path, end)
            (folder.path / SEED).unlink(missing_ok=True)
            self.state = folder.state
            sealed = max(self.state.sealed, end.epoch)
            self.gate = Backup(sealed, end.next_seq, end.crc, self._loop.time())
            self._open(end)
        except BaseException:
            folder.unlock()
            raise

    @property
    def path(self) -> Path:
        return self._folder.path

    @property
    def running(self) -> bool:
        return self._writer is not None and self.failed is None

    def receive(
        self, request: Request, body: bytes, reply: Callable[..., None], purges: bool = False
    ) -> None:
        """reply(Reply, body) is called when it is due; of appends, in their order.

        purges  whether the batch in `body` says that the log begins a new segment with it
        """
        gate, now_s = self.gate, self._loop.time()
        if self._writer is None and not isinstance(request, Seal):
            # Taken over by an owner on this node: whoever asks still is one no more.
            refused = gate.refusal(request.epoch)
            if isinstance(refused, Rejected):
                reply(refused, b"")
            return
        match request:
            case Append():
                self._append(request, body, reply, purges)
            case Beat():
                reply(gate.beat(request, now_s), b"")
            case Seal():
                refused_seal = gate.seal(request)
                if refused_seal is not None:
                    reply(refused_seal, b"")
                elif self._writer is not None:
                    task = self._loop.create_task(self._seal(request, reply))
                    self._sealing.add(task)
                    task.add_done_callback(self._sealing.discard)
            case Fetch():
                self._fetch(request, reply)

    def _append(
        self, request: Append, body: bytes, reply: Callable[..., None], purges: bool
    ) -> None:
        outcome = self.gate.append(request)
        if not isinstance(outcome, bool):
            reply(outcome, b"")
            return
        assert self._writer is not None
        if outcome:
            self._writer.append_batch(
                Written(body, request.first_seq, request.count, request.previous, request.crc),
                purges,
            )
        epoch, sent_s = request.epoch, request.sent_s
        last_seq = request.first_seq + request.count - 1

        def due() -> None:
            reply(self.gate.appended(epoch, sent_s, self._loop.time()), b"")

        if last_seq <= self.gate.durable_seq:
            due()
        else:
            self._waiting.append((last_seq, due))

    async def _seal(self, request: Seal, reply: Callable[..., None]) -> None:
        """Persist the epoch and all that was let in, then answer."""
        try:
            reply(await self.seal(request), b"")
        except OSError as error:
            self._fail(error)

    async def seal(self, request: Seal) -> Sealed | Rejected:
        """As a request `Seal`, from within this process. Raises OSError."""
        refused = self.gate.seal(request)
        if refused is not None:
            return refused
        if request.epoch > self.state.sealed:
            self.state = msgspec.structs.replace(self.state, sealed=request.epoch)
            await asyncio.to_thread(self._folder.save, self.state)
        done = self._loop.create_future()
        self._waiting.append((self.gate.next_seq - 1, partial(_settle, done)))
        self._durable()
        await done
        return self.gate.sealed_at(request, self._loop.time())

    def _fetch(self, request: Fetch, reply: Callable[..., None]) -> None:
        refused = self.gate.refusal(request.epoch)
        if refused is not None:
            reply(refused, b"")
            return
        found = batches_from(self._folder.path, request.next_seq, request.crc) or []
        body = _encode([encoded(batch).data for batch in found])
        reply(Fetched(request.epoch, request.next_seq, len(found)), body)

    # A new copy begins with the owner's snapshot.

    async def take_piece(self, epoch: int, piece: Piece, data: bytes) -> bool:
        """Write a piece of the snapshot that this empty copy begins with; False = it can't.

        Pieces may be given before those before them are written. The first one begins anew, also
        after one that failed. Raises OSError.
        """
        async with self._piece_turn:
            if not self._is_empty_for(epoch) or piece.offset not in (0, self._piece_at):
                return False
            # Until it is on the disk none may follow.
            self._piece_at = 0
            await quietly(self._write_piece, piece.offset, data)
            if not self._is_empty_for(epoch):
                return False
            if piece.last:
                try:
                    self._begin_at_snapshot(piece.name)
                except BaseException:
                    # Another copy is made, and this one removed.
                    self.close()
                    raise
            else:
                self._piece_at = piece.offset + len(data)
            return True

    def _is_empty_for(self, epoch: int) -> bool:
        gate = self.gate
        return self._writer is not None and gate.next_seq == 1 and gate.sealed == epoch

    def _write_piece(self, offset: int, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if offset == 0 else 0)
        with open(os.open(self._folder.path / SEED, flags, 0o600), "wb") as file:
            file.seek(offset)
            write_resting(file, memoryview(data))

    def _begin_at_snapshot(self, name: str) -> None:
        (self._folder.path / SEED).rename(self._folder.path / Path(name).name)
        fsync_folder(self._folder.path)
        self._close_writer()
        for path in segments(self._folder.path):
            path.unlink()
        end = log_end(self._folder.path)
        lease_until_s = self.gate.lease_until_s
        self.gate = Backup(self.gate.sealed, end.next_seq, end.crc, self._loop.time())
        self.gate.lease_until_s = lease_until_s
        self._open(end)

    # Its own life.

    def _open(self, end: End) -> None:
        self._writer = CopyWriter(
            self._folder.path,
            end,
            lambda seq: self._durable(),
            self._fail,
            self._config.wal_segment_bytes,
            self._loop,
        )
        if self._compacter is None:
            self._compacter = self._loop.create_task(self._compact())

    def _durable(self) -> None:
        if self._writer is None:
            return
        self.gate.durable(*self._writer.durable_end)
        while self._waiting and self._waiting[0][0] <= self.gate.durable_seq:
            self._waiting.popleft()[1]()

    def _fail(self, error: Exception) -> None:
        LOG.critical("copy %s fails: %s", self._folder.path, error)
        self.failed = error
        self._waiting.clear()

    async def _compact(self) -> None:
        while True:
            await asyncio.sleep(COMPACT_S)
            try:
                if len(segments(self._folder.path)) > 1:
                    await run_compaction(self._folder.path, self._config)
            except OSError as error:
                LOG.error("copy %s: %s; the log grows", self._folder.path, error)
                await asyncio.sleep(COMPACT_RETRY_S)

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def close(self) -> None:
        """Let go of the folder; requests of older epochs are refused from now on."""
        if self._compacter is not None:
            self._compacter.cancel()
        self._close_writer()
        self._folder.unlock()


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
