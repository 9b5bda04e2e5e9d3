"""Documents over HTTP: JSON and YAML, versions, dry run, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import RequestError
from serve.yaml_input import yaml_to_json
from tests.serve.edge import LOCAL, new_edge
from tests.serve.fake_owner import asynchronous

YAML = (LOCAL, (b"content-type", b"application/yaml; charset=utf-8"))
HOLDOUT = "/v1/holdouts/spring"


@asynchronous
async def test_a_document_is_put_in_json_or_yaml_and_read_back(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        put = await edge.call("PUT", HOLDOUT, b'{"percent": 5}')
        assert (put.status, put.json["version"], put.headers["etag"]) == (200, 1, '"1"')
        again = await edge.call("PUT", HOLDOUT, b"percent: 7\nsurfaces: [product]\n", YAML)
        assert (again.status, again.json["version"]) == (200, 2)
        got = await edge.call("GET", HOLDOUT)
        assert got.json["document"] == {"percent": 7.0, "surfaces": ["product"]}
        assert got.headers["etag"] == '"2"'
        first = await edge.call("GET", HOLDOUT, query=b"version=1")
        assert first.json["document"] == {"percent": 5.0}
        listed = await edge.call("GET", "/v1/holdouts")
        assert [one["id"] for one in listed.json["documents"]] == ["spring"]
        gone = await edge.call("DELETE", HOLDOUT)
        assert gone.json == {"id": "spring", "kind": "holdouts", "version": 3, "deleted": True}
        assert (await edge.call("GET", HOLDOUT)).status == 404
        assert (await edge.call("DELETE", HOLDOUT)).status == 404


@asynchronous
async def test_a_dry_run_answers_with_the_changes_and_makes_none(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        await edge.call("PUT", HOLDOUT, b'{"percent": 5}')
        dry = await edge.call("PUT", HOLDOUT, b'{"percent": 9}', query=b"dryRun=true")
        assert dry.json["dryRun"] is True
        assert dry.json["changes"] == [{"field": "percent", "before": 5.0, "after": 9.0}]
        assert (await edge.call("GET", HOLDOUT)).json["version"] == 1


@pytest.mark.parametrize(
    ("body", "headers", "query", "status", "field"),
    [
        (b'{"percent": 51}', (LOCAL,), b"", 422, "percent"),
        (b'{"percent": 5, "surfaces": ["tv"]}', (LOCAL,), b"", 422, "surfaces[0]"),
        (b"percent: five", YAML, b"", 422, "percent"),
        (b"percent: [5", YAML, b"", 400, ""),
        (b"a: &a [1]\nb: *a", YAML, b"", 400, ""),
        (b'{"percent": 5}', (LOCAL, (b"if-match", b'"4"')), b"", 412, "If-Match"),
        (b'{"percent": 5}', (LOCAL, (b"if-match", b"new")), b"", 422, "If-Match"),
        (b'{"percent": 5}', (LOCAL,), b"dryRun=yes", 422, "dryRun"),
    ],
)
def test_what_can_not_be_used_is_refused_by_field(
    tmp_path: Path,
    body: bytes,
    headers: tuple[tuple[bytes, bytes], ...],
    query: bytes,
    status: int,
    field: str,
):
    @asynchronous
    async def act() -> None:
        async with new_edge(tmp_path) as edge:
            reply = await edge.call("PUT", HOLDOUT, body, headers, query=query)
            assert (reply.status, reply.json.get("field", "")) == (status, field)
            assert (await edge.call("GET", HOLDOUT)).status == 404

    act()


@pytest.mark.parametrize(
    "text",
    [b"!!python/object:os.system {}", b"? [1]\n: 2", b"\x00", b"- " * 5000, b"a: 2026-99-99"],
)
def test_yaml_that_json_can_not_say_is_refused(text: bytes):
    with pytest.raises(RequestError):
        yaml_to_json(text)
