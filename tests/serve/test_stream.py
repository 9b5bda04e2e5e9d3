from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.messages import BODY_BYTES_MAX
from cluster.access import read_keys
from serve.auth import write_keys
from serve.fast_lane import FastLane
from serve.stream import STREAM_INFLIGHT_MAX
from tests.serve.edge import LOCAL, Edge, Headers, echo_json, key_header, new_edge
from tests.serve.fake_owner import asynchronous


class Socket:
    """The caller's end of one WebSocket, through ASGI messages."""

    def __init__(
        self, app: Any, headers: Headers = (LOCAL,), subprotocols: tuple[str, ...] = ()
    ) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reading = asyncio.Event()
        self.reading.set()
        self.incoming.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "path": "/v1/stream",
            "raw_path": b"/v1/stream",
            "root_path": "",
            "scheme": "ws",
            "query_string": b"",
            "headers": list(headers),
            "subprotocols": list(subprotocols),
        }
        self.task = asyncio.ensure_future(app(scope, self.incoming.get, self._send))

    async def _send(self, message: Any) -> None:
        await self.reading.wait()
        self.outgoing.put_nowait(dict(message))

    async def accepted(self) -> dict[str, Any]:
        message = await self.outgoing.get()
        assert message["type"] == "websocket.accept"
        return message

    def send(self, value: Any) -> None:
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        self.incoming.put_nowait({"type": "websocket.receive", "text": text})

    async def replies(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while len(found) < count:
            message = await self.outgoing.get()
            assert message["type"] == "websocket.send", message
            found += msgspec.json.decode(message["text"])
        return found

    async def close(self) -> None:
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await self.task


async def opened(edge: Edge, *args: Any, app: Any = None) -> Socket:
    socket = Socket(app or edge.fast, *args)
    await socket.accepted()
    return socket


@asynchronous
async def test_one_message_and_an_array_are_answered_by_id_on_both_ways_in(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        for app in (edge.fast, edge.plain):
            socket = await opened(edge, app=app)
            socket.send({"type": "decide", "id": 1, "userId": "ada"})
            (first,) = await socket.replies(1)
            assert first["id"] == 1
            assert first["status"] == 200
            # The owner sees what it would see if the message had come over HTTP.
            assert first["answer"]["body"] == '{"userId":"ada"}'
            socket.send([{"type": "track", "id": f"m{i}", "userId": "ada"} for i in range(3)])
            assert [reply["id"] for reply in await socket.replies(3)] == ["m0", "m1", "m2"]
            await socket.close()


@asynchronous
async def test_replies_come_as_they_become_ready_and_not_in_order(tmp_path: Path):
    gate = asyncio.Event()

    async def owner(op: int, meta: bytes, body: bytes) -> tuple[int, bytes]:
        if b"slow" in body:
            await gate.wait()
        return 200, b"{}"

    async with new_edge(tmp_path, owner) as edge:
        socket = await opened(edge)
        socket.send([{"type": "track", "id": i, "userId": i} for i in ("slow", "quick")])
        assert [reply["id"] for reply in await socket.replies(1)] == ["quick"]
        gate.set()
        assert [reply["id"] for reply in await socket.replies(1)] == ["slow"]
        await socket.close()


@asynchronous
async def test_replies_that_are_ready_together_leave_in_one_message(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        socket = await opened(edge)
        socket.send([{"type": "track", "id": i, "userId": "ada"} for i in range(40)])
        assert len(await socket.replies(40)) == 40
        assert socket.outgoing.empty()
        await socket.close()


@asynchronous
async def test_a_bad_message_is_a_problem_and_the_stream_goes_on(tmp_path: Path):
    bad: list[tuple[Any, int]] = [
        ("{", 400),
        ("[1", 400),
        ("7", 422),
        ({"type": "track", "userId": "ada"}, 422),
        ({"type": "dance", "id": 1, "userId": "ada"}, 422),
        ({"type": "track", "id": 1}, 422),
        ({"type": "track", "id": 1.5, "userId": "ada"}, 422),
        ([{"type": "track", "id": 1, "userId": "a"}] * 501, 422),
        ('{"x":"' + "x" * BODY_BYTES_MAX + '"}', 413),
        ("[" * 100_000, 400),
    ]
    async with new_edge(tmp_path) as edge:
        socket = await opened(edge)
        for message, status in bad:
            socket.send(message)
            (reply,) = await socket.replies(1)
            assert reply["status"] == status, message
            assert "title" in reply["problem"]
        assert not edge.owner.requests
        socket.send({"type": "track", "id": 1, "userId": "ada"})
        assert (await socket.replies(1))[0]["status"] == 200
        await socket.close()


@asynchronous
async def test_a_browser_sends_its_key_as_subprotocol_or_first_message(tmp_path: Path):
    async with new_edge(tmp_path, keyless=False) as edge:
        key = edge.keys.pk
        socket = Socket(edge.fast, (LOCAL,), ("onehop", key))
        # The key itself must not be echoed.
        assert (await socket.accepted())["subprotocol"] == "onehop"
        by_message = await opened(edge)
        by_message.send({"apiKey": key})
        by_header = await opened(edge, key_header(key))
        for one in (socket, by_message, by_header):
            one.send({"type": "track", "id": 1, "anonymousId": "v1"})
            assert (await one.replies(1))[0]["answer"]["meta"] == "p:shop"
            one.send({"type": "track", "id": 2, "userId": "ada"})
            assert (await one.replies(1))[0]["status"] == 403
            await one.close()


@asynchronous
async def test_without_a_valid_key_the_stream_closes_with_a_problem(tmp_path: Path):
    async with new_edge(tmp_path, keyless=False) as edge:
        for first in ({"apiKey": "sk_wrong"}, {"type": "track", "id": 1, "userId": "ada"}, "{"):
            socket = await opened(edge)
            socket.send(first)
            assert (await socket.replies(1))[0]["status"] == 401
            assert (await socket.outgoing.get())["code"] == 4401
            await socket.task
        assert not edge.owner.requests


@asynchronous
async def test_another_sites_page_is_refused_without_a_key(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        socket = await opened(edge, (LOCAL, (b"origin", b"https://evil.example")))
        assert (await socket.replies(1))[0]["status"] == 403
        assert (await socket.outgoing.get())["type"] == "websocket.close"


@asynchronous
async def test_a_page_may_stream_only_with_a_key_that_lists_it(tmp_path: Path):
    shop, evil = ((b"origin", b"https://%b.example" % name) for name in (b"shop", b"evil"))
    async with new_edge(tmp_path, keyless=False, origins=("https://shop.example",)) as edge:
        key = edge.keys.pk
        for origin in (shop, evil):
            by_subprotocol = Socket(edge.fast, (LOCAL, origin), ("onehop", key))
            await by_subprotocol.accepted()
            by_message = await opened(edge, (LOCAL, origin))
            by_message.send({"apiKey": key})
            for socket in (by_subprotocol, by_message):
                socket.send({"type": "track", "id": 1, "anonymousId": "v1"})
                (reply,) = await socket.replies(1)
                if origin is shop:
                    assert reply["answer"]["meta"] == "p:shop"
                    await socket.close()
                else:
                    assert (reply["status"], reply["problem"]["field"]) == (403, "Origin")
                    assert (await socket.outgoing.get())["code"] == 1008
        assert len(edge.owner.requests) == 2


@asynchronous
async def test_a_key_that_is_withdrawn_ends_its_streams_and_no_others(tmp_path: Path):
    async with new_edge(tmp_path, keyless=False) as edge:
        path = tmp_path / "keys.json"
        sockets = [await opened(edge, key_header(key)) for key in (edge.keys.sk, edge.keys.pk)]
        withdrawn, kept = sockets
        for socket in sockets:
            socket.send({"type": "track", "id": 1, "anonymousId": "v1"})
            assert (await socket.replies(1))[0]["status"] == 200
        write_keys(path, [key for key in read_keys(path) if key.role == "pk"])
        edge.gateway.keys._checked_at = 0.0
        for socket in sockets:
            socket.send({"type": "track", "id": 2, "anonymousId": "v1"})
        (reply,) = await withdrawn.replies(1)
        assert (reply["id"], reply["status"]) == (None, 401)
        assert (await withdrawn.outgoing.get())["code"] == 4401
        await withdrawn.task
        assert (await kept.replies(1))[0]["status"] == 200
        await kept.close()
        assert len(edge.owner.requests) == 3


@asynchronous
async def test_who_neither_shows_a_key_nor_leaves_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("serve.stream.FIRST_MESSAGE_S", 0.05)
    async with new_edge(tmp_path, keyless=False) as edge:
        silent = await opened(edge)
        assert (await silent.replies(1))[0]["status"] == 401
        assert (await silent.outgoing.get())["code"] == 4401
        await silent.task
        leaving = await opened(edge)
        await leaving.close()
        assert leaving.outgoing.empty()


@asynchronous
async def test_in_flight_messages_are_bounded_by_not_reading(tmp_path: Path):
    gate = asyncio.Event()

    async def owner(op: int, meta: bytes, body: bytes) -> tuple[int, bytes]:
        await gate.wait()
        return 200, b"{}"

    async with new_edge(tmp_path, owner, inflight_max=4 * STREAM_INFLIGHT_MAX) as edge:
        socket = await opened(edge)
        array = [{"type": "track", "id": 1, "userId": "ada"}] * 256
        for _ in range(STREAM_INFLIGHT_MAX // 256 + 3):
            socket.send(array)
        await edge.owner.seen(STREAM_INFLIGHT_MAX)
        await asyncio.sleep(0.05)
        assert len(edge.owner.requests) == STREAM_INFLIGHT_MAX
        assert socket.incoming.qsize() == 3
        gate.set()
        assert len(await socket.replies(STREAM_INFLIGHT_MAX + 3 * 256)) == STREAM_INFLIGHT_MAX + 768
        await socket.close()


@asynchronous
async def test_a_caller_that_does_not_read_holds_a_bounded_number_of_replies(tmp_path: Path):
    async with new_edge(tmp_path, inflight_max=4 * STREAM_INFLIGHT_MAX) as edge:
        socket = await opened(edge)
        socket.reading.clear()
        sent = 20
        for _ in range(sent):
            socket.send([{"type": "track", "id": 1, "userId": "ada"}] * 256)
        await asyncio.sleep(0.3)
        assert len(edge.owner.requests) <= STREAM_INFLIGHT_MAX
        socket.reading.set()
        assert len(await socket.replies(sent * 256)) == sent * 256
        await socket.close()


@asynchronous
async def test_a_caller_that_goes_away_leaves_the_others_alone(tmp_path: Path):
    gate = asyncio.Event()

    async def owner(op: int, meta: bytes, body: bytes) -> tuple[int, bytes]:
        await gate.wait()
        return echo_json(op, meta, body)

    async with new_edge(tmp_path, owner) as edge:
        leaving, staying = await opened(edge), await opened(edge)
        for one in (leaving, staying):
            one.send([{"type": "track", "id": i, "userId": "ada"} for i in range(5)])
        await edge.owner.seen(10)
        await leaving.close()
        gate.set()
        assert len(await staying.replies(5)) == 5
        await staying.close()


@asynchronous
async def test_without_a_gateway_the_stream_passes_to_the_app():
    reached: list[str] = []

    async def app(scope, receive, send):
        reached.append(scope["path"])

    await FastLane(app)({"type": "websocket", "path": "/v1/stream"}, None, None)  # type: ignore[arg-type]
    assert reached == ["/v1/stream"]
