"""OpenFeature's remote evaluation protocol: by hand, and with the real SDK and provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from serve.client import SyncClient
from serve.launch import Cluster
from tests.serve.edge import LOCAL, key_header
from tests.serve.fake_owner import asynchronous
from tests.serve.shop_edge import new_shop_edge
from tests.serve.tenants import new_tenant

ONE = "/ofrep/v1/evaluate/flags/banner"
ALL = "/ofrep/v1/evaluate/flags"
BANNER: dict[str, Any] = {
    "variants": {"red": "#f00", "blue": "#00f"},
    "default": "red",
    "rules": [{"when": "device = 'ios'", "variant": "blue"}],
}
ADA = {"context": {"targetingKey": "ada", "device": "ios", "nested": {"a": 1}}}


@asynchronous
async def test_a_flag_is_evaluated_for_the_targeting_key(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        await shop.put("/v1/flags/banner", **BANNER)
        reply = await shop.call("POST", ONE, ADA)
        assert reply.status == 200
        assert reply.json | {"metadata": None} == {
            "key": "banner",
            "reason": "TARGETING_MATCH",
            "variant": "blue",
            "value": "#00f",
            "metadata": None,
        }
        decision = await shop.call("GET", f"/v1/decisions/{reply.json['metadata']['decisionId']}")
        assert decision.json["flags"]["banner"]["variant"] == "blue"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/ofrep/v1/evaluate/flags/none", ADA, 404, "FLAG_NOT_FOUND"),
        (ONE, {"context": {"device": "ios"}}, 400, "TARGETING_KEY_MISSING"),
        (ONE, {}, 400, "TARGETING_KEY_MISSING"),
        (ONE, {"context": 5}, 400, "INVALID_CONTEXT"),
        (ALL, {"context": {}}, 400, "TARGETING_KEY_MISSING"),
    ],
)
def test_failures_are_in_the_protocols_words(
    tmp_path: Path, path: str, body: Any, status: int, code: str
):
    @asynchronous
    async def act() -> None:
        async with new_shop_edge(tmp_path) as shop:
            await shop.put("/v1/flags/banner", **BANNER)
            reply = await shop.call("POST", path, body)
            assert (reply.status, reply.json["errorCode"]) == (status, code)
            assert reply.headers["content-type"] == "application/json"
            text = await shop.edge.call("POST", path, b"{")
            assert (text.status, text.json["errorCode"]) == (400, "PARSE_ERROR")

    act()


@asynchronous
async def test_all_flags_come_at_once_and_unchanged_ones_are_not_sent_again(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        for i in range(20):
            await shop.put(f"/v1/flags/f{i:02}", variants={"on": True, "off": False}, default="off")
        reply = await shop.call("POST", ALL, ADA)
        assert [flag["key"] for flag in reply.json["flags"]] == [f"f{i:02}" for i in range(20)]
        known = (LOCAL, (b"if-none-match", reply.headers["etag"].encode()))
        again = await shop.call("POST", ALL, ADA, known)
        assert (again.status, again.body) == (304, b"")
        await shop.put("/v1/flags/f03", variants={"on": True, "off": False}, default="on")
        changed = await shop.call("POST", ALL, ADA, known)
        assert changed.status == 200
        assert changed.json["flags"][3]["value"] is True


@asynchronous
async def test_a_public_key_evaluates_for_a_visitor_and_a_wrong_key_not_at_all(tmp_path: Path):
    async with new_shop_edge(tmp_path) as shop:
        await shop.put("/v1/flags/banner", **BANNER)
        reply = await shop.call("POST", ONE, ADA, key_header(shop.edge.keys.pk))
        # The key's own tenant has no such flag; that it was asked shows that the key may.
        assert reply.status == 404
        assert (await shop.call("POST", ONE, ADA, key_header("sk_wrong"))).status == 401


@pytest.mark.cluster
def test_the_openfeature_sdk_evaluates_flags_through_its_ofrep_provider(cluster: Cluster) -> None:
    key = new_tenant(cluster, "openfeature")
    with SyncClient(cluster.address, key) as client:
        client.put_document("flags", "banner", BANNER)
        numbers = {"variants": {"small": 3, "large": 9}, "default": "small"}
        client.put_document("flags", "results", numbers)
        layout = {"variants": {"a": 1, "b": 2}, "default": "a", "slots": ["top", "side"]}
        client.put_document("flags", "home", layout)
        client.put_document("flags", "beta", {"variants": {"on": True}, "default": "on"})
    provider = OFREPProvider(cluster.address, headers_factory=lambda: {"X-API-Key": key})
    api.set_provider(provider)
    try:
        sdk = api.get_client()
        ada = EvaluationContext("ada", {"device": "ios"})
        details = sdk.get_string_details("banner", "none", ada)
        assert (details.value, details.variant) == ("#00f", "blue")
        assert details.reason == Reason.TARGETING_MATCH
        assert details.flag_metadata["decisionId"]
        assert sdk.get_string_value("banner", "none", EvaluationContext("bob")) == "#f00"
        assert sdk.get_integer_value("results", 0, ada) == 3
        assert sdk.get_boolean_value("beta", False, ada) is True
        assert sdk.get_object_value("home", {}, ada) == {"top": 1, "side": 2}
        missing = sdk.get_string_details("none", "fallback", ada)
        assert (missing.value, missing.error_code) == ("fallback", ErrorCode.FLAG_NOT_FOUND)
        nobody = sdk.get_string_details("banner", "fallback", EvaluationContext())
        assert nobody.error_code == ErrorCode.TARGETING_KEY_MISSING
        wrong = sdk.get_integer_details("banner", 7, ada)
        assert (wrong.value, wrong.error_code) == (7, ErrorCode.TYPE_MISMATCH)
    finally:
        api.clear_providers()
