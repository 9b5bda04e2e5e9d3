"""The edge behind the real HTTP server that Ray Serve runs, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import uvicorn
from websockets.asyncio.client import connect

from tests.serve.edge import Edge, new_edge
from tests.serve.fake_owner import asynchronous


class Server(NamedTuple):
    edge: Edge
    port: int

    async def exchange(self, data: bytes, until: int) -> bytes:
        """Send raw bytes; what comes back until `until` responses are whole, or the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        received = b""
        while whole_responses(received) < until and (more := await reader.read(65_536)):
            received += more
        writer.close()
        return received


def whole_responses(data: bytes) -> int:
    count = 0
    while b"\r\n\r\n" in data:
        head, _, data = data.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100 "):
            continue
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(data) < length:
            break
        data = data[length:]
        count += 1
    return count


@asynccontextmanager
async def new_server(folder: Path, **settings: Any) -> AsyncIterator[Server]:
    async with new_edge(folder, inflight_max=1000, **settings) as edge:
        config = uvicorn.Config(
            edge.fast, port=0, lifespan="off", access_log=False, log_config=None, log_level=None
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield Server(edge, server.servers[0].sockets[0].getsockname()[1])
        finally:
            server.should_exit = True
            await serving


def request(body: bytes, path: str = "/v1/decide", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynchronous
async def test_requests_on_one_connection_are_answered_in_order(tmp_path: Path):
    async with new_server(tmp_path) as server:
        bodies = [b'{"userId":"%d"}' % i for i in range(20)]
        received = await server.exchange(b"".join(map(request, bodies)), 20)
        assert whole_responses(received) == 20
        seen = [
            msgspec.json.decode(part[: part.index(b"HTTP/1.1") if b"HTTP/1.1" in part else None])
            for part in received.split(b"\r\n\r\n")[1:]
        ]
        assert [answer["body"].encode() for answer in seen] == bodies


@asynchronous
async def test_head_and_body_leave_in_one_write(tmp_path: Path):
    async with new_server(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(50):
            writer.write(request(b'{"userId":"ada"}'))
            assert whole_responses(await reader.read(65_536)) == 1
        writer.close()


@asynchronous
async def test_close_is_honoured_and_errors_keep_the_connection(tmp_path: Path):
    async with new_server(tmp_path) as server:
        closing = request(b'{"userId":"ada"}', "/v1/decide", "Connection: close")
        received = await server.exchange(request(b"{") + closing + request(b"{}"), 3)
        assert whole_responses(received) == 2
        assert received.startswith(b"HTTP/1.1 400 ")
        assert b"connection: close" in received


@asynchronous
async def test_a_body_beyond_the_limit_is_answered_413(tmp_path: Path):
    async with new_server(tmp_path) as server:
        received = await server.exchange(request(b" " * (3 << 20)), 1)
        assert received.startswith(b"HTTP/1.1 413 ")


@asynchronous
async def test_a_body_that_never_comes_whole_holds_nothing_for_ever(tmp_path: Path):
    async with new_server(tmp_path, body_timeout_s=0.1) as server:
        for path in ("/v1/decide", "/v1/items:batch"):
            whole = request(b'{"userId":"ada"}', path)
            head = whole[: whole.index(b"{")]
            for begun in (head, head + b"{"):
                # until=2: what comes after the answer can only be the connection's end.
                received = await server.exchange(begun, 2)
                assert received.startswith(b"HTTP/1.1 408 ")


@asynchronous
async def test_other_methods_are_answered_as_http_wants_it(tmp_path: Path):
    async with new_server(tmp_path, origins=("https://shop.example",)) as server:
        start = b"%b %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%b\r\n"
        head = await server.exchange(start % (b"HEAD", b"/health/ready", b""), 1)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")
        head = await server.exchange(start % (b"HEAD", b"/v1/decide", b""), 1)
        assert head.startswith(b"HTTP/1.1 405 ")
        assert head.endswith(b"\r\n\r\n")
        origin = b"Origin: https://shop.example\r\n"
        asked = await server.exchange(start % (b"OPTIONS", b"/v1/decide", origin), 1)
        assert asked.startswith(b"HTTP/1.1 204 ")
        assert b"content-length" not in asked
        assert asked.endswith(b"\r\n\r\n")


@asynchronous
async def test_chunked_and_expected_bodies_arrive(tmp_path: Path):
    async with new_server(tmp_path) as server:
        head = b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\n"
        chunks = b'8\r\n{"userId\r\n8\r\n":"ada"}\r\n0\r\n\r\n'
        received = await server.exchange(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, 1)
        assert b'"body":"{\\"userId\\":\\"ada\\"}"' in received
        received = await server.exchange(
            request(b'{"userId":"ada"}', "/v1/decide", "Expect: 100-continue"), 1
        )
        assert received.startswith(b"HTTP/1.1 100 Continue")


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01junk\r\n\r\n", b"POST /v1/decide\r\n\r\n", b"\0" * 99]
)
def test_bytes_that_are_no_http_end_only_their_connection(tmp_path: Path, junk: bytes):
    @asynchronous
    async def check() -> None:
        async with new_server(tmp_path) as server:
            assert (await server.exchange(junk, 1)).startswith(b"HTTP/1.1 4")
            assert b" 200 " in await server.exchange(request(b'{"userId":"ada"}'), 1)

    check()


@asynchronous
async def test_the_stream_over_a_real_websocket(tmp_path: Path):
    async with (
        new_server(tmp_path) as server,
        connect(f"ws://127.0.0.1:{server.port}/v1/stream") as socket,
    ):
        messages = [{"type": "track", "id": i, "userId": "ada"} for i in range(100)]
        for at in range(0, 100, 20):
            await socket.send(msgspec.json.encode(messages[at : at + 20]).decode())
        seen: list[int] = []
        while len(seen) < 100:
            seen += [reply["id"] for reply in msgspec.json.decode(await socket.recv())]
        assert seen == list(range(100))
