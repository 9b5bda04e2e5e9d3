"""A shard's TCP endpoint: handshake, then frames in and answers out, in order of arrival.

One event loop, one writer. Requests stand in one queue in order of arrival, so that how long they
wait is known; a turn works on it for TURN_NS and lets the loop read what came meanwhile. Answers of
one turn leave in one write per connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter_ns
from typing import NamedTuple, cast

import msgspec

from actors.checked import decode, refusal
from actors.inbox import Subscribe, decode_subscribe
from actors.people import SECRET_ROLE, Caller, parse_caller
from actors.shard import OVERLOADED, Shard
from actors.shard_reads import Answer
from cluster.errors import AuthError, ConfigError, FrameError, RequestError
from cluster.frames import (
    FRAME_BYTES_MAX,
    HANDSHAKE_BYTES_MAX,
    Frame,
    FrameDecoder,
    Op,
    ServerHandshake,
    encode_frame,
)
from cluster.levels import Level

LOG = logging.getLogger("onehop.actors")

HELLO_S = 5.0
TURN_NS = 2_000_000
QUEUED_BYTES_MAX = 64 << 20
CONNECTIONS_MAX = 1024
# Counters are of the shard, not of a tenant.
_NOBODY = Caller(SECRET_ROLE, "")
# The secret of a principal, and for whom it may speak (None: for whom each frame's meta names).
SecretOf = Callable[[str], tuple[bytes, Caller | None] | None]


class Endpoint:
    """Listens for gateways and SDKs on behalf of one shard."""

    def __init__(self, shard: Shard, secret_of: SecretOf) -> None:
        self.shard = shard
        self.secret_of = secret_of
        self.connections: set[OwnerConnection] = set()
        self._queue: deque[_Read] = deque()
        self._queued_bytes = 0
        self._turn_due = False
        self._paused: list[OwnerConnection] = []
        self._held = False
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int = 0) -> tuple[str, int]:
        """Listen; returns the address, with the port that the system chose if it was 0."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: OwnerConnection(self), host, port)
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    def drop_revoked(self) -> None:
        """End the connections of keys that were revoked or expired since their hello."""
        for connection in list(self.connections):
            try:
                if connection.principal and self.secret_of(connection.principal) is None:
                    connection.close("its key is no longer valid")
            except ConfigError as error:
                LOG.error("connections keep their keys: %s", error)
                return

    def take(self, connection: OwnerConnection, frames: list[Frame], size: int) -> None:
        """Answer requests that came in one read, `size` bytes, when their turn comes."""
        if not frames:
            return
        self._queue.append(_Read(connection, iter(frames), perf_counter_ns(), size))
        self._queued_bytes += size
        if self._queued_bytes > QUEUED_BYTES_MAX:
            connection.pause("queue", True)
            self._paused.append(connection)
        if not self._turn_due:
            self._turn()

    def hold(self) -> None:
        """Let requests wait from now on: neither refused nor applied."""
        self._held = True

    def go_on(self) -> None:
        """Answer again, first what waited. It waited for us: that is no sign of overload."""
        self._held = False
        now_ns = perf_counter_ns()
        self._queue = deque(read._replace(arrived_ns=now_ns) for read in self._queue)
        if not self._turn_due:
            self._turn()

    def _turn(self) -> None:
        """Work on the queue for a bounded time."""
        if self._held:
            self._turn_due = False
            return
        queue = self._queue
        stop_ns = perf_counter_ns() + TURN_NS
        touched: list[OwnerConnection] = []
        while queue and perf_counter_ns() < stop_ns:
            read = queue[0]
            if read.connection.answer(read.frames, read.arrived_ns, stop_ns):
                queue.popleft()
                self._queued_bytes -= read.size
            if read.connection not in touched:
                touched.append(read.connection)
        for connection in touched:
            connection.flush()
        self._turn_due = bool(queue)
        if queue:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self.shard.admission.idle()
        if self._paused and self._queued_bytes <= QUEUED_BYTES_MAX // 2:
            for connection in self._paused:
                connection.pause("queue", False)
            self._paused.clear()

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close("the shard is leaving")


class _Read(NamedTuple):
    """What one read brought: requests in order, taken from `frames` one by one."""

    connection: OwnerConnection
    frames: Iterator[Frame]
    arrived_ns: int
    size: int


