"""The backup's side: copies that follow owners elsewhere, on one node, behind one endpoint.

Plain asyncio without Ray.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import msgspec

from actors.copies import CopyFolder, CopyState
from actors.follower import Follower, Piece
from actors.records import purges
from actors.wal import WalCorrupt, decode_batch
from actors.wire import ServerWire
from cluster.config import Config
from cluster.errors import OnehopError, Unavailable
from cluster.frames import Op
from cluster.replication import LEASE_S
from cluster.replication_messages import Append, Gap, Rejected, Reply, Request, Seal

LOG = logging.getLogger("onehop.actors")

DONE, MORE = b"", b"more"
"""Answers to a piece that is on the disk: it was the last, or more are to come."""
_decode = msgspec.msgpack.Decoder(Request).decode
_encode = msgspec.msgpack.Encoder().encode


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
    LOG.error("a request to copy %s fails: %r", follower.path, error)
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
