"""The SDK against a gateway and owners that a test controls."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import msgspec
import pytest

from actors.decisions import DecideAnswer
from actors.messages import Event, TrackAnswer
from cluster.errors import AuthError
from cluster.frames import Op
from cluster.keys import key_hash, place
from serve.client import ApiError, SyncClient
from tests.serve.fake_gateway import (
    DECIDED,
    KEY,
    SDK_SECRETS,
    FakeGateway,
    HttpAnswer,
    by_op,
    new_client,
    problem,
)
from tests.serve.fake_owner import Answer, FakeOwner, asynchronous, map_of


@asynchronous
async def test_each_call_has_its_path_and_typed_answer_over_http() -> None:
    gateway = await FakeGateway().start()
    async with new_client(gateway, direct=False) as client:
        decided = await client.decide(
            user_id="ada",
            events=[Event("Item Viewed"), {"event": "Scrolled", "properties": {"depth": 1}}],
            decisions=[{"surface": "content", "numResults": 3}],
            context={"device": "ios"},
            message_id="m1",
        )
        assert isinstance(decided, DecideAnswer)
        assert decided.profile_version == 3
        tracked = await client.track("Item Viewed", anonymous_id="v", properties={"itemId": "p"})
        assert tracked == TrackAnswer(True, 3, "memory")
        await client.identify({"plan": "gold", "old": None}, user_id="ada", message_id="m2")
        await client.page("Home", user_id="ada", message_id="m3")
        assert not client.is_direct
    first = msgspec.json.decode(gateway.requests[0][2])
    assert first == {
        "messageId": "m1",
        "userId": "ada",
        "events": [{"event": "Item Viewed"}, {"event": "Scrolled", "properties": {"depth": 1}}],
        "decisions": [{"surface": "content", "numResults": 3}],
        "context": {"device": "ios"},
    }
    sent: list[tuple[str, Any]] = [
        (path, msgspec.json.decode(body)) for _, path, body in gateway.requests[1:]
    ]
    assert sent[0][0] == "/v1/track"
    assert sent[0][1].pop("messageId")
    assert sent == [
        (
            "/v1/track",
            {"event": "Item Viewed", "anonymousId": "v", "properties": {"itemId": "p"}},
        ),
        (
            "/v1/identify",
            {"messageId": "m2", "userId": "ada", "traits": {"plan": "gold", "old": None}},
        ),
        ("/v1/page", {"messageId": "m3", "userId": "ada", "name": "Home"}),
    ]
    assert {method for method, _, _ in gateway.requests} == {"POST"}
    assert gateway.keys == {KEY}
    assert gateway.map_asked == 0
    await gateway.stop()


@asynchronous
async def test_resources_have_their_paths_over_http_and_their_ops_at_the_owner() -> None:
    def json(op: int, meta: bytes, body: bytes) -> Answer:
        return 200, b'{"from":"owner"}'

    owner = await FakeOwner(json, secrets=SDK_SECRETS).start()
    gateway = await FakeGateway(lambda method, path, body: (200, b'{"results":[]}')).start()
    decision_id = f"{place(key_hash('shop', 'u', 'a/b ö')):016x}" + "0" * 16
    for direct in (False, True):
        gateway.map = map_of(1, owner) if direct else None
        async with new_client(gateway, direct=direct) as client:
            wanted: dict[str, Any] = {"from": "owner"} if direct else {"results": []}
            assert await client.profile(user_id="a/b ö") == wanted
            assert await client.delete_profile(anonymous_id="v") == wanted
            assert await client.decision(decision_id) == wanted
            assert await client.put_items([{"id": "p1"}]) == []
    items = ("POST", "/v1/items:batch", b'{"items":[{"id":"p1"}]}')
    assert gateway.requests == [
        ("GET", "/v1/profiles/userId:a%2Fb%20%C3%B6", b""),
        ("DELETE", "/v1/profiles/anonymousId:v", b""),
        ("GET", f"/v1/decisions/{decision_id}", b""),
        items,
        items,
    ]
    assert owner.requests == [
        (Op.PROFILE_GET, b"", '{"userId":"a/b ö"}'.encode()),
        (Op.PROFILE_DELETE, b"", b'{"anonymousId":"v"}'),
        (Op.DECISION_GET, b"", decision_id.encode()),
    ]
    await gateway.stop()
    await owner.stop()


@asynchronous
async def test_a_client_that_reaches_the_owners_sends_each_person_to_theirs() -> None:
    owners = [await FakeOwner(by_op, name, secrets=SDK_SECRETS).start() for name in "abc"]
    partition_map = map_of(4, *owners)
    gateway = await FakeGateway(partition_map=partition_map).start()
    async with new_client(gateway) as client:
        assert client.is_direct
        for number in range(30):
            await client.decide(user_id=f"u{number}")
            await client.track("Scrolled", anonymous_id=f"v{number}")
    seen = 0
    for owner in owners:
        for op, meta, body in owner.requests:
            person = msgspec.json.decode(body)
            id_type = "u" if op == Op.DECIDE else "a"
            person_id = person["userId"] if op == Op.DECIDE else person["anonymousId"]
            position = place(key_hash("shop", id_type, person_id))
            assert partition_map.owner_of(position).port == owner.port
            assert meta == b""
            seen += 1
    assert seen == 60
    assert gateway.requests == []
    await gateway.stop()
    for owner in owners:
        await owner.stop()


@asynchronous
async def test_a_wrong_request_is_not_retried_and_says_what_is_wrong() -> None:
    answers = [(422, problem(422, field="events[0]", seen="1", wanted="text", detail="d"))]
    gateway = await FakeGateway(lambda method, path, body: answers[-1]).start()
    async with new_client(gateway, direct=False) as client:
        with pytest.raises(ApiError, match="422: d") as caught:
            await client.decide(user_id="ada")
        assert caught.value.status == 422
        assert caught.value.problem.field == "events[0]"
        assert len(gateway.requests) == 1
        answers.append((401, problem(401)))
        with pytest.raises(AuthError):
            await client.decide(user_id="ada")
        assert len(gateway.requests) == 2
        for user_id, anonymous_id in ((None, None), ("", None), (None, "x" * 300)):
            with pytest.raises(ApiError, match="422"):
                await client.decide(user_id=user_id, anonymous_id=anonymous_id)
        with pytest.raises(ApiError, match="no decision"):
            await client.decision("not hexadecimal")
        assert len(gateway.requests) == 2
    await gateway.stop()


@asynchronous
async def test_raw_bodies_pass_untouched_but_for_a_missing_message_id() -> None:
    owner = await FakeOwner(by_op, secrets=SDK_SECRETS).start()
    gateway = await FakeGateway(partition_map=map_of(1, owner)).start()
    whole = b' {"messageId": "m1", "userId": "ada", "decisions": [] }'
    bare = b' {"userId": "ada", "context": {"messageId": "no"}}'
    async with new_client(gateway, direct=True) as client:
        assert await client.decide_raw(whole) == DECIDED
        assert await client.decide_raw(b"anything", user_id="ada") == DECIDED
        await client.decide_raw(bare)
        await client.decide_raw(bare)
        for wrong in (b"", b"{", b"[]", b"\xff", b'{"userId": 1}', b"{}"):
            with pytest.raises(ApiError):
                await client.decide_raw(wrong)
    assert [body for _, _, body in owner.requests[:2]] == [whole, b"anything"]
    filled = [msgspec.json.decode(body) for _, _, body in owner.requests[2:]]
    ids = {document.pop("messageId") for document in filled}
    assert len(ids) == 2
    assert filled == [msgspec.json.decode(bare)] * 2
    await gateway.stop()
    await owner.stop()


@asynchronous
async def test_a_batch_is_answered_in_order_and_only_what_failed_is_sent_again() -> None:
    failing = {"m1"}

    def batch(method: str, path: str, body: bytes) -> HttpAnswer:
        results = []
        for message in msgspec.json.decode(body)["batch"]:
            status = 503 if message["messageId"] in failing else 200
            results.append({"status": status, "answer": message["messageId"]})
        failing.clear()
        return 200, msgspec.json.encode({"results": results})

    gateway = await FakeGateway(batch).start()
    messages = [
        {"type": "track", "event": "e", "userId": "u", "messageId": f"m{i}"} for i in range(3)
    ]
    async with new_client(gateway, direct=False) as client:
        results = await client.batch(messages)
        assert results == [{"status": 200, "answer": f"m{i}"} for i in range(3)]
        sent = [msgspec.json.decode(body)["batch"] for _, _, body in gateway.requests]
        assert sent == [messages, messages[1:2]]
        for wrong in ([], messages * 200):
            with pytest.raises(ApiError, match="1 to 500"):
                await client.batch(wrong)
    await gateway.stop()


@asynchronous
async def test_a_direct_batch_goes_to_each_owner_and_answers_like_the_gateway() -> None:
    def answer(op: int, meta: bytes, body: bytes) -> Answer:
        # With its quotes: a random messageId may hold these letters.
        if b'"bad"' in body:
            return 422, problem(422, field="event")
        return by_op(op, meta, body)

    owner = await FakeOwner(answer, secrets=SDK_SECRETS).start()
    gateway = await FakeGateway(partition_map=map_of(1, owner)).start()
    async with new_client(gateway, direct=True) as client:
        results = await client.batch(
            [
                {"type": "decide", "userId": "u", "messageId": "m"},
                {"type": "track", "event": "bad", "userId": "u"},
                {"type": "group", "userId": "u"},
                {"type": "track", "event": "good", "anonymousId": "v"},
                {"type": "track", "event": "nobody"},
            ]
        )
    assert [result["status"] for result in results] == [200, 422, 422, 200, 422]
    assert results[0]["answer"] == msgspec.json.decode(DECIDED)
    assert results[1]["problem"]["field"] == "event"
    assert results[2]["problem"]["field"] == "type"
    assert (Op.DECIDE, b"", b'{"messageId":"m","userId":"u"}') in owner.requests
    assert gateway.requests == []
    await gateway.stop()
    await owner.stop()


@asynchronous
async def test_the_sync_client_serves_many_threads_and_leaves_none_behind() -> None:
    owner = await FakeOwner(by_op, secrets=SDK_SECRETS).start()
    gateway = await FakeGateway(partition_map=map_of(1, owner)).start()
    before = threading.active_count()

    def use() -> list[int]:
        with SyncClient(gateway.url, KEY) as client:
            assert client.is_direct
            versions: list[int] = []
            threads = [
                threading.Thread(
                    target=lambda: versions.append(client.decide(user_id="ada").profile_version)
                )
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with pytest.raises(ApiError):
                client.decide()
        client.close()
        return versions

    assert await asyncio.to_thread(use) == [3] * 8
    assert threading.active_count() <= before + 1
    await gateway.stop()
    await owner.stop()


@asynchronous
async def test_what_is_of_the_past_says_when_it_was_sent_unless_it_may_be_a_repeat() -> None:
    gateway = await FakeGateway().start()
    past: dict[str, Any] = {"user_id": "ada", "timestamp": 1_000_000_000}
    async with new_client(gateway, direct=False) as client:
        await client.track("a", **past)
        await client.track("a", **past, message_id="mine")
        await client.track("a", user_id="ada")
        await client.decide(user_id="ada", events=[Event("a", timestamp=1_000_000_000)])
        await client.decide_raw(b'{"userId":"ada","events":[{"event":"a","timestamp":1e9}]}')
        await client.decide(user_id="ada", durability="memory", deadline_ms=50)
    sent = [msgspec.json.decode(body) for _, _, body in gateway.requests]
    assert ["sentAt" in message for message in sent] == [True, False, False, True, True, False]
    assert all(abs(m["sentAt"] / 1000 - time.time()) < 60 for m in sent if "sentAt" in m)
    assert (sent[5]["durability"], sent[5]["deadlineMs"]) == ("memory", 50)
    await gateway.stop()
