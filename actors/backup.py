"""The backup's side: copies that follow owners elsewhere, on one node, behind one endpoint.

Plain asyncio without Ray. A copy takes an owner's batches as they are, byte for byte, syncs them,
and says so; it keeps no profiles in memory. `cluster.replication.Backup` decides what gets in.
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
from actors.copies import CopyFolder, CopyState
from actors.log_files import batches_from, encoded, log_end
from actors.quiet import quietly, write_resting
from actors.records import purges
from actors.wal import (
    End,
    WalCorrupt,
    decode_batch,
    fsync_folder,
    segments,
)
from actors.wal_writer import CopyWriter, Written
from actors.watermark import check_end
from actors.wire import ServerWire
from cluster.config import Config
from cluster.errors import OnehopError, Unavailable
from cluster.frames import Op
from cluster.replication import LEASE_S, Backup
from cluster.replication_messages import (
    Append,
    Beat,
    Fetch,
    Fetched,
    Gap,
    Rejected,
    Reply,
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
DONE, MORE = b"", b"more"
"""Answers to a piece that is on the disk: it was the last, or more are to come."""
_decode = msgspec.msgpack.Decoder(Request).decode
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


class Backups:
    """All copies that follow owners on this node, and the endpoint at which owners reach them."""

    def __init__(self, config: Config, secret: bytes) -> None:
        self._config = config
        self._secret = secret
        self._followers: dict[tuple[str, str], Follower] = {}
        self._wires: set[ServerWire] = set()
        self._seeding: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.address = ("", 0)

    async def start(self, host: str) -> None:
        loop = asyncio.get_running_loop()
        factory = partial(ServerWire, self._secret, self._on_ready)
        self._server = await loop.create_server(factory, host, 0)
        name = self._server.sockets[0].getsockname()
        self.address = (name[0], name[1])

    def open(self, shard_id: str, copy_id: str, made_for: int | None) -> None:
        """Let a copy follow; idempotent. made_for: of a new candidate, None: it must be there.

        Raises Unavailable if another process has it or it is missing, WalCorrupt.
        """
        follower = self._followers.get((shard_id, copy_id))
        if follower is not None and follower.running:
            return
        folder = CopyFolder(self._config, shard_id, copy_id)
        if made_for is not None and not folder.exists:
            folder.create(CopyState(made_for=made_for))
        self._followers[shard_id, copy_id] = Follower(folder, self._config)

    async def release(self, shard_id: str, copy_id: str, epoch: int) -> float:
        """Seal a copy and let go of it, for an owner on this node; returns how long a lease that
        it granted may still be in use. Raises Unavailable if a newer epoch has sealed it."""
        follower = self._followers.get((shard_id, copy_id))
        if follower is None or not follower.running:
            return LEASE_S
        sealed = await follower.seal(Seal(epoch))
        if isinstance(sealed, Rejected):
            raise Unavailable(f"copy {copy_id} is sealed at epoch {sealed.sealed}, not {epoch}")
        follower.close()
        return sealed.lease_s

    def drop(self, shard_id: str, copy_id: str) -> None:
        """Let go of a copy that nobody needs."""
        follower = self._followers.pop((shard_id, copy_id), None)
        if follower is not None:
            follower.close()

    async def close(self) -> None:
        """Stop listening, end all connections, let go of all copies."""
        if self._server is not None:
            self._server.close()
        for wire in list(self._wires):
            wire.close()
        for key in list(self._followers):
            self.drop(*key)

    def _on_ready(self, wire: ServerWire) -> None:
        self._wires.add(wire)
        wire.on_lost = partial(self._wires.discard, wire)
        wire.on_frame = partial(self._on_first, wire)

    def _on_first(self, wire: ServerWire, op: int, status: int, meta: bytes, body: bytes) -> None:
        follower = None
        if op == Op.FOLLOW:
            shard_id, copy_id = msgspec.msgpack.decode(body, type=tuple[str, str])
            follower = self._followers.get((shard_id, copy_id))
            if follower is None:
                LOG.warning("shard %s asks for copy %s, which is not here", shard_id, copy_id)
        if follower is None:
            wire.close()
            return
        wire.on_frame = partial(self._on_frame, wire, follower)

    def _on_frame(
        self, wire: ServerWire, follower: Follower, op: int, status: int, meta: bytes, body: bytes
    ) -> None:
        if follower.failed is not None:
            wire.close()
            return
        try:
            if op == Op.REPLICATE:
                request = _decode(meta)
                purges = isinstance(request, Append) and check_batch(request, body)
                follower.receive(request, body, partial(_reply, wire), purges)
            elif op == Op.SNAPSHOT:
                epoch, piece = msgspec.msgpack.decode(meta, type=tuple[int, Piece])
                task = asyncio.create_task(_seed(wire, follower, epoch, piece, body))
                self._seeding.add(task)
                task.add_done_callback(self._seeding.discard)
            else:
                wire.close()
        except (msgspec.DecodeError, OnehopError, OSError) as error:
            _refuse(wire, follower, error)


async def _seed(
    wire: ServerWire, follower: Follower, epoch: int, piece: Piece, data: bytes
) -> None:
    """Let a follower take a piece; until it is on the disk no more is read from the owner."""
    wire.pause()
    try:
        if not await follower.take_piece(epoch, piece, data):
            _reply(wire, Gap(epoch, follower.gate.next_seq), b"")
        else:
            # Also of those before the last, since beats wait behind them: it is heard of.
            wire.send(Op.SNAPSHOT, DONE if piece.last else MORE)
    except (OnehopError, OSError) as error:
        _refuse(wire, follower, error)
    finally:
        wire.resume()


def _refuse(wire: ServerWire, follower: Follower, error: Exception) -> None:
    LOG.error("a request to copy %s fails: %r", follower._folder.path, error)
    wire.close()


def check_batch(request: Append, body: bytes) -> bool:
    """Raises WalCorrupt unless the bytes are the batch that the request says.

    Returns whether the batch has a record `Purging`: then who was erased leaves this copy's files
    as the owner's, with the segments before.
    """
    batch = decode_batch(body)
    said = (request.first_seq, request.count, request.previous)
    if (batch.first_seq, len(batch.records), batch.previous) != said:
        raise WalCorrupt("a batch", request.first_seq, "is another than its request says")
    return any(map(purges, batch.records))


def _reply(wire: ServerWire, reply: Reply, body: bytes) -> None:
    wire.send(Op.REPLICATE, _encode(reply), body)
