from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.messages import BODY_BYTES_MAX, EVENT_BYTES_MAX
from cluster.frames import Op
from serve.fast_lane import FastLane, install, middlewares
from tests.serve.edge import LOCAL, Reply, echo_json, key_header, new_edge, reply_of, scope_of
from tests.serve.fake_owner import asynchronous

HOT = {"decide": Op.DECIDE, "track": Op.TRACK, "identify": Op.IDENTIFY, "page": Op.PAGE}


@asynchronous
async def test_raw_bytes_reach_the_owner_on_both_ways_in(tmp_path: Path):
    body = b'{ "userId" : "ada" ,"x":[1, 2]}'
    async with new_edge(tmp_path) as edge:
        for name, op in HOT.items():
            for app in (edge.fast, edge.plain):
                reply = await edge.post(f"/v1/{name}", body, app=app)
                assert reply.status == 200
                assert reply.headers["content-type"] == "application/json"
                assert reply.json == {"op": op, "meta": "s:default", "body": body.decode()}


@asynchronous
async def test_a_body_in_pieces_is_the_same_body(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        reply = await edge.post("/v1/decide", b'{"userId":"ada"}', cut=3)
        assert reply.json["body"] == '{"userId":"ada"}'


@asynchronous
async def test_the_tenant_comes_from_the_key(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        body = b'{"anonymousId":"v1","tenant":"other"}'
        for key, meta in ((edge.keys.sk, "s:shop"), (edge.keys.pk, "p:shop")):
            assert (await edge.post("/v1/track", body, key_header(key))).json["meta"] == meta


@asynchronous
async def test_a_public_key_speaks_for_an_anonymous_visitor_only(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        headers = key_header(edge.keys.pk)
        for name in HOT:
            reply = await edge.post(f"/v1/{name}", b'{"userId":"ada"}', headers)
            assert (reply.status, reply.json["field"]) == (403, "userId")
        assert not edge.owner.requests


@asynchronous
async def test_a_wrong_key_is_401_with_a_challenge(tmp_path: Path):
    async with new_edge(tmp_path, keyless=False) as edge:
        for headers in ((LOCAL,), key_header("sk_nonsense")):
            reply = await edge.post("/v1/decide", b'{"userId":"a"}', headers)
            assert reply.status == 401
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"null", 422, ""),
        (b"[]", 422, ""),
        (b"{}", 422, "userId"),
        (b'{"userId":7}', 422, "userId"),
        (b'{"userId":""}', 422, "userId"),
        (b'{"userId":"\xff"}', 400, None),
        (b'{"userId":"a\\u0000b"}', 422, "userId"),
        (b'{"userId":"%b"}' % (b"x" * 257), 422, "userId"),
        (b'{"userId":"a","x":%b}' % (b"[" * 100_000), 400, None),
        (b'{"userId":"a","x":NaN}', 400, None),
        (b'{"userId":"\\ud800"}', 400, None),
    ],
)
def test_a_bad_body_is_a_problem_and_reaches_nobody(
    tmp_path: Path, body: bytes, status: int, field: str | None
):
    @asynchronous
    async def check() -> None:
        async with new_edge(tmp_path) as edge:
            reply = await edge.post("/v1/decide", body)
            assert reply.status == status
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.json["status"] == status
            if field is not None:
                assert reply.json.get("field", "") == field
            assert not edge.owner.requests

    check()