class OwnerConnection(asyncio.Protocol):
    """One connection. Nothing but a hello is read before the hello was proven."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._shard = endpoint.shard
        self._decoder = FrameDecoder(HANDSHAKE_BYTES_MAX)
        self._handshake = ServerHandshake()
        self._trusted = False
        self.principal = ""
        """Who said hello; "" before that was proven."""
        self._caller: Caller | None = None
        self._callers: dict[bytes, Caller] = {}
        self._out: dict[Level, list[bytes]] = {}
        self._asked: list[int] = []
        """Requests whose answers wait for the backup."""
        self._reasons: set[str] = set()
        """Why nothing is read now."""
        self._transport: asyncio.Transport | None = None
        self._hello_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if len(self._endpoint.connections) >= CONNECTIONS_MAX:
            self.close(f"connections must be <= {CONNECTIONS_MAX}")
            return
        self._endpoint.connections.add(self)
        self._transport.write(self._handshake.challenge())
        loop = asyncio.get_running_loop()
        self._hello_timer = loop.call_later(HELLO_S, self.close, "no hello in time")

    def connection_lost(self, exc: Exception | None) -> None:
        self._endpoint.connections.discard(self)
        self._shard.mailroom.inbox.drop_line(self)
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self._transport = None

    # A client that does not read its answers is not read either.

    def pause_writing(self) -> None:
        self.pause("writing", True)

    def resume_writing(self) -> None:
        self.pause("writing", False)

    def pause(self, reason: str, paused: bool) -> None:
        """Stop reading for a reason, or go on once there is none left."""
        (self._reasons.add if paused else self._reasons.discard)(reason)
        if self._transport is None or self._transport.is_closing():
            return
        if self._reasons:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
            if not (self._trusted or self._caller):
                frames = self._greet(frames)
        except AuthError as error:
            if self._transport is not None:
                self._transport.write(self._handshake.refusal(error))
            self.close(str(error))
            return
        except (FrameError, ConfigError) as error:
            # ConfigError: the keys can't be read. Who is not known yet is not told of our files.
            self.close(str(error))
            return
        self._endpoint.take(self, frames, len(data))

    def answer(self, frames: Iterator[Frame], arrived_ns: int, stop_ns: int) -> bool:
        """Answer requests until the time is up; returns whether all of them are answered.

        Nothing is done for a peer that has gone: it never learns of it, and repeats it.
        """
        if self._transport is None:
            return True
        for request, op, _, meta, body in frames:
            now_ns = perf_counter_ns()
            if op != Op.STATS and not self._shard.admits(now_ns - arrived_ns, now_ns):
                self._out.setdefault("memory", []).append(
                    encode_frame(request, Op.REPLY, OVERLOADED, b"", 429)
                )
                continue
            status, answer = self._answer(op, meta, body, arrived_ns)
            if len(answer) > FRAME_BYTES_MAX:
                seen, wanted = f"{len(answer)} bytes", "fewer decisions or actions"
                status, answer = self._shard.refuse(
                    RequestError(422, "the answer is too large", "", seen, wanted)
                )
            reply = encode_frame(request, Op.REPLY, answer, b"", status)
            self._out.setdefault(self._shard.level, []).append(reply)
            if self._shard.level == "replica":
                self._asked.append(request)
            if now_ns > stop_ns:
                return False
        return True

    def flush(self) -> None:
        """Let the answers leave together, each level's when it is reached."""
        journal = self._shard.journal
        out, self._out = self._out, {}
        asked, self._asked = self._asked, []
        for level, replies in out.items():
            if journal is None:
                self._send(b"".join(replies))
            else:
                # Reads wait too: what they saw must not be lost after they told of it.
                refuse = partial(self._refuse_all, asked) if level == "replica" else None
                journal.after_all(partial(self._send, b"".join(replies)), level, refuse)

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _subscribe(self, caller: Caller, body: bytes) -> Answer:
        """Reach a page over this connection from now on."""
        shard = self._shard
        shard.level = shard.read_level
        try:
            request: Subscribe = decode(decode_subscribe, body)
            key = shard.owned(caller, request.user_id, request.anonymous_id)
            if key is None:
                return shard.moved()
            inbox = shard.mailroom.inbox
            inbox.subscribe(key, request.token, self._push, self, shard.now())
        except RequestError as error:
            return shard.refuse(error)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return shard.refuse(refusal(error, body))
        return 200, b'{"subscribed":true}'

    def _push(self, token: bytes, message: bytes) -> None:
        frame = encode_frame(0, Op.PUSH, message, token)
        journal = self._shard.journal
        if journal is None:
            self._send(frame)
        else:
            # What caused the message must not be lost after it was shown.
            journal.after_all(partial(self._send, frame), journal.read_level)

    def _refuse_all(self, requests: list[int]) -> None:
        """The backup was lost before these were on it. They are applied: a repeat is safe."""
        error = RequestError(503, "the backup was lost; retry with the same messageId")
        status, answer = self._shard.refuse(error)
        frames = (encode_frame(request, Op.REPLY, answer, b"", status) for request in requests)
        self._send(b"".join(frames))

    def _answer(self, op: int, meta: bytes, body: bytes, arrived_ns: int) -> Answer:
        caller = self._caller or (_NOBODY if op == Op.STATS else None)
        if caller is None:
            caller = self._callers.get(meta)
            if caller is None:
                try:
                    caller = parse_caller(meta)
                except RequestError as error:
                    return self._shard.refuse(error)
                if len(self._callers) >= 1024:
                    self._callers.clear()
                self._callers[meta] = caller
        if self._shard.gone and op != Op.STATS:
            self._shard.level = "memory"
            return self._shard.moved()
        if op == Op.SUBSCRIBE:
            return self._subscribe(caller, body)
        return self._shard.handle(op, caller, body, arrived_ns)

    def _greet(self, frames: list[Frame]) -> list[Frame]:
        """Take the hello; returns the frames behind it. Raises AuthError."""
        if not frames:
            return frames
        _, op, _, _, body = frames[0]
        if op != Op.HELLO:
            raise AuthError(f"the first frame must be a hello, got op {op}")
        hello = self._handshake.read_hello(body)
        found = self._endpoint.secret_of(hello.principal)
        secret, caller = found if found is not None else (None, None)
        welcome = self._handshake.welcome(hello, secret)
        if caller is None:
            self._trusted = True
        self._caller = caller
        self.principal = hello.principal
        self._decoder.bytes_max = FRAME_BYTES_MAX
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        if self._transport is not None:
            self._transport.write(welcome)
        return frames[1:]

    def close(self, reason: str) -> None:
        """End the connection; what is in the send buffer still leaves."""
        LOG.info("shard %s closes a connection: %s", self._shard.shard_id, reason)
        if self._transport is not None:
            self._transport.close()
