from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
import pytest

from cluster.frames import Op
from serve.openapi import OPERATIONS
from serve.router import Router
from tests.serve.edge import LOCAL, key_header, new_edge, scope_of
from tests.serve.fake_owner import Maps, asynchronous, map_of

ITEM = b'{"attributes":{"brand":"x","price":9.5},"embedding":[0.5,1]}'


@asynchronous
async def test_a_profile_is_asked_for_by_user_or_anonymous_id(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        for path, person in (
            ("userId:ada", '{"userId":"ada"}'),
            ("ada", '{"userId":"ada"}'),
            ("anonymousId:v1", '{"anonymousId":"v1"}'),
            ("mailto:ada@example.org", '{"userId":"mailto:ada@example.org"}'),
            ("a/b", '{"userId":"a/b"}'),
        ):
            for method, op in (("GET", Op.PROFILE_GET), ("DELETE", Op.PROFILE_DELETE)):
                reply = await edge.call(method, f"/v1/profiles/{path}")
                assert reply.json == {"op": op, "meta": "s:default", "body": person}


@asynchronous
async def test_items_are_put_read_and_deleted_in_the_callers_tenant(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        headers = key_header(edge.keys.sk)
        assert (await edge.call("PUT", "/v1/items/p/1", ITEM, headers)).status == 200
        assert edge.control.items["shop", "p/1"]["attributes"] == {"brand": "x", "price": 9.5}
        reply = await edge.call("GET", "/v1/items/p/1", headers=headers)
        assert reply.json == {"op": Op.ITEM_GET, "meta": "s:shop", "body": "p/1"}
        assert (await edge.call("DELETE", "/v1/items/p/1")).status == 404
        assert (await edge.call("DELETE", "/v1/items/p/1", headers=headers)).json["deleted"]
        assert not edge.control.items


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/items/p1", b'{"id":"p2"}', 422, "id"),
        ("/v1/items/p1", b'{"price":1}', 422, ""),
        ("/v1/items/p1", b'{"embedding":[]}', 422, "embedding"),
        ("/v1/items/p1", b'{"embedding":["a"]}', 422, "embedding[0]"),
        ("/v1/items/p1", b'{"embedding":[1e999]}', 422, "embedding[0]"),
        ("/v1/items/p1", b"", 400, ""),
        ("/v1/items/p1", b"[]", 422, ""),
        ("/v1/items/" + "x" * 257, b"{}", 422, "id"),
        ("/v1/items/", b"{}", 422, "id"),
    ],
)
def test_a_bad_item_is_a_problem_and_changes_nothing(
    tmp_path: Path, path: str, body: bytes, status: int, field: str
):
    @asynchronous
    async def check() -> None:
        async with new_edge(tmp_path) as edge:
            reply = await edge.call("PUT", path, body)
            assert (reply.status, reply.json.get("field", "")) == (status, field)
            assert not edge.control.items

    check()


