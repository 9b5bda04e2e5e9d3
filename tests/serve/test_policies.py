"""Policies over HTTP, before a real shard: watched, promoted, rolled back, frozen, stopped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.serve.fake_owner import asynchronous
from tests.serve.shop_edge import ShopEdge, new_shop_edge

POLICY: dict[str, Any] = {
    "surface": "content",
    "mode": "apprentice",
    "rewardWindowS": 60,
    "baseline": ["b"],
}
ASK: dict[str, Any] = {
    "surface": "content",
    "policy": "p",
    "actions": ["a", "b", "c"],
    "numResults": 1,
}


async def watched(shop: ShopEdge, decisions: int, rate: float = 0.4) -> float:
    """So many decisions, closed; returns what they earned on average."""
    generator = random.Random(1)
    earned = 0.0
    for i in range(decisions):
        (made,) = shop.shop.decide(f"u{i}", ASK)
        value = float(generator.random() < rate)
        earned += value
        path = f"/v1/decisions/{made['decisionId']}/reward"
        assert (await shop.call("POST", path, {"value": value})).status == 200
        shop.shop.now_s += 1
        shop.shop.shard.pulse()
    shop.shop.now_s += 61
    shop.shop.shard.pulse()
    return earned / decisions


async def mode_of(shop: ShopEdge) -> str:
    answer = (await shop.call("GET", "/v1/policies/p")).json
    return str(answer["document"].get("mode", "online"))


@asynchronous
async def test_an_apprentice_is_compared_and_then_promoted(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        await shop.put("/v1/policies/p", **POLICY)
        early = await shop.call("POST", "/v1/policies/p/promote")
        assert (early.status, early.json["seen"]) == (409, "0")
        earned = await watched(shop, 400)
        report = (await shop.call("GET", "/v1/policies/p/report")).json
        (one,) = report["versions"]
        assert (report["mode"], one["mode"], one["decisions"]) == ("apprentice",) * 2 + (400,)
        assert one["earned"]["value"] == pytest.approx(earned)
        assert one["agreement"] > 0.6
        assert 0.5 * earned < one["ips"]["value"] < earned
        assert one["snips"]["low"] < one["snips"]["value"] < one["snips"]["high"]
        assert one["snips"]["low"] < earned < one["snips"]["high"]
        few = await shop.call("POST", "/v1/policies/p/promote")
        assert (few.status, few.json["field"]) == (409, "decisions")
        assert await mode_of(shop) == "apprentice"
        done = await shop.call("POST", "/v1/policies/p/promote?minDecisions=400")
        assert (done.status, done.json["version"], await mode_of(shop)) == (200, 2, "online")
        assert done.json["changes"] == [{"field": "mode", "before": "apprentice"}]
        again = await shop.call("POST", "/v1/policies/p/promote")
        assert (again.status, again.json["version"]) == (200, 2), "it is promoted already"
        (made,) = shop.shop.decide("u", ASK)
        assert made["mode"] == "online"
        await watched(shop, 20)
        report = (await shop.call("GET", "/v1/policies/p/report")).json
        assert [(v["version"], v["mode"]) for v in report["versions"]] == [
            (2, "online"),
            (1, "apprentice"),
        ]
        assert report["versions"][0]["agreement"] > 0.2


@asynchronous
async def test_while_a_policy_acts_the_report_says_what_the_baseline_would_earn(tmp_path: Path):
    """b earns .2, c .6, a nothing; slots name their baselines, or the document does."""
    rates = {"a": 0.0, "b": 0.2, "c": 0.6}
    generator = random.Random(7)
    async with new_shop_edge(tmp_path) as shop:
        fields = {"surface": "content", "rewardWindowS": 60, "floor": 0.3, "baseline": ["b"]}
        await shop.put("/v1/policies/p", **fields)
        await shop.put("/v1/policies/q", **fields)
        named = ASK | {"policy": "q", "slots": [{"id": "s", "baselineAction": "c"}]}
        for i in range(900):
            for made in shop.shop.decide(f"u{i}", ASK, named):
                value = float(generator.random() < rates[made["ranking"][0]["id"]])
                path = f"/v1/decisions/{made['decisionId']}/reward"
                assert (await shop.call("POST", path, {"value": value})).status == 200
            shop.shop.now_s += 1
            shop.shop.shard.pulse()
        shop.shop.now_s += 61
        shop.shop.shard.pulse()
        for policy, rate in (("p", 0.2), ("q", 0.6)):
            report = (await shop.call("GET", f"/v1/policies/{policy}/report")).json
            (one,) = report["versions"]
            assert one["earned"]["value"] > 0.45, "it has learned that c is best"
            for estimate in (one["ips"], one["snips"]):
                width = estimate["high"] - estimate["low"]
                # 3.9 standard errors: one seed in ten thousand.
                assert abs(estimate["value"] - rate) < width
                assert width < 0.3


@asynchronous
async def test_what_does_not_watch_is_promoted_by_force_alone(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        await shop.put("/v1/policies/p", **POLICY | {"mode": "off"})
        refused = await shop.call("POST", "/v1/policies/p/promote")
        assert (refused.status, refused.json["field"]) == (409, "mode")
        assert (await shop.call("POST", "/v1/policies/p/promote?force=true")).status == 200
        assert await mode_of(shop) == "online"
        wrong = await shop.call("POST", "/v1/policies/p/promote?minDecisions=-1")
        assert (wrong.status, wrong.json["field"]) == (422, "minDecisions")


@asynchronous
async def test_stopped_is_the_baseline_at_once_and_after_a_restart(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        await shop.put("/v1/policies/p", **POLICY | {"mode": "online", "rule": "uniform"})
        seen = {shop.shop.decide(f"u{i}", ASK)[0]["ranking"][0]["id"] for i in range(30)}
        assert seen == {"a", "b", "c"}
        assert (await shop.call("POST", "/v1/policies/p/stop")).status == 200
        for i in range(30):
            (made,) = shop.shop.decide(f"u{i}", ASK)
            assert (made["mode"], made["ranking"][0]["id"]) == ("off", "b")
            assert made["ranking"][0]["probability"] == 1.0
        policy = shop.shop.replayed().tenant("default").policy("p")
        assert policy is not None
        assert not policy.acts
        assert not policy.learns
        back = await shop.call("POST", "/v1/policies/p/rollback")
        assert (back.json["version"], await mode_of(shop)) == (3, "online")


@asynchronous
async def test_a_rollback_names_any_version_that_is_kept(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        await shop.put("/v1/policies/p", **POLICY | {"floor": 0.1})
        first = await shop.call("POST", "/v1/policies/p/rollback")
        assert first.status == 409
        await shop.put("/v1/policies/p", **POLICY | {"floor": 0.2})
        frozen = await shop.call("POST", "/v1/policies/p/freeze")
        assert (frozen.json["version"], frozen.json["document"]["mode"]) == (3, "frozen")
        back = await shop.call("POST", "/v1/policies/p/rollback?version=1")
        assert (back.json["version"], back.json["document"]["floor"]) == (4, 0.1)
        assert (await shop.call("POST", "/v1/policies/p/rollback?version=77")).status == 404


@asynchronous
async def test_there_is_nothing_to_stop_without_a_document(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        for path in ("stop", "freeze", "promote", "rollback"):
            assert (await shop.call("POST", f"/v1/policies/none/{path}")).status == 404
        assert (await shop.call("GET", "/v1/policies/none/report")).status == 404


@asynchronous
async def test_policies_of_every_surface_watch_and_are_compared(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        surfaces = ("content", "offer", "ui", "communication")
        for surface in surfaces:
            fields = {"surface": surface, "mode": "shadow", "rewardWindowS": 60}
            await shop.put(f"/v1/policies/{surface}", **fields)
        levels = [{"id": "list"}, {"id": "ten", "discount": 0.1}]
        await shop.put("/v1/offers/o", levels=levels, policy="offer", baseline="ten")
        await shop.put(
            "/v1/flags/f", variants={"x": 1, "y": 2}, default="y", policy="ui", sticky="person"
        )
        asks: list[dict[str, Any]] = [
            ASK | {"policy": "content", "baselineAction": "c"},
            {"surface": "offer", "offerId": "o", "itemId": "p1"},
            {"surface": "ui", "flagKey": "f"},
            {
                "surface": "communication",
                "channels": ["email", "push"],
                "policy": "communication",
            },
        ]
        for i in range(40):
            content, offer, ui, message = shop.shop.decide(f"u{i}", *asks)
            assert content["ranking"][0]["id"] == "c"
            assert offer["ranking"][0]["id"] == "ten"
            assert ui["flags"]["f"]["variant"] == "y"
            assert message["channel"] == "email"
        shop.shop.now_s += 61
        shop.shop.shard.pulse()
        for surface in surfaces:
            report = (await shop.call("GET", f"/v1/policies/{surface}/report")).json
            (one,) = report["versions"]
            assert (one["decisions"], one["earned"]["value"]) == (40, 0.0), surface
            assert 0.0 < one["agreement"] < 1.0, surface
            assert one["ips"]["effective"] > 0.0, surface
