"""How requests get there: by which way, how often, and what a failure means."""

from __future__ import annotations

import asyncio
import pickle
import random
from typing import Any

import msgspec
import pytest

from actors.messages import Problem
from cluster.errors import AuthError, ConfigError, Overloaded, Unavailable
from serve.client import ApiError, Client
from serve.client_http import RETRY_AFTER_MAX_S
from serve.delivery import BACKOFF_MAX_S, Delivery
from tests.serve.fake_gateway import (
    DECIDED,
    KEY,
    SDK_SECRETS,
    FakeGateway,
    HttpAnswer,
    by_op,
    new_client,
)
from tests.serve.fake_owner import FakeOwner, asynchronous, map_of


@asynchronous
async def test_a_client_that_does_not_reach_the_owners_uses_http() -> None:
    stranger = await FakeOwner(by_op, secrets={}).start()
    dead = await FakeOwner().start()
    await dead.stop()
    for partition_map in (None, map_of(1, dead), map_of(1, stranger)):
        gateway = await FakeGateway(partition_map=partition_map).start()
        async with new_client(gateway) as client:
            assert not client.is_direct
            assert (await client.decide(user_id="ada")).profile_version == 3
        with pytest.raises((ApiError, Unavailable, AuthError)):
            await new_client(gateway, direct=True).start()
        await gateway.stop()
    assert stranger.requests == []
    await stranger.stop()


@asynchronous
async def test_a_public_key_never_asks_for_the_owners() -> None:
    gateway = await FakeGateway().start()
    for key in ("", "pk_" + "k" * 49):
        async with new_client(gateway, key) as client:
            await client.track("Scrolled", anonymous_id="v")
        with pytest.raises(ConfigError, match="sk_"):
            new_client(gateway, key, direct=True)
    assert gateway.map_asked == 0
    assert gateway.keys == {None, "pk_" + "k" * 49}
    await gateway.stop()


@pytest.mark.parametrize(
    ("status", "error"), [(429, Overloaded), (500, Unavailable), (503, Unavailable)]
)
@asynchronous
async def test_what_a_retry_may_help_is_sent_again_with_the_same_bytes(
    status: int, error: type[Exception]
) -> None:
    left = [2]

    def flaky(method: str, path: str, body: bytes) -> HttpAnswer:
        left[0] -= 1
        return (200, DECIDED) if left[0] < 0 else (status, b"not json", {"retry-after": "0"})

    gateway = await FakeGateway(flaky).start()
    async with new_client(gateway, direct=False, attempts_max=3) as client:
        await client.decide(user_id="ada")
        assert len(gateway.requests) == 3
        assert len(set(gateway.requests)) == 1
        assert msgspec.json.decode(gateway.requests[0][2])["messageId"]
        left[0] = 99
        with pytest.raises(error, match=str(status)):
            await client.decide(user_id="ada")
        assert len(gateway.requests) == 6
        assert len(set(gateway.requests)) == 2
    await gateway.stop()


@asynchronous
async def test_a_lost_http_connection_is_retried_and_then_unavailable() -> None:
    gateway = await FakeGateway().start()
    await gateway.stop()
    async with new_client(gateway, direct=False, attempts_max=2) as client:
        with pytest.raises(Unavailable, match="can't be reached"):
            await client.decide(user_id="ada")


def test_pauses_honour_what_was_asked_for_and_grow_up_to_a_bound() -> None:
    delivery = Delivery("http://h", "", False, 1, 1.0, 5, random.Random(7))
    assert 3.0 <= delivery.pause_s(1, 3.0) <= 4.5
    for attempt in range(1, 40):
        shortest_s = min(0.05 * 2 ** (attempt - 1), BACKOFF_MAX_S)
        assert shortest_s <= delivery.pause_s(attempt) <= 1.5 * shortest_s


