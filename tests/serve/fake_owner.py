"""An owner that speaks the frame protocol with its real handshake and answers as a test says."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import uvloop

from cluster.errors import AuthError, FrameError
from cluster.frames import FrameDecoder, Op, ServerHandshake, encode_frame
from cluster.keys import split_evenly
from cluster.partition_map import Owner, PartitionMap, owner
from serve.router import Router

SECRET = b"s" * 32
TEST_TIMEOUT_S = 60

Request = tuple[int, bytes, bytes]
Answer = tuple[int, bytes] | None
Handler = Callable[[int, bytes, bytes], Answer | Awaitable[Answer]]


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on uvloop and on asyncio's own loop; a hang fails."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(asyncio.wait_for(test(*args, **kwargs), TEST_TIMEOUT_S))

    return run


def echo(op: int, meta: bytes, body: bytes) -> Answer:
    return 200, b"%d|%b|%b" % (op, meta, body)


class FakeOwner:
    """handler(op, meta, body) -> (status, body), or None to stay silent; may be a coroutine.

    secrets  secret by principal
    cut      replies are written in pieces of this many bytes (0: as a whole)
    """

    def __init__(
        self,
        handler: Handler = echo,
        name: str = "a",
        secrets: dict[str, bytes] | None = None,
        cut: int = 0,
    ) -> None:
        self.handler = handler
        self.name = name
        self.secrets = {"gateway": SECRET} if secrets is None else secrets
        self.cut = cut
        self.port = 0
        self.requests: list[Request] = []
        self.arrived = asyncio.Event()
        self.connections: list[_Served] = []
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> FakeOwner:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Served(self), "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """As kill -9: the port closes and all connections end."""
        assert self._server is not None
        self._server.close()
        self.drop()
        await self._server.wait_closed()

    def drop(self) -> None:
        """End all connections, keep listening."""
        for connection in list(self.connections):
            connection.transport.abort()

    async def seen(self, count: int) -> None:
        """Wait until this many requests have arrived."""
        while len(self.requests) < count:
            self.arrived.clear()
            await self.arrived.wait()


class _Served(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, fake: FakeOwner) -> None:
        self._fake = fake
        self._decoder = FrameDecoder()
        self._handshake = ServerHandshake()
        self._welcomed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._fake.connections.append(self)
        self.transport.write(self._handshake.challenge())

    def connection_lost(self, exc: Exception | None) -> None:
        self._fake.connections.remove(self)

    def data_received(self, data: bytes) -> None:
        try:
            for request, op, _status, meta, body in self._decoder.feed(data):
                if not self._welcomed:
                    hello = self._handshake.read_hello(body)
                    secret = self._fake.secrets.get(hello.principal)
                    self.transport.write(self._handshake.welcome(hello, secret))
                    self._welcomed = True
                    continue
                self._fake.requests.append((op, meta, body))
                self._fake.arrived.set()
                answer = self._fake.handler(op, meta, body)
                if isinstance(answer, Awaitable):
                    task = asyncio.ensure_future(self._answer_later(request, answer))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                else:
                    self._answer(request, answer)
        except AuthError as error:
            self.transport.write(self._handshake.refusal(error))
            self.transport.close()
        except FrameError:
            self.transport.close()

    async def _answer_later(self, request: int, answer: Awaitable[Answer]) -> None:
        self._answer(request, await answer)

    def _answer(self, request: int, answer: Answer) -> None:
        if answer is None:
            return
        data = encode_frame(request, Op.REPLY, answer[1], status=answer[0])
        for at in range(0, len(data), self._fake.cut or len(data)):
            self.transport.write(data[at : at + (self._fake.cut or len(data))])


def map_of(epoch: int, *owners: FakeOwner | Owner) -> PartitionMap:
    """A map that gives each owner an equal range, in order."""
    entries = []
    for key_range, entry in zip(split_evenly(len(owners)), owners, strict=True):
        port = entry.port
        name = entry.name if isinstance(entry, FakeOwner) else entry.shard_id
        entries.append(owner(name, key_range, "127.0.0.1", port))
    return PartitionMap(epoch, tuple(entries))


class Maps:
    """A fetch_map whose answer a test sets. Counts how often it was asked."""

    def __init__(self, newest: PartitionMap) -> None:
        self.newest = newest
        self.asked = 0
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    async def __call__(self, epoch: int) -> PartitionMap:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.newest


def new_router(maps: Maps, **settings: Any) -> Router:
    """A router with short waits, of the gateway unless a test says otherwise."""
    wanted: dict[str, Any] = {
        "principal": "gateway",
        "secret": SECRET,
        "inflight_max": 64,
        "request_timeout_s": 5.0,
        "map_wait_s": 5.0,
    }
    wanted |= settings
    principal, secret = wanted.pop("principal"), wanted.pop("secret")
    return Router(maps, principal, secret, **wanted)
