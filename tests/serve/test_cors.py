from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cluster.access import read_keys
from cluster.errors import ConfigError
from serve.auth import generate_key, write_keys
from serve.fast_lane import PATHS
from tests.serve.edge import LOCAL, Headers, key_header, new_edge
from tests.serve.fake_owner import asynchronous

SHOP = "https://shop.example"
EVIL = "https://evil.example"
VISITOR = b'{"anonymousId":"v1"}'
OPENED = "access-control-allow-origin"


def from_page(origin: str, headers: Headers = (LOCAL,)) -> Headers:
    return (*headers, (b"origin", origin.encode()))


def asking(origin: str) -> Headers:
    """A browser's question before a POST with JSON and a key."""
    return (
        *from_page(origin),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"content-type,x-api-key"),
    )


@asynchronous
async def test_a_listed_page_is_told_yes_and_can_read_every_answer(tmp_path: Path):
    async with new_edge(tmp_path, origins=(SHOP,)) as edge:
        headers = from_page(SHOP, key_header(edge.keys.pk))
        for path in sorted(PATHS):
            for app in (edge.fast, edge.plain):
                asked = await edge.call("OPTIONS", path, b"", asking(SHOP), app)
                assert (asked.status, asked.body) == (204, b"")
                assert asked.headers[OPENED] == SHOP
                assert asked.headers["access-control-allow-methods"] == "POST"
                assert "x-api-key" in asked.headers["access-control-allow-headers"]
                assert "content-type" in asked.headers["access-control-allow-headers"]
                body = VISITOR
                if path == "/v1/batch":
                    body = msgspec.json.encode({"batch": [{"type": "page", "anonymousId": "v1"}]})
                for sent, status in ((body, 200), (b"{", 400)):
                    reply = await edge.post(path, sent, headers, app)
                    assert (reply.status, reply.headers[OPENED]) == (status, SHOP)
                    assert reply.headers["vary"] == "Origin"


@asynchronous
async def test_no_page_may_do_anything_unless_a_key_lists_it(tmp_path: Path):
    for origins, page in (
        ((), SHOP),
        ((SHOP,), EVIL),
        ((SHOP,), f"{SHOP}:8443"),
        ((SHOP,), "null"),
    ):
        async with new_edge(tmp_path, origins=origins) as edge:
            for app in (edge.fast, edge.plain):
                asked = await edge.call("OPTIONS", "/v1/track", b"", asking(page), app)
                headers = from_page(page, key_header(edge.keys.pk))
                told = await edge.post("/v1/track", VISITOR, headers, app)
                for reply in (asked, told):
                    assert (reply.status, reply.json["field"]) == (403, "Origin")
                    assert OPENED not in reply.headers
            assert not edge.owner.requests


@asynchronous
async def test_a_key_is_held_against_its_own_list_and_not_anothers(tmp_path: Path):
    async with new_edge(tmp_path, origins=(SHOP,)) as edge:
        path = tmp_path / "keys.json"
        other, stored = generate_key("pk", "other", 0, origins=(EVIL,))
        write_keys(path, [*read_keys(path), stored])
        edge.gateway.keys._checked_at = 0.0
        refused = await edge.post("/v1/track", VISITOR, from_page(EVIL, key_header(edge.keys.pk)))
        assert refused.status == 403
        served = await edge.post("/v1/track", VISITOR, from_page(EVIL, key_header(other)))
        assert served.json["meta"] == "p:other"


@asynchronous
async def test_a_star_lets_every_page_in(tmp_path: Path):
    async with new_edge(tmp_path, origins=("*",)) as edge:
        assert (await edge.call("OPTIONS", "/v1/track", b"", asking(EVIL))).status == 204
        headers = from_page(EVIL, key_header(edge.keys.pk))
        assert (await edge.post("/v1/track", VISITOR, headers)).headers[OPENED] == EVIL


@asynchronous
async def test_who_is_no_page_needs_no_origin(tmp_path: Path):
    async with new_edge(tmp_path, origins=(SHOP,)) as edge:
        reply = await edge.post("/v1/track", VISITOR, key_header(edge.keys.pk))
        assert reply.status == 200
        assert set(reply.headers) == {"content-type", "content-length"}


@asynchronous
async def test_an_open_key_opens_nothing_to_who_has_no_key(tmp_path: Path):
    async with new_edge(tmp_path, origins=("*",)) as edge:
        assert (await edge.post("/v1/track", VISITOR, from_page(EVIL))).status == 403
        assert not edge.owner.requests


@asynchronous
async def test_routes_that_are_not_for_browsers_answer_no_preflight(tmp_path: Path):
    async with new_edge(tmp_path, origins=("*",)) as edge:
        for path in ("/v1/profiles/ada", "/v1/items:batch", "/v1/shards", "/v1/imports"):
            reply = await edge.call("OPTIONS", path, b"", asking(SHOP))
            assert reply.status == 405
            assert OPENED not in reply.headers


@asynchronous
async def test_options_from_no_page_names_the_methods(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        reply = await edge.call("OPTIONS", "/v1/decide")
        assert (reply.status, reply.headers) == (204, {"allow": "POST, OPTIONS"})


@pytest.mark.parametrize(
    "origin",
    ["shop.example", "https://shop.example/", "https://Shop.example", "https://", "", "**"],
)
def test_an_origin_that_no_browser_sends_is_refused_in_the_file(tmp_path: Path, origin: str):
    stored = generate_key("pk", "shop", 0, origins=(origin,))[1]
    write_keys(tmp_path / "keys.json", [stored])
    with pytest.raises(ConfigError, match="origins"):
        read_keys(tmp_path / "keys.json")


def test_a_server_key_has_no_origins(tmp_path: Path):
    write_keys(tmp_path / "keys.json", [generate_key("sk", "shop", 0, origins=(SHOP,))[1]])
    with pytest.raises(ConfigError, match="origins are for pk_ keys"):
        read_keys(tmp_path / "keys.json")
