"""The load of `tests.bench.hop` that wrk can't make: WebSocket and SDK callers, one process.

    python -m tests.bench.hop_client load MODE --port P --home F --pool FILE --prefix HEX ...
    python -m tests.bench.hop_client ask MODE --port P --home F   bodies on stdin, answers on stdout
    python -m tests.bench.hop_client fill --port P --seed N       catalogue and histories

MODE ws      one WebSocket, N messages in flight; what is ready in one turn leaves as one array
     ws_each N WebSockets with one message in flight each, as N pages would
     sdk     one `serve.client.Client` with N concurrent callers, straight to the owners: JSON in,
             JSON out, as in all other arms
`home` is the server's data folder, which holds the key.
`load` prints one JSON line in the form that hop.lua prints.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from cluster.errors import OnehopError
from serve.auth import KEYS_ENV, read_environment
from serve.client import Client
from tests.bench.harness import percentile
from tests.bench.hop_work import (
    EVENT,
    PEOPLE,
    body,
    embeddings,
    histories,
    item_id,
    person_id,
)

ITEMS_CHUNK = 500
FILL_INFLIGHT = 256
BUSY_S = 0.05

# A person's id and a decide body that holds it -> the answer.
Ask = Callable[[str, bytes], Awaitable[bytes]]


class Reply(msgspec.Struct):
    """What the client reads of a stream's reply."""

    id: int
    status: int
    answer: msgspec.Raw = msgspec.Raw(b"null")
    problem: msgspec.Raw = msgspec.Raw(b"null")


_replies = msgspec.json.Decoder(list[Reply])


class Busy(RuntimeError):
    """Status 429: it is to be asked again after a pause."""


