"""One authenticated, multiplexed TCP connection to an owner. It never reconnects: the router does.

Its one rule: a caller that goes away disturbs nobody. Its future stays behind, cancelled, until
the reply comes or the sweep drops it, and is never set.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from cluster.errors import AuthError, FrameError, Overloaded, Unavailable
from cluster.frames import REQUEST_IDS, ClientHandshake, Frame, FrameDecoder, Op, encode_frame

WRITE_BUFFER_BYTES = 1 << 20
QUEUED_BYTES_MAX = 64 << 20
# Looking an enum member up costs as much as the comparison.
_REPLY = int(Op.REPLY)
_PUSH = int(Op.PUSH)

# Statuses that no owner sends: the connection ended, or the reply did not come in time.
LOST = -1
LATE = -2

# (status, body). Under LOST and LATE the body says why.
Reply = tuple[int, bytes]

OnPush = Callable[[bytes, bytes], None]
"""Told of what an owner sends unasked: (the subscription's token, body)."""


def ignore_push(_token: bytes, _body: bytes) -> None:
    """For clients that subscribe to nothing."""


class Connection(asyncio.Protocol):
    """Requests out, replies in. `ready` resolves once both sides have proven the secret.

    inflight_max  requests held open; one more raises Overloaded
    timeout_s     a request older than this is answered LATE by `sweep`
    on_lost       called once, when the connection is gone
    on_push       called with what the owner sends unasked
    """

    def __init__(
        self,
        principal: str,
        secret: bytes,
        inflight_max: int,
        timeout_s: float,
        on_lost: Callable[[Connection], None],
        on_push: OnPush = ignore_push,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.unmatched = 0
        """Replies whose request had been given up."""
        self._inflight_max = inflight_max
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._on_push = on_push
        self._handshake: ClientHandshake | None = ClientHandshake(principal, secret)
        self._challenged = False
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._pending: dict[int, asyncio.Future[Reply]] = {}
        self._request = 0
        self._out: list[bytes] = []
        self._flush_scheduled = False
        self._paused = False
        self._queued_bytes = 0
        self._retired = False
        self._heard = True
        self._heard_at = self._loop.time()
        # (time, first request id not yet given out then), one per sweep, oldest first.
        self._marks: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._pending)

    def submit(self, op: int, body: bytes, meta: bytes = b"") -> asyncio.Future[Reply]:
        """Send one request; the future gives its reply. It never has an exception.

        Call it only when `ready` is done. Raises Overloaded, or FrameError if the frame is too
        large; then nothing was sent.
        """
        assert self._transport is not None
        if len(self._pending) >= self._inflight_max or self._queued_bytes > QUEUED_BYTES_MAX:
            raise Overloaded(
                f"{len(self._pending)} requests ({self._queued_bytes} bytes unsent) are in "
                f"flight to one owner, at most {self._inflight_max} are allowed"
            )
        request = self._request
        frame = encode_frame(request, op, body, meta)
        self._request = (request + 1) % REQUEST_IDS
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._pending[request] = future
        self._out.append(frame)
        if self._paused:
            self._queued_bytes += len(frame)
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
        return future

    def sweep(self, now_s: float) -> None:
        """Answer LATE what waited longer than `timeout_s`. The router calls it for all
        connections several times per timeout: a timer per request would cost more than the rest.
        """
        if self._heard:
            self._heard = False
            self._heard_at = now_s
        marks = self._marks
        marks.append((now_s, self._request))
        bound = -1
        while marks[0][0] <= now_s - self._timeout_s:
            bound = marks.popleft()[1]
        if bound >= 0 and self._pending:
            self._drop_older(bound, now_s)
        if self._retired and not self._pending:
            self.abort("the owner is no longer in the map")

    def retire(self) -> None:
        """Close once every request in flight is answered or late."""
        self._retired = True

    def abort(self, reason: str) -> None:
        """End the connection now; what is in flight is answered LOST."""
        transport, self._transport = self._transport, None
        self._lose(reason)
        if transport is not None:
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, for uvloop's transports don't inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            frames = self._decoder.feed(data)
            if self._handshake is not None:
                frames = self._shake_hands(self._handshake, frames)
            pop = self._pending.pop
            for request, op, status, meta, body in frames:
                if op != _REPLY:
                    if op != _PUSH:
                        raise FrameError(f"an owner sends replies and pushes only, got op {op}")
                    self._on_push(meta, body)
                    continue
                future = pop(request, None)
                if future is None:
                    self.unmatched += 1
                elif not future.done():
                    future.set_result((status, body))
        except (FrameError, AuthError) as error:
            if not self.ready.done():
                self.ready.set_exception(error)
            self.abort(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        during = " during the handshake" if self._handshake is not None else ""
        self._lose(f"the owner closed the connection{during}" + (f": {exc}" if exc else ""))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._queued_bytes = 0
        self._flush()

    def _flush(self) -> None:
        """All frames of this turn of the loop leave in one write."""
        self._flush_scheduled = False
        if self._out and not self._paused and self._transport is not None:
            data = b"".join(self._out)
            self._out.clear()
            self._transport.write(data)

    def _shake_hands(self, handshake: ClientHandshake, frames: list[Frame]) -> list[Frame]:
        """Take the handshake's frames off the front; the rest are replies."""
        for at, (_request, op, _status, _meta, body) in enumerate(frames):
            if op == Op.CHALLENGE and not self._challenged and self._transport is not None:
                self._challenged = True
                self._transport.write(handshake.hello(body))
            elif op == Op.WELCOME and self._challenged:
                handshake.check_welcome(body)
                self._handshake = None
                if not self.ready.done():
                    self.ready.set_result(None)
                return frames[at + 1 :]
            elif op == _REPLY:
                raise AuthError(f"the owner refused: {body.decode(errors='replace')}")
            else:
                raise AuthError(f"the handshake was broken by a frame with op {op}")
        return []

    def _drop_older(self, bound: int, now_s: float) -> None:
        """Answer LATE every request given out before `bound`."""
        late = []
        for request in self._pending:
            # Ids wrap around, so "before" means less than half the ring behind.
            if not 0 < (bound - request) % REQUEST_IDS < REQUEST_IDS // 2:
                break
            late.append(request)
        for request in late:
            future = self._pending.pop(request)
            if not future.done():
                future.set_result((LATE, b"no reply within %.3g s" % self._timeout_s))
        if late and self._heard_at <= now_s - self._timeout_s:
            self.abort(f"nothing was heard for {self._timeout_s:.3g} s")

    def _lose(self, reason: str) -> None:
        pending, self._pending = self._pending, {}
        self._out.clear()
        self._queued_bytes = 0
        for future in pending.values():
            if not future.done():
                future.set_result((LOST, reason.encode()))
        if not self.ready.done():
            self.ready.set_exception(Unavailable(reason))
        # Nobody may be waiting for `ready`; asyncio would report that as an error.
        if not self.ready.cancelled():
            self.ready.exception()
        on_lost, self._on_lost = self._on_lost, _ignore
        on_lost(self)


def _ignore(_connection: Connection) -> None:
    """on_lost is called once."""
