"""Recorded propensities of whole decide calls: under caps, exclusions, slots, and while it learns.

If each arm is drawn with the probability that is recorded, then 1 / probability, counted where the
arm was drawn and 0 elsewhere, is 1 on average (Horvitz and Thompson), however the policy learns on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
import numpy as np

from cluster.frames import Op
from tests.actors.surfaces.shop import SERVER, Shop

SEED = 11
ACTIONS = ["a", "b", "c", "d"]

Seen = dict[tuple[str, ...], list[tuple[str, float]]]


def check(seen: Seen, arms: dict[tuple[str, ...], Iterable[str]]) -> None:
    """seen: by what was known before the draw, what was drawn with which probability."""
    for known, draws in seen.items():
        if len(draws) < 150:
            continue
        for arm in arms[known]:
            weights = np.array([1.0 / p if drawn == arm else 0.0 for drawn, p in draws])
            error = max(float(weights.std()), 0.3) / len(weights) ** 0.5
            assert abs(weights.mean() - 1.0) < 4.5 * error, (known, arm, weights.mean(), SEED)


def test_drawn_arms_weigh_one_on_average() -> None:
    rng = np.random.default_rng(SEED)
    shop = Shop()
    shop.shard._rng = np.random.default_rng(SEED)
    levels = [{"id": "list"}, {"id": "ten", "discount": 0.1}, {"id": "gift", "cost": 1.0}]
    shop.put("policies", "prices", surface="offer", floor=0.2, rewardWindowS=50)
    shop.put("policies", "p", surface="content", floor=0.2, rewardWindowS=50)
    cap = {"count": 1, "windowS": 86_400}
    shop.put("offers", "o", levels=levels, policy="prices", holdS=60, cap=cap)
    slots = [{"id": "hero"}, {"id": "side", "excludedActions": ["b", "c"]}]
    offers: Seen = defaultdict(list)
    heroes: Seen = defaultdict(list)
    sides: Seen = defaultdict(list)
    for number in range(4):
        for person in range(200):
            excluded = ["d"] if number % 2 else []
            content = {"surface": "content", "policy": "p", "actions": ACTIONS, "slots": slots}
            made, offer = shop.decide(
                f"u{person}",
                content | {"excludedActions": excluded},
                {"surface": "offer", "offerId": "o", "itemId": "p1"},
            )
            rejected = tuple(sorted(one["id"] for one in offer["rejected"]))
            drawn = offer["ranking"][0]
            offers[rejected].append((drawn["id"], drawn["probability"]))
            hero, side = made["slots"]
            heroes[tuple(excluded)].append((hero["rewardActionId"], hero["probability"]))
            before = (*excluded, hero["rewardActionId"])
            sides[before].append((side["rewardActionId"], side["probability"]))
            for one in (made, offer):
                body = one["decisionId"].encode() + msgspec.json.encode(
                    {"value": float(rng.random() < 0.3)}
                )
                assert shop.shard.handle(Op.REWARD, SERVER, body, 0)[0] == 200
        shop.now_s += 100
        shop.shard.pulse()
    assert {(), ("gift", "ten")} == offers.keys(), "the cap is reached by some"
    check(offers, {(): ("list", "ten", "gift"), ("gift", "ten"): ("list",)})
    # With d excluded the side can take a alone, so the hero never does.
    check(heroes, {(): ACTIONS, ("d",): ("b", "c")})
    check(sides, {known: {"a", "d"} - {*known} for known in sides})