class Stream(asyncio.Protocol):
    """A WebSocket client just good enough for a load: text messages, no fragments.

    Its masking key is zero, which RFC 6455 allows, so masking costs nothing.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open: asyncio.Future[None] = self._loop.create_future()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._count = 0
        self._transport: Any = None

    @classmethod
    async def connect(cls, port: int) -> Stream:
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_connection(cls, "127.0.0.1", port)
        stream._transport.write(
            b"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: b25laG9wLWJlbmNoLWtleQ==\r\n\r\n" % port
        )
        await stream._open
        return stream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        waiting: list[asyncio.Future[Any]] = [self._open, *self._waiting.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error or ConnectionError("the stream was closed"))

    def call(self, _user: str, request: bytes) -> asyncio.Future[bytes]:
        """One decide body in, its answer out. Raises RuntimeError unless the status is 200."""
        self._count += 1
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[self._count] = future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(b'{"id":%d,"type":"decide",' % self._count + request[1:])
        return future

    def _flush(self) -> None:
        text = b"[%b]" % b",".join(self._out) if len(self._out) > 1 else self._out[0]
        self._out.clear()
        size = len(text)
        if size < 126:
            head = bytes((0x81, 0x80 | size))
        elif size < 1 << 16:
            head = b"\x81\xfe" + size.to_bytes(2, "big")
        else:
            head = b"\x81\xff" + size.to_bytes(8, "big")
        self._transport.write(head + b"\0\0\0\0" + text)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open.done():
            head, found, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head:
                self._open.set_exception(ConnectionError(head.decode("latin-1")))
                return
            self._buffer[:] = rest
            self._open.set_result(None)
        while (text := self._message()) is not None:
            for reply in _replies.decode(text):
                future = self._waiting.pop(reply.id)
                if reply.status == 200:
                    future.set_result(bytes(reply.answer))
                else:
                    kind = Busy if reply.status == 429 else RuntimeError
                    future.set_exception(kind(bytes(reply.problem).decode()))

    def _message(self) -> bytes | None:
        """The next complete text message of the buffer."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, at = buffer[1], 2
        if size == 126:
            size, at = int.from_bytes(buffer[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < at + size:
            return None
        kind, content = buffer[0], bytes(buffer[at : at + size])
        del buffer[: at + size]
        if kind == 0x89:
            # A ping, which comes when filling takes long; its pong has the same content.
            self._transport.write(bytes((0x8A, 0x80 | size)) + b"\0\0\0\0" + content)
            return self._message()
        if kind != 0x81:
            raise ConnectionError(f"wanted a text message, got {kind:#x} {content[:80]!r}")
        return content


@asynccontextmanager
async def askers(mode: str, port: int, home: Path | None, count: int) -> AsyncIterator[list[Ask]]:
    """`count` callers."""
    if mode == "ws":
        stream = await Stream.connect(port)
        yield [stream.call] * count
    elif mode == "ws_each":
        yield [(await Stream.connect(port)).call for _ in range(count)]
    else:
        keys = read_environment((home or Path()) / KEYS_ENV)
        assert keys is not None, f"no keys in {home}"
        async with Client(f"http://127.0.0.1:{port}", keys.sk, direct=True) as client:

            async def sdk(user: str, request: bytes) -> bytes:
                return await client.decide_raw(request, user_id=user)

            yield [sdk] * count


async def load(flags: argparse.Namespace) -> dict[str, float]:
    """Each caller sends its next request as soon as it has an answer, for `seconds`."""
    tails = flags.pool.read_bytes().splitlines()
    # Each begins ","userId":"u17",
    users = [tail.split(b'"', 5)[4].decode() for tail in tails]
    latencies: list[float] = []
    errors = 0
    sent = int(flags.prefix, 16) * 7919
    clock = time.perf_counter

    async def caller(ask: Ask, stop: float) -> None:
        nonlocal sent, errors
        while (start := clock()) < stop:
            sent += 1
            at = sent % len(tails)
            try:
                await ask(users[at], body(f"{flags.prefix}{sent:016d}", tails[at]))
            except (RuntimeError, OSError, OnehopError) as error:
                errors += 1
                print(error, file=sys.stderr)
                continue
            latencies.append(clock() - start)

    async with askers(flags.mode, flags.port, flags.home, flags.inflight) as callers:
        # The harness looks at the servers' CPU time now, then lets us begin.
        print("ready", flush=True)
        sys.stdin.readline()
        began, cpu_began = clock(), time.process_time()
        await asyncio.gather(*(caller(ask, began + flags.seconds) for ask in callers))
        took_s, cpu_s = clock() - began, time.process_time() - cpu_began
    latencies.sort()
    return {
        "requests": len(latencies),
        "duration_s": took_s,
        "p50_us": percentile(latencies, 0.50) * 1e6,
        "p99_us": percentile(latencies, 0.99) * 1e6,
        "errors": errors,
        "cpu_s": cpu_s,
    }


async def ask(flags: argparse.Namespace) -> None:
    """Answer each line of standard input with a line, one after the other."""
    async with askers(flags.mode, flags.port, flags.home, 1) as [call]:
        for line in sys.stdin.buffer:
            user = json.loads(line)["userId"]
            sys.stdout.buffer.write(await call(user, line.rstrip()) + b"\n")


async def fill(flags: argparse.Namespace) -> None:
    """Put the catalogue through /v1/items:batch and everybody's history through /v1/stream."""
    vectors = embeddings(flags.seed)
    for start in range(0, len(vectors), ITEMS_CHUNK):
        stop = min(start + ITEMS_CHUNK, len(vectors))
        items = [{"id": item_id(i), "embedding": vectors[i].tolist()} for i in range(start, stop)]
        request = urllib.request.Request(
            f"http://127.0.0.1:{flags.port}/v1/items:batch",
            json.dumps({"items": items}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200, answer.read()
    history = histories(flags.seed)
    people = iter(range(PEOPLE))

    async def caller(call: Ask) -> None:
        for person in people:
            events = [
                {"event": EVENT, "properties": {"itemId": item_id(item)}}
                for item in history[person].tolist()
            ]
            rest = {"userId": person_id(person), "events": events}
            tail = b'",' + json.dumps(rest, separators=(",", ":")).encode()[1:]
            request = body(f"fill{person:020d}", tail)
            while True:
                try:
                    await call("", request)
                    break
                except Busy:
                    await asyncio.sleep(BUSY_S)

    async with askers("ws", flags.port, None, FILL_INFLIGHT) as callers:
        await asyncio.gather(*(caller(call) for call in callers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("load", "ask", "fill"))
    parser.add_argument("mode", nargs="?", choices=("ws", "ws_each", "sdk"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--prefix", default="00000000")
    parser.add_argument("--inflight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    if flags.what == "load":
        print(json.dumps(uvloop.run(load(flags))), flush=True)
    elif flags.what == "ask":
        uvloop.run(ask(flags))
    else:
        uvloop.run(fill(flags))


if __name__ == "__main__":
    main()
