"""Azure Personalizer's API: requests as its clients send them, answers as they expect them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from serve.personalizer import flat
from tests.serve.edge import LOCAL
from tests.serve.fake_owner import asynchronous
from tests.serve.shop_edge import new_shop_edge

BASE = "/personalizer/v1.0"
RANK: dict[str, Any] = {
    "contextFeatures": [{"timeOfDay": "morning"}, {"device": {"kind": "mobile", "width": 390}}],
    "actions": [
        {"id": "NewsArticle", "features": [{"type": "News"}]},
        {"id": "SportsArticle", "features": [{"type": "Sports"}]},
        {"id": "EntertainmentArticle", "features": [{"type": "Entertainment"}]},
    ],
    "excludedActions": ["SportsArticle"],
    "eventId": "75269AD0-BFEE-4598-8196-C57383D38E10",
    "deferActivation": False,
}
EVENT = f"{BASE}/events/{RANK['eventId']}"


@asynchronous
async def test_rank_answers_as_azure_does(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        reply = await shop.call("POST", f"{BASE}/rank", RANK)
        assert reply.status == 201
        assert reply.json["eventId"] == RANK["eventId"]
        ids = [one["id"] for one in reply.json["ranking"]]
        assert sorted(ids) == sorted(action["id"] for action in RANK["actions"])
        assert ids[1] == "SportsArticle", "an excluded action keeps its place"
        assert reply.json["rewardActionId"] == ids[0]
        chances = {one["id"]: one["probability"] for one in reply.json["ranking"]}
        assert chances["SportsArticle"] == 0.0
        assert sum(chances.values()) == pytest.approx(1.0)
        again = await shop.call("POST", f"{BASE}/rank", RANK)
        assert (again.status, again.json) == (201, reply.json)
        other = await shop.call("POST", f"{BASE}/rank", RANK | {"excludedActions": []})
        assert (other.status, other.json["error"]["code"]) == (409, "EventKeyConflict")


@asynchronous
async def test_an_event_id_is_made_up_if_none_is_given(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        wanted = {"actions": RANK["actions"]}
        first = await shop.call("POST", f"{BASE}/rank", wanted)
        second = await shop.call("POST", f"{BASE}/rank", wanted)
        assert first.json["eventId"] != second.json["eventId"]


@asynchronous
async def test_rewards_find_their_event_and_are_learned(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        await shop.put("/v1/policies/personalizer", surface="content", rewardWindowS=60)
        late: Counter[str] = Counter()
        for i in range(300):
            event_id = f"event-{i}"
            ranked = await shop.call("POST", f"{BASE}/rank", RANK | {"eventId": event_id})
            chosen = ranked.json["rewardActionId"]
            value = 1.0 if chosen == "EntertainmentArticle" else 0.0
            told = await shop.call("POST", f"{BASE}/events/{event_id}/reward", {"value": value})
            assert (told.status, told.body) == (204, b"")
            shop.shop.now_s += 61
            shop.shop.shard.rewards.close_due(int(shop.shop.now_s))
            late[chosen] += i >= 200
        assert late["EntertainmentArticle"] > 80


@asynchronous
async def test_a_deferred_event_is_activated(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        await shop.call("POST", f"{BASE}/rank", RANK | {"deferActivation": True})
        (waiting,) = shop.shop.shard.rewards.decisions._open.values()
        assert waiting.active is False
        assert (await shop.call("POST", f"{EVENT}/activate")).status == 204
        assert waiting.active is True


@asynchronous
async def test_slots_are_filled_with_different_actions_and_rewarded_each(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        slots = [
            {"id": "Main", "baselineAction": "NewsArticle", "features": [{"size": "large"}]},
            {"id": "Side", "baselineAction": "SportsArticle"},
        ]
        wanted = {name: RANK[name] for name in ("actions", "contextFeatures")}
        reply = await shop.call(
            "POST", f"{BASE}/multislot/rank", wanted | {"slots": slots, "eventId": "m1"}
        )
        assert reply.status == 201
        assert [slot["id"] for slot in reply.json["slots"]] == ["Main", "Side"]
        assert len({slot["rewardActionId"] for slot in reply.json["slots"]}) == 2
        told = {"reward": [{"slotId": "Side", "value": 1.0}]}
        assert (await shop.call("POST", f"{BASE}/multislot/events/m1/reward", told)).status == 204
        (waiting,) = shop.shop.shard.rewards.decisions._open.values()
        assert waiting.values == [None, 1.0]


@asynchronous
async def test_slots_leave_out_what_they_exclude_and_are_filled_all_the_same(tmp_path: Path):
    """Side can take Sports alone, so Main never does, whatever it would rather have."""
    async with new_shop_edge(tmp_path) as shop:
        slots: list[dict[str, Any]] = [
            {"id": "Main", "baselineAction": "NewsArticle"},
            {
                "id": "Side",
                "baselineAction": "SportsArticle",
                "excludedActions": ["NewsArticle", "EntertainmentArticle"],
            },
        ]
        wanted = {"actions": RANK["actions"], "slots": slots}
        shown: Counter[str] = Counter()
        for _ in range(100):
            reply = await shop.call("POST", f"{BASE}/multislot/rank", wanted)
            assert reply.status == 201
            main, side = (slot["rewardActionId"] for slot in reply.json["slots"])
            assert side == "SportsArticle"
            shown[main] += 1
        assert set(shown) == {"NewsArticle", "EntertainmentArticle"}
        slots[0]["excludedActions"] = ["NewsArticle", "EntertainmentArticle"]
        reply = await shop.call("POST", f"{BASE}/multislot/rank", wanted)
        assert (reply.status, reply.json["error"]["code"]) == (400, "BadRequest")
        assert "slots[1].excludedActions" in reply.json["error"]["message"]


@asynchronous
async def test_an_apprentice_shows_the_first_action_or_what_slots_name(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        await shop.put("/v1/policies/personalizer", surface="content", mode="apprentice")
        reply = await shop.call("POST", f"{BASE}/rank", RANK)
        assert reply.json["rewardActionId"] == "NewsArticle"
        assert [one["probability"] for one in reply.json["ranking"]] == [1.0, 0.0, 0.0]
        slots = [
            {"id": "Main", "baselineAction": "SportsArticle"},
            {"id": "Side", "baselineAction": "NewsArticle"},
        ]
        wanted = {"actions": RANK["actions"], "slots": slots}
        reply = await shop.call("POST", f"{BASE}/multislot/rank", wanted)
        chosen = [slot["rewardActionId"] for slot in reply.json["slots"]]
        assert chosen == ["SportsArticle", "NewsArticle"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/rank", {}, 400, "BadRequest"),
        ("/rank", {"actions": []}, 400, "BadRequest"),
        (
            "/rank",
            RANK | {"excludedActions": [a["id"] for a in RANK["actions"]]},
            400,
            "BadRequest",
        ),
        ("/rank", RANK | {"actions": RANK["actions"][:1] * 2}, 400, "BadRequest"),
        ("/events/unknown/reward", {"value": 1}, 404, "EventNotFound"),
        ("/events/unknown/activate", None, 404, "EventNotFound"),
        ("/events/unknown/reward", {"value": "much"}, 400, "BadRequest"),
    ],
)
def test_failures_are_in_azures_words(tmp_path: Path, path: str, body: Any, status: int, code: str):
    @asynchronous
    async def act() -> None:
        async with new_shop_edge(tmp_path) as shop:
            reply = await shop.call("POST", BASE + path, body)
            assert (reply.status, reply.json["error"]["code"]) == (status, code)
            assert reply.json["error"]["message"]

    act()


@asynchronous
async def test_azures_name_of_the_key_is_taken(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        for key, status in ((shop.edge.keys.sk, 201), (shop.edge.keys.pk, 403), ("sk_no", 401)):
            headers = (LOCAL, (b"ocp-apim-subscription-key", key.encode()))
            assert (await shop.call("POST", f"{BASE}/rank", RANK, headers)).status == status


def test_features_of_any_depth_have_names():
    nested: list[dict[str, Any]] = [
        {"user": {"tastes": ["sport", {"music": 2}], "deep": {"a": {"b": True}}}},
        {"n": None},
    ]
    expected = {"user.tastes.sport": True, "user.tastes.music": 2, "user.deep.a.b": True}
    assert flat(nested) == expected