@asynchronous
async def test_a_batch_of_items_is_handed_to_the_coordinator_as_it_is(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        body = msgspec.json.encode({"items": [{"id": f"p{i}"} for i in range(500)]})
        reply = await edge.post("/v1/items:batch", body)
        assert [result["id"] for result in reply.json["results"]] == [f"p{i}" for i in range(500)]
        body = msgspec.json.encode({"items": [{"id": f"p{i}"} for i in range(501)]})
        assert (await edge.post("/v1/items:batch", body)).status == 422


@asynchronous
async def test_a_decision_id_tells_its_owner_and_other_text_is_refused(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        decision_id = "00000000000000ff" + "0" * 16
        reply = await edge.call("GET", f"/v1/decisions/{decision_id}")
        assert reply.json == {"op": Op.DECISION_GET, "meta": "s:default", "body": decision_id}
        for wrong in ("7", "x" * 32, "-" + "1" * 31, "0x" + "1" * 30, "1_1" + "1" * 29, "é" * 32):
            reply = await edge.call("GET", f"/v1/decisions/{wrong}")
            assert (reply.status, reply.json["field"]) == (422, "id"), wrong


@asynchronous
async def test_imports_are_started_and_looked_up(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        reply = await edge.post("/v1/imports", b'{"events":"/data/e.parquet","dryRun":true}')
        assert (reply.status, reply.json) == (202, {"id": "1"})
        assert (await edge.call("GET", "/v1/imports/1")).json["dryRun"]
        assert (await edge.call("GET", "/v1/imports/2")).status == 404
        assert (await edge.post("/v1/imports", b'{"evnts":"x"}')).status == 422


@asynchronous
async def test_models_are_listed_and_rolled_back(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        assert (await edge.call("GET", "/v1/models")).json["saved"] == ["m1", "m2"]
        reply = await edge.call("POST", "/v1/models/m1:rollback")
        assert (reply.status, reply.json) == (200, {"serving": "m3"})
        reply = await edge.call("POST", "/v1/models/m9:rollback")
        assert (reply.status, reply.json["field"]) == (404, "name")


@asynchronous
async def test_the_plan_is_the_coordinator_s(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        reply = await edge.call("GET", "/v1/plan")
        assert (reply.status, reply.json["cpusWanted"]) == (200, 0.5)


@asynchronous
async def test_shards_are_the_map_with_counters(tmp_path: Path):
    async with new_edge(tmp_path, lambda op, meta, body: (200, b'{"profiles":3}')) as edge:
        answer = (await edge.call("GET", "/v1/shards")).json
        assert (answer["epoch"], answer["tenant"]) == (1, "default")
        (owner,) = answer["owners"]
        assert owner["port"] == edge.owner.port
        assert owner["stats"] == {"profiles": 3}


@asynchronous
async def test_a_lost_shard_has_no_counters_and_makes_the_gateway_not_ready(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        assert (await edge.call("GET", "/health/ready")).status == 200
        await edge.owner.stop()
        while edge.gateway.router.reachable:
            await asyncio.sleep(0.01)
        assert (await edge.call("GET", "/v1/shards")).json["owners"][0]["stats"] is None
        assert "onehop_shard_up" in (await edge.call("GET", "/metrics")).body.decode()
        assert (await edge.call("GET", "/health/ready")).status == 503
        assert (await edge.call("GET", "/health/live")).status == 200
        await edge.owner.start()


@asynchronous
async def test_every_route_refuses_a_wrong_key_and_what_a_public_key_may_not(tmp_path: Path):
    """Every route times every kind of key: the document is the list of routes."""
    async with new_edge(tmp_path, keyless=False) as edge:
        for operation in OPERATIONS:
            method, path = operation.method.upper(), operation.path.replace("{id}", "0" * 32)
            for app in (edge.fast, edge.plain):
                for headers in ((LOCAL,), key_header("sk_wrong"), key_header(edge.keys.pk)):
                    reply = await edge.call(method, path, b"{}", headers, app)
                    if not operation.keys:
                        assert reply.status == 200
                    elif headers[-1][-1] == edge.keys.pk.encode() and "pk_" in operation.keys:
                        # OFREP answers in its own way.
                        assert reply.status == (400 if path.startswith("/ofrep/") else 422), path
                    else:
                        public = headers[-1][-1] == edge.keys.pk.encode()
                        assert reply.status == (403 if public else 401), operation
        # Readiness asks every shard how it is.
        assert not [op for op, *_ in edge.owner.requests if op != Op.STATS]
        assert not edge.control.items


@asynchronous
async def test_frameworks_own_errors_are_problems_too(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        for method, path, status in (
            ("GET", "/nothing", 404),
            ("PATCH", "/v1/items/p1", 405),
            ("PUT", "/v1/decide", 405),
            ("POST", "/v1/decide/", 404),
        ):
            reply = await edge.call(method, path)
            assert (reply.status, reply.json["status"]) == (status, status)
            assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("quoted", ["%00", "a%00b", "%2F", "a%2Fb", "%FF", "%C3", "%ED%A0%80", "%"])
def test_a_quoted_id_is_served_or_refused_and_never_taken_for_another(tmp_path: Path, quoted: str):
    raw = unquote_to_bytes(quoted)

    @asynchronous
    async def check() -> None:
        async with new_edge(tmp_path) as edge:
            for operation in OPERATIONS:
                path = operation.path.replace("{id}", quoted).replace("{name}", quoted)
                for app in (edge.fast, edge.plain) if path != operation.path else ():
                    reply = await edge.call(operation.method.upper(), path, b"{}", app=app)
                    assert reply.status < 500, (operation, reply)
                    if b"\xff" in raw or b"\xc3" in raw or b"\xed" in raw:
                        # The owner must not see a replacement character.
                        assert reply.status == 400
                        assert reply.headers["content-type"] == "application/problem+json"
                        assert not edge.owner.requests
                        assert not edge.control.items
            reply = await edge.call("GET", f"/v1/profiles/{quoted}")
            if b"\0" in raw:
                assert reply.status == 422
            elif reply.status == 200:
                assert msgspec.json.decode(reply.json["body"]) == {"userId": raw.decode()}

    check()


@asynchronous
async def test_a_query_that_nobody_knows_changes_nothing(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        for app in (edge.fast, edge.plain):
            call = edge.call("POST", "/v1/decide", b'{"userId":"a"}', app=app, query=b"x=%FF&y")
            assert (await call).json["body"] == '{"userId":"a"}'


@asynchronous
async def test_a_huge_header_is_refused_with_a_short_answer(tmp_path: Path):
    huge = b"x" * (1 << 20)
    async with new_edge(tmp_path) as edge:
        for name in (b"x-api-key", b"authorization", b"host", b"origin"):
            headers = (LOCAL, (name, huge)) if name != b"host" else ((name, huge),)
            for path in ("/v1/decide", "/v1/items:batch"):
                reply = await edge.post(path, b'{"userId":"a"}', headers)
                assert reply.status in (401, 403), name
                assert len(reply.body) < 1000


@asynchronous
async def test_who_may_be_asked_with_get_may_be_asked_with_head(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        for operation in OPERATIONS:
            path = operation.path.replace("{id}", "0" * 32)
            reply = await edge.call("HEAD", path)
            if operation.method == "get":
                assert reply.status == (await edge.call("GET", path)).status
        assert (await edge.call("HEAD", "/v1/decide")).status == 405


@asynchronous
async def test_a_caller_that_leaves_within_its_body_is_no_fault_of_ours(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        incoming = [
            {"type": "http.request", "body": b"{", "more_body": True},
            {"type": "http.disconnect"},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return incoming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await edge.plain(scope_of("POST", "/v1/items:batch", (LOCAL,)), receive, send)
        assert edge.gateway.counts == {("POST /v1/items:batch", 400): 1}


@asynchronous
async def test_an_unexpected_error_tells_nothing_of_itself(tmp_path: Path):
    async with new_edge(tmp_path) as edge:

        async def broken(tenant: str, ids: list[str]) -> list[bool]:
            raise ZeroDivisionError("secret text")

        edge.control.delete_items = broken  # type: ignore[method-assign]
        reply = await edge.call("DELETE", "/v1/items/p1")
        assert reply.status == 500
        assert b"secret" not in reply.body


@asynchronous
async def test_a_body_beyond_one_megabyte_is_413_on_slow_routes_too(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        reply = await edge.post("/v1/items:batch", b" " * (1 << 20) + b"x", cut=65_536)
        assert reply.status == 413


@asynchronous
async def test_who_knows_of_a_newer_epoch_makes_the_gateway_look_for_it(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        router = edge.gateway.router
        assert isinstance(router, Router)
        maps = router._fetch_map
        assert isinstance(maps, Maps)
        maps.newest = map_of(2, edge.owner)
        assert (await edge.call("GET", "/v1/shards")).json["epoch"] == 1
        assert (await edge.call("GET", "/v1/shards", query=b"newerThan=0")).json["epoch"] == 1
        assert (await edge.call("GET", "/v1/shards", query=b"newerThan=1")).json["epoch"] == 2
        assert (await edge.call("GET", "/v1/shards", query=b"newerThan=x")).status == 422