@asynchronous
async def test_retry_after_is_read_and_bounded() -> None:
    seen: list[float] = []
    waits = ["7", "999999999999", "Wed, 21 Oct 2026 07:28:00 GMT", "-1"]
    gateway = await FakeGateway(lambda *_: (429, b"", {"retry-after": waits[len(seen)]})).start()
    async with new_client(gateway, direct=False) as client:
        for _ in waits:
            http = client._delivery._http
            assert http is not None
            seen.append((await http.request("GET", "/x")).retry_after_s)
    assert seen == [7.0, RETRY_AFTER_MAX_S, 0.0, 0.0]
    await gateway.stop()


@asynchronous
async def test_an_answer_of_many_pieces_arrives_whole_and_an_endless_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = bytes(range(256)) * 8192
    gateway = await FakeGateway(lambda *_: (200, whole)).start()
    async with new_client(gateway, direct=False, attempts_max=1) as client:
        assert await client.decide_raw(b"", user_id="ada") == whole
        monkeypatch.setattr("serve.client_http.REPLY_BYTES_MAX", len(whole) - 1)
        with pytest.raises(Unavailable, match="must be <= "):
            await client.decide_raw(b"", user_id="ada")
        monkeypatch.undo()
    await gateway.stop()


@pytest.mark.parametrize(
    ("url", "key", "settings"),
    [
        ("127.0.0.1:8000", KEY, {}),
        ("http://h", KEY + "\n", {}),
        ("http://h", "sk_ö", {}),
        ("http://h", KEY, {"inflight_max": 0}),
        ("http://h", KEY, {"attempts_max": 0}),
        ("http://h", KEY, {"timeout_s": 0}),
    ],
)
def test_settings_that_can_not_work_are_refused_at_once(
    url: str, key: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="must"):
        Client(url, key, **settings)


@asynchronous
async def test_direct_requests_follow_moved_by_a_map_from_the_gateway() -> None:
    new = await FakeOwner(by_op, secrets=SDK_SECRETS).start()
    old = await FakeOwner(lambda *_: (421, b'{"epoch":2}'), secrets=SDK_SECRETS).start()
    gateway = await FakeGateway(partition_map=map_of(1, old)).start()
    async with new_client(gateway, direct=True) as client:
        gateway.map = map_of(2, new)
        assert (await client.decide(user_id="ada")).profile_version == 3
    assert old.requests == new.requests
    assert gateway.requests == []
    await gateway.stop()
    await old.stop()
    await new.stop()


@asynchronous
async def test_a_request_whose_owner_dies_arrives_through_http_with_the_same_bytes() -> None:
    owner = await FakeOwner(lambda *_: None, secrets=SDK_SECRETS).start()
    gateway = await FakeGateway(partition_map=map_of(1, owner)).start()
    async with new_client(gateway, timeout_s=0.3) as client:
        assert client.is_direct
        deciding = asyncio.create_task(client.decide(user_id="ada"))
        await owner.seen(1)
        await owner.stop()
        assert (await deciding).profile_version == 3
    assert [body for _, _, body in gateway.requests] == [owner.requests[0][2]]
    await gateway.stop()


@asynchronous
async def test_requests_in_flight_are_bounded_and_all_are_answered() -> None:
    open_now, most = 0, 0

    async def count(method: str, path: str, body: bytes) -> HttpAnswer:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.001)
        open_now -= 1
        return 200, DECIDED

    gateway = await FakeGateway(count).start()
    async with new_client(gateway, direct=False, inflight_max=4) as client:
        answers = await asyncio.gather(*(client.decide(user_id=f"u{i}") for i in range(40)))
    assert len(answers) == 40
    assert 1 < most <= 4
    await gateway.stop()


@asynchronous
async def test_calls_before_the_start_connect_once() -> None:
    owner = await FakeOwner(by_op, secrets=SDK_SECRETS).start()
    gateway = await FakeGateway(partition_map=map_of(1, owner)).start()
    client = new_client(gateway)
    await asyncio.gather(*(client.decide(user_id=f"u{i}") for i in range(9)))
    assert len(owner.connections) == 1
    await client.close()
    await gateway.stop()
    await owner.stop()


def test_what_a_refusal_said_crosses_processes() -> None:
    error = ApiError(409, Problem("other body", 409, field="messageId"))
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.status, copy.problem, str(copy)) == (409, error.problem, "409: other body")
