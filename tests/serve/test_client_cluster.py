"""The SDK against a running onehop: both ways, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from cluster.errors import AuthError, Unavailable
from serve.client import ApiError, Client, SyncClient
from serve.launch import Cluster
from tests.serve.fake_owner import asynchronous

pytestmark = pytest.mark.cluster

ITEMS = [{"id": f"sdk-{n}", "attributes": {"brand": "sdk", "price": float(n)}} for n in range(20)]


@pytest.fixture
def new_client(cluster: Cluster) -> Callable[..., Client]:
    assert cluster.keys is not None
    key = cluster.keys.sk

    def make(**settings: Any) -> Client:
        return Client(cluster.address, key, **settings)

    return make


@asynchronous
async def test_both_ways_lead_to_the_same_profiles(new_client: Callable[..., Client]) -> None:
    async with new_client(direct=False) as http, new_client(direct=True) as direct:
        assert (direct.is_direct, http.is_direct) == (True, False)
        results = await http.put_items(ITEMS)
        assert [result["id"] for result in results] == [item["id"] for item in ITEMS]
        for number in range(8):
            person: dict[str, Any] = {"user_id": f"sdk-{number}-{uuid4()}"}
            await direct.identify({"plan": "gold"}, **person)
            one, other = (http, direct) if number % 2 else (direct, http)
            await one.track("Item Viewed", **person, properties={"itemId": "sdk-3"})
            await one.page("Home", **person)
            profiles = [await client.profile(**person) for client in (one, other)]
            assert profiles[0] == profiles[1]
            assert profiles[0]["traits"] == {"plan": "gold"}
            actions = [item["id"] for item in ITEMS]
            answer = await other.decide(
                **person,
                events=[{"event": "Item Viewed", "properties": {"itemId": "sdk-4"}}],
                decisions=[{"surface": "product", "actions": actions, "numResults": 5}],
            )
            (decision,) = answer.decisions
            assert {ranked.id for ranked in decision.ranking} <= set(actions)
            records = [await client.decision(decision.decision_id) for client in (one, other)]
            assert records[0] == records[1]
            await one.delete_profile(**person)
            for client in (one, other):
                with pytest.raises(ApiError, match="404"):
                    await client.profile(**person)


@asynchronous
async def test_a_retry_by_the_other_way_is_a_duplicate(new_client: Callable[..., Client]) -> None:
    async with new_client(direct=False) as http, new_client(direct=True) as direct:
        person: dict[str, Any] = {"anonymous_id": "sdk-retry", "message_id": uuid4().hex}
        first = await direct.decide(**person)
        again = await http.decide(**person)
        assert (first.duplicate, again.duplicate) == (False, True)
        assert again.profile_version == first.profile_version
        with pytest.raises(ApiError, match="409"):
            await direct.decide(**person, context={"other": True})


@asynchronous
async def test_batches_are_answered_alike(new_client: Callable[..., Client]) -> None:
    messages: list[dict[str, Any]] = [
        {"type": "track", "event": "Scrolled", "userId": "sdk-batch"},
        {"type": "decide", "userId": "sdk-batch", "decisions": []},
        {"type": "decide", "userId": "sdk-batch", "decisons": []},
        {"type": "nonsense", "userId": "sdk-batch"},
        {"type": "track", "event": "Scrolled"},
    ]
    async with new_client(direct=False) as http, new_client(direct=True) as direct:
        answers = [await client.batch(messages) for client in (http, direct)]
        for answer in answers:
            assert [result["status"] for result in answer] == [200, 200, 422, 422, 422]
            assert "decisons" in str(answer[2]["problem"])


@asynchronous
async def test_an_unknown_key_gets_nowhere(cluster: Cluster) -> None:
    stranger = "sk_" + "x" * 43 + "000000"
    async with Client(cluster.address, stranger) as client:
        assert not client.is_direct
        with pytest.raises(AuthError):
            await client.decide(user_id="sdk-stranger")
    with pytest.raises((AuthError, Unavailable)):
        await Client(cluster.address, stranger, direct=True).start()


def test_threads_decide_too(cluster: Cluster) -> None:
    assert cluster.keys is not None
    with SyncClient(cluster.address, cluster.keys.sk) as client:
        assert client.is_direct
        assert client.decide(user_id="sdk-sync").profile_version >= 0
