"""All five surfaces in one call over real HTTP; rewards, budgets and results beside them."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from serve.cli import commands
from serve.client import SyncClient
from serve.launch import Cluster
from tests.serve.tenants import new_tenant

OFFER = {"surface": "offer", "offerId": "spring", "itemId": "p1"}
FIVE: list[dict[str, Any]] = [
    {"surface": "product", "numResults": 2},
    {"surface": "content", "slots": [{"id": "hero", "baselineAction": "p2"}]},
    OFFER,
    {"surface": "ui", "flagKey": "banner"},
    {"surface": "communication", "channels": ["push"]},
]


def get(cluster: Cluster, key: str, path: str) -> Any:
    request = urllib.request.Request(cluster.address + path, headers={"X-API-Key": key})
    with urllib.request.urlopen(request, timeout=30) as response:
        return msgspec.json.decode(response.read())


def put_shop(client: SyncClient) -> None:
    client.put_items([{"id": f"p{i}", "attributes": {"price": 10.0}} for i in range(4)])
    client.put_document("budgets", "b", {"total": 1000})
    levels = [{"id": "half", "discount": 0.5, "value": 1}, {"id": "list", "value": 0}]
    client.put_document("offers", "spring", {"levels": levels, "budget": "b"})
    client.put_document("policies", "p", {"surface": "ui"})
    flag = {"variants": {"red": 1, "blue": 2}, "default": "red", "policy": "p"}
    client.put_document("flags", "banner", flag)
    client.put_document(
        "experiments",
        "e",
        {
            "surface": "ui",
            "variants": [{"key": "control"}, {"key": "new", "arm": "blue"}],
            "metric": {"event": "Item Purchased"},
        },
    )


def post(cluster: Cluster, key: str, path: str) -> Any:
    request = urllib.request.Request(cluster.address + path, b"", {"X-API-Key": key}, method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:
        return msgspec.json.decode(response.read())


@pytest.mark.cluster
def test_a_policy_that_is_stopped_is_stopped_on_every_shard(cluster: Cluster) -> None:
    key = new_tenant(cluster, "stopped")
    flag = {"variants": {"red": 1, "blue": 2}, "default": "red", "policy": "p", "sticky": "person"}
    ask = [{"surface": "ui", "flagKey": "banner"}]
    with SyncClient(cluster.address, key) as client:
        client.put_document("policies", "p", {"surface": "ui", "rule": "uniform"})
        client.put_document("flags", "banner", flag)

        def shown() -> list[tuple[str, str | None]]:
            made = (client.decide(user_id=f"v{i}", decisions=ask).decisions[0] for i in range(40))
            return [(one.flags["banner"].variant, one.mode) for one in made]

        assert {variant for variant, _ in shown()} == {"red", "blue"}
        assert post(cluster, key, "/v1/policies/p/stop")["document"]["mode"] == "off"
        assert set(shown()) == {("red", "off")}
        post(cluster, key, "/v1/policies/p/rollback")
        assert {variant for variant, _ in shown()} == {"red", "blue"}
        assert get(cluster, key, "/v1/policies/p/report")["version"] == 3


@pytest.mark.cluster
def test_what_came_of_decisions_is_exported_and_judged(cluster: Cluster, tmp_path: Path) -> None:
    key = new_tenant(cluster, "exported")
    ask = [{"surface": "content", "policy": "p", "actions": ["a", "b"], "numResults": 1}]
    with SyncClient(cluster.address, key) as client:
        client.put_document("policies", "p", {"surface": "content", "rewardWindowS": 1})
        for i in range(40):
            client.decide(user_id=f"v{i}", decisions=ask)
    document, file = tmp_path / "new.yaml", tmp_path / "all.parquet"
    document.write_text("surface: content\nrule: uniform\n")
    where = ["--url", cluster.address, "--api-key", key]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        said = CliRunner().invoke(commands, ["export", str(file), *where])
        if said.output == "40 decisions\n":
            break
        time.sleep(0.5)
    assert said.output == "40 decisions\n"
    said = CliRunner().invoke(commands, ["evaluate", str(file), "--policy", str(document)])
    assert said.exit_code == 0, said.output
    assert said.output.startswith("40 decisions\n")


@pytest.mark.cluster
def test_five_surfaces_in_one_call(cluster: Cluster) -> None:
    key = new_tenant(cluster, "surfaces")
    with SyncClient(cluster.address, key) as client:
        put_shop(client)
        made = client.decide(user_id="ada", decisions=FIVE).decisions
        assert [one.surface for one in made] == [spec["surface"] for spec in FIVE]
        product, content, offer, ui, message = made
        assert len(product.ranking) == 2
        assert content.slots[0].id == "hero"
        assert offer.price in (5.0, 10.0)
        assert ui.flags["banner"].variant in ("red", "blue")
        assert message.send is not None
        (again,) = client.decide(user_id="ada", decisions=[OFFER]).decisions
        assert (again.price, again.quote_id) == (offer.price, offer.quote_id)
        # Portions come from the coordinator, within a second or two.
        deadline = time.monotonic() + 30
        person = 0
        while time.monotonic() < deadline and offer.price != 5.0:
            person += 1
            (offer,) = client.decide(user_id=f"v{person}", decisions=[OFFER]).decisions
            time.sleep(0.1)
        assert offer.price == 5.0
        standing = get(cluster, key, "/v1/budgets/b/standing")
        assert 5.0 <= standing["reserved"] <= standing["granted"] <= 1000.0
        results = get(cluster, key, "/v1/experiments/e/results")
        assert sum(variant["people"] for variant in results["variants"]) == 1
