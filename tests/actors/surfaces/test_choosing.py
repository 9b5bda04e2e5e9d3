"""Policies of documents that choose among actions: what must not be shown is never chosen."""

from __future__ import annotations

from typing import Any

from cluster.frames import Op
from tests.actors.surfaces.shop import Shop

ASK: dict[str, Any] = {
    "surface": "product",
    "policy": "p",
    "actions": ["p1", "p2", "p3", "p4", "banner"],
    "numResults": 9,
}


def shown(shop: Shop, person: str, **fields: Any) -> tuple[set[str], dict[str, str]]:
    """Ids that were chosen, and rules by which others were not."""
    (made,) = shop.decide(person, ASK | fields)
    chances = [entry["probability"] for entry in made["ranking"]]
    assert all(0 < chance <= 1 for chance in chances)
    assert not chances or chances[-1] == 1.0, "the last that is eligible is certain"
    rejected = {entry["id"]: entry["rule"] for entry in made["rejected"]}
    return {entry["id"] for entry in made["ranking"]}, rejected


def shop_with_policy() -> Shop:
    shop = Shop()
    shop.put("policies", "p", surface="product", rule="uniform")
    for event, item in (("Item Purchased", "p1"), ("Item Viewed", "p3")):
        shop.ask(Op.TRACK, userId="ada", event=event, properties={"itemId": item})
    return shop


def test_what_the_person_bought_is_left_out_unless_asked_for() -> None:
    shop = shop_with_policy()
    assert shown(shop, "ada") == ({"p2", "p3", "p4", "banner"}, {"p1": "bought"})
    assert shown(shop, "ada", excludeBought=False) == ({*ASK["actions"]}, {})
    assert shown(shop, "bob") == ({*ASK["actions"]}, {})


def test_what_the_person_saw_is_left_out_if_asked_for() -> None:
    found, rejected = shown(shop_with_policy(), "ada", excludeSeen=True)
    assert found == {"p2", "p4", "banner"}
    assert rejected == {"p1": "bought", "p3": "seen"}


def test_an_item_that_was_taken_down_is_left_out() -> None:
    shop = shop_with_policy()
    shop.shard.take_down("default", ["p2"])
    assert shown(shop, "ada", excludedActions=["banner"]) == (
        {"p3", "p4"},
        {"p1": "bought", "p2": "taken down", "banner": "excluded"},
    )
    bought_only = {"actions": ["p1", "p2"]}
    assert shown(shop, "ada", **bought_only) == (set(), {"p1": "bought", "p2": "taken down"})


def test_a_decision_and_its_wait_for_a_reward_are_one_record() -> None:
    shop = shop_with_policy()
    before = len(shop.journal.records)
    shop.decide("ada", ASK, messageId="m1")
    # Whatever a crash leaves of the log, it leaves the answer of the repeat and its reward both.
    assert len(shop.journal.records) == before + 1
    (waiting,), _, _ = shop.replayed().rewards.decisions.entries()
    (decided,) = shop.ask(Op.DECIDE, userId="ada", decisions=[ASK], messageId="m1")["decisions"]
    assert decided["decisionId"] == f"{waiting.place:016x}{waiting.number:016x}"
    assert [entry["id"] for entry in decided["ranking"]][: len(waiting.arms)] == waiting.arms
