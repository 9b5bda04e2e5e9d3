"""Results over HTTP: experiments, spreads and budgets, from the shards' own books."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from actors.books import MICROS
from tests.serve.fake_owner import asynchronous
from tests.serve.shop_edge import new_shop_edge

FLAG: dict[str, Any] = {"variants": {"red": 1, "blue": 2}, "default": "red"}
EXPERIMENT: dict[str, Any] = {
    "surface": "ui",
    "key": "banner",
    "variants": [{"key": "control", "arm": "red"}, {"key": "new", "arm": "blue"}],
    "metric": {"event": "Item Purchased"},
}


@asynchronous
async def test_an_experiments_results_count_people_and_find_a_real_difference(tmp_path: Path):
    generator = random.Random(3)
    async with new_shop_edge(tmp_path) as shop:
        await shop.put("/v1/flags/banner", **FLAG)
        await shop.put("/v1/experiments/e", **EXPERIMENT)
        for i in range(700):
            (made,) = shop.shop.decide(f"u{i}", {"surface": "ui", "flagKey": "banner"})
            rate = 0.5 if made["experiment"]["variant"] == "new" else 0.1
            if generator.random() < rate:
                bought = {"event": "Item Purchased", "properties": {"itemId": "p1"}}
                shop.shop.decide(f"u{i}", events=[bought])
        reply = await shop.call("GET", "/v1/experiments/e/results")
        assert reply.status == 200
        control, new = reply.json["variants"]
        assert control["people"] + new["people"] == 700
        assert control["pValue"] is None
        assert new["pValue"] < 0.01
        assert new["significant"] is True
        assert new["low"] < new["effect"] < new["high"]
        assert new["effect"] == pytest.approx(new["mean"] - control["mean"])
        assert (await shop.call("GET", "/v1/experiments/none/results")).status == 404


@asynchronous
async def test_spread_and_budget_tell_what_was_quoted(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        spread = {"by": "plan", "bound": 0.5, "minimum": 1}
        await shop.put("/v1/guardrails/eu", spread=spread)
        await shop.put("/v1/budgets/b", total=100)
        half = {"levels": [{"id": "half", "discount": 0.5}], "guardrails": "eu", "budget": "b"}
        await shop.put("/v1/offers/o", **half)
        shop.shop.shard.grant("default", "b", 40 * MICROS)
        offer = {"surface": "offer", "offerId": "o", "itemId": "p0"}
        for i in range(4):
            shop.shop.decide(f"u{i}", offer, context={"plan": "gold" if i % 2 else "basic"})
        report = (await shop.call("GET", "/v1/guardrails/eu/spread")).json
        assert report["spread"] == 0.0
        assert report["segments"] == [
            {"segment": name, "quotes": 2, "meanShare": 0.5} for name in ("basic", "gold")
        ]
        standing = (await shop.call("GET", "/v1/budgets/b/standing")).json
        amounts = {"total": 100.0, "granted": 40.0, "spent": 0.0, "reserved": 20.0}
        assert standing == {"id": "b", **amounts}