@asynchronous
async def test_sizes_are_bounded_and_named(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        for path, size in (("/v1/decide", BODY_BYTES_MAX + 1), ("/v1/track", EVENT_BYTES_MAX + 1)):
            body = b'{"userId":"ada","x":"'.ljust(size - 2, b"x") + b'"}'
            assert len(body) == size
            for cut in (0, 65_536):
                reply = await edge.post(path, body, cut=cut)
                assert reply.status == 413
                assert "bytes" in reply.json["seen"]
        largest = b'{"userId":"ada","x":"'.ljust(BODY_BYTES_MAX - 2, b"x") + b'"}'
        assert (await edge.post("/v1/decide", largest)).status == 200


@asynchronous
async def test_an_owners_problem_is_passed_on_as_one(tmp_path: Path):
    async with new_edge(tmp_path, lambda op, meta, body: (409, b'{"status":409}')) as edge:
        reply = await edge.post("/v1/decide", b'{"userId":"ada"}')
        assert reply.status == 409
        assert reply.headers["content-type"] == "application/problem+json"


@asynchronous
async def test_a_lost_owner_is_503_with_retry_after(tmp_path: Path):
    async with new_edge(tmp_path, map_wait_s=0.1) as edge:
        await edge.owner.stop()
        reply = await edge.post("/v1/decide", b'{"userId":"ada"}')
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        await edge.owner.start()


@asynchronous
async def test_too_much_in_flight_is_429_with_retry_after(tmp_path: Path):
    gate = asyncio.Event()

    async def slow(op: int, meta: bytes, body: bytes) -> tuple[int, bytes]:
        await gate.wait()
        return 200, b"{}"

    async with new_edge(tmp_path, slow, inflight_max=4) as edge:
        calls = [
            asyncio.create_task(edge.post("/v1/decide", b'{"userId":"ada"}')) for _ in range(6)
        ]
        await edge.owner.seen(4)
        gate.set()
        replies = await asyncio.gather(*calls)
        assert sorted(reply.status for reply in replies) == [200] * 4 + [429] * 2
        refused = next(reply for reply in replies if reply.status == 429)
        assert int(refused.headers["retry-after"]) >= 1


@asynchronous
async def test_a_batch_answers_each_message_in_order(tmp_path: Path):
    def owner(op: int, meta: bytes, body: bytes) -> tuple[int, bytes]:
        return (409, b'{"status":409}') if b"conflict" in body else echo_json(op, meta, body)

    messages = [
        {"type": "track", "userId": "ada", "event": "A"},
        {"type": "decide", "userId": "bob", "decisions": []},
        {"type": "dance", "userId": "ada"},
        {"type": "page"},
        {"type": "track", "userId": "ada", "event": "conflict"},
        7,
        {"type": "identify", "userId": "eve", "traits": {"big": "x" * EVENT_BYTES_MAX}},
    ]
    async with new_edge(tmp_path, owner) as edge:
        reply = await edge.post("/v1/batch", msgspec.json.encode({"batch": messages}))
        assert reply.status == 200
        results = reply.json["results"]
        assert [result["status"] for result in results] == [200, 200, 422, 422, 409, 422, 413]
        assert results[0]["answer"]["op"] == Op.TRACK
        # The owner sees what it would see if the message had come alone.
        assert results[1]["answer"]["body"] == '{"userId":"bob","decisions":[]}'
        assert all("title" in result["problem"] for result in results[2:4])


@asynchronous
async def test_one_persons_batch_reaches_the_owner_in_order(tmp_path: Path):
    events = [{"type": "track", "userId": "ada", "event": str(i)} for i in range(50)]
    async with new_edge(tmp_path) as edge:
        await edge.post("/v1/batch", msgspec.json.encode({"batch": events}))
        seen = [msgspec.json.decode(body)["event"] for _, _, body in edge.owner.requests]
        assert seen == [str(i) for i in range(50)]


@asynchronous
async def test_a_batch_of_the_wrong_size_is_refused_whole(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        for count in (0, 501):
            body = msgspec.json.encode({"batch": [{"type": "track", "userId": "a"}] * count})
            reply = await edge.post("/v1/batch", body)
            assert (reply.status, reply.json["field"]) == (422, "batch")
        assert not edge.owner.requests


@asynchronous
async def test_other_methods_and_paths_go_to_the_app(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        reply = await edge.call("GET", "/v1/decide")
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
        assert (await edge.call("GET", "/nothing")).status == 404


@asynchronous
async def test_answers_are_counted_by_route_and_status(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        await edge.post("/v1/decide", b'{"userId":"ada"}')
        await edge.post("/v1/decide", b"{")
        await edge.post("/v1/track", b"x" * (BODY_BYTES_MAX + 1))
        assert edge.gateway.counts == {
            ("/v1/decide", 200): 1,
            ("/v1/decide", 400): 1,
            ("/v1/track", 413): 1,
        }


@asynchronous
async def test_the_hook_finds_the_gateway_of_its_loop_and_there_is_only_one(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        (middleware,) = middlewares()
        hooked: object = middleware.cls
        assert hooked is FastLane
        reached: list[str] = []

        async def app(scope, receive, send):
            reached.append(scope["path"])

        lanes = [FastLane(app) for _ in range(3)]
        for lane in lanes:
            assert (await edge.post("/v1/decide", b'{"userId":"ada"}', app=lane)).status == 200
        assert not reached
        # One connection to the owner, however many server sockets share the process.
        assert len(edge.owner.connections) == 1
        with pytest.raises(RuntimeError, match="already"):
            install(edge.gateway)


@asynchronous
async def test_without_a_gateway_everything_passes_to_the_app():
    reached: list[str] = []

    async def app(scope, receive, send):
        reached.append(scope["path"])

    await FastLane(app)({"type": "http", "path": "/v1/decide", "method": "POST"}, None, None)  # type: ignore[arg-type]
    assert reached == ["/v1/decide"]


@asynchronous
async def test_a_body_that_trickles_or_never_comes_is_408_and_ends_the_connection(tmp_path: Path):
    async with new_edge(tmp_path, body_timeout_s=0.05) as edge:
        for path in ("/v1/decide", "/v1/items:batch"):
            for app in (edge.fast, edge.plain):
                for begun in (b"", b"{"):
                    reply = await trickled(app, path, begun)
                    assert (reply.status, reply.json["status"]) == (408, 408)
                    assert reply.headers["connection"] == "close"
        assert not edge.owner.requests


async def trickled(app: Any, path: str, begun: bytes) -> Reply:
    """The answer to a POST whose body begins with `begun`, or not at all, and never ends."""
    sent: list[Any] = []
    first = [begun] if begun else []

    async def receive() -> Any:
        if not first:
            await asyncio.sleep(10)
        return {"type": "http.request", "body": first.pop(), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope_of("POST", path, (LOCAL,)), receive, send)
    return reply_of(sent)


@asynchronous
async def test_a_caller_that_goes_away_before_its_body_ended_gets_nothing(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        messages = [
            {"type": "http.request", "body": b'{"userId"', "more_body": True},
            {"type": "http.disconnect"},
        ]
        sent: list[object] = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/v1/decide", "method": "POST", "headers": [LOCAL]}
        await edge.fast(scope, receive, send)
        assert not sent
        assert not edge.owner.requests
