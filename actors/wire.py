"""The connection between an owner and its backup, both ends: frames behind the handshake.

Who speaks here holds the cluster's secret. A frame carries a message of
`cluster.replication_messages` as meta, and a batch or a piece of a file as body.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from cluster.errors import AuthError, FrameError
from cluster.frames import (
    HANDSHAKE_BYTES_MAX,
    ClientHandshake,
    Frame,
    FrameDecoder,
    Op,
    ServerHandshake,
    encode_frame,
)

PRINCIPAL = "gateway"
HELLO_S = 5.0
# A batch, and what its frame adds.
BYTES_MAX = (32 << 20) + (1 << 16)


class Wire(asyncio.Protocol):
    """Either end, after its handshake. on_frame(op, status, meta, body), in order of arrival."""

    def __init__(self) -> None:
        self.on_frame: Callable[[int, int, bytes, bytes], None] = _ignore
        self.on_lost: Callable[[], None] = _nothing
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder(HANDSHAKE_BYTES_MAX)
        self._trusted = False
        self._pauses = 0
        self._writable = asyncio.Event()
        self._writable.set()

    def send(self, op: int, meta: bytes, body: bytes = b"", status: int = 0) -> None:
        """Send a frame, or nothing if the connection is gone: `on_lost` tells."""
        if self._transport is not None:
            self._transport.write(encode_frame(0, op, body, meta, status, BYTES_MAX))

    async def drain(self) -> None:
        """Wait until the peer has taken most of what was sent, or is gone."""
        await self._writable.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Read nothing more until as many calls of `resume` came."""
        self._pauses += 1
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        self._pauses -= 1
        if self._transport is not None and not self._pauses:
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, for uvloop's transports don't inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        on_lost, self.on_lost = self.on_lost, _nothing
        on_lost()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
            if not self._trusted:
                frames = self._greet(frames)
            for _, op, status, meta, body in frames:
                self.on_frame(op, status, meta, body)
        except (AuthError, FrameError):
            # Whoever it is gets no reason; a peer of ours tries again.
            self.close()

    def _greet(self, frames: list[Frame]) -> list[Frame]:
        raise NotImplementedError


class ServerWire(Wire):
    """The backup's end: nothing is read before the other has proven the secret."""

    def __init__(self, secret: bytes, on_ready: Callable[[ServerWire], None]) -> None:
        super().__init__()
        self._secret = secret
        self._on_ready = on_ready
        self._handshake = ServerHandshake()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._transport is not None
        self._transport.write(self._handshake.challenge())
        self._timer = asyncio.get_running_loop().call_later(HELLO_S, self.close)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _greet(self, frames: list[Frame]) -> list[Frame]:
        if not frames:
            return frames
        hello = self._handshake.read_hello(frames[0][4]) if frames[0][1] == Op.HELLO else None
        if hello is None or self._transport is None:
            raise AuthError("the first frame must be a hello")
        secret = self._secret if hello.principal == PRINCIPAL else None
        self._transport.write(self._handshake.welcome(hello, secret))
        if self._timer is not None:
            self._timer.cancel()
        self._trusted = True
        self._decoder.bytes_max = BYTES_MAX
        self._on_ready(self)
        return frames[1:]


class ClientWire(Wire):
    """The owner's end. `ready` resolves once both have proven the secret."""

    def __init__(self, secret: bytes) -> None:
        super().__init__()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handshake = ClientHandshake(PRINCIPAL, secret)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(AuthError("the connection ended during the handshake"))
            self.ready.exception()
        super().connection_lost(exc)

    def _greet(self, frames: list[Frame]) -> list[Frame]:
        for at, (_, op, _, _, body) in enumerate(frames):
            if op == Op.CHALLENGE and self._transport is not None:
                self._transport.write(self._handshake.hello(body))
            elif op == Op.WELCOME:
                self._handshake.check_welcome(body)
                self._trusted = True
                self._decoder.bytes_max = BYTES_MAX
                self.ready.set_result(None)
                return frames[at + 1 :]
            else:
                raise AuthError(f"the handshake was broken by a frame with op {op}")
        return []


async def connect(address: tuple[str, int], secret: bytes, timeout_s: float) -> ClientWire:
    """A connection that may be used. Raises OSError, AuthError, TimeoutError."""
    wire = ClientWire(secret)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().create_connection(lambda: wire, *address)
            await wire.ready
    except BaseException:
        wire.close()
        raise
    return wire


def _ignore(op: int, status: int, meta: bytes, body: bytes) -> None:
    """Nobody listens yet."""


def _nothing() -> None:
    """on_lost is called once."""
