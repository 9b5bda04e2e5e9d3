from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from starlette.routing import Route

from actors.decisions import DecideRequest
from serve.openapi import document
from serve.routes import build_app
from tests.serve.edge import new_edge
from tests.serve.fake_owner import asynchronous

UNDOCUMENTED = {"/openapi.json"}


def test_the_document_names_exactly_the_apps_routes():
    routes = {
        (method.lower(), route.path.replace(":path}", "}"))
        for route in build_app().routes
        if isinstance(route, Route) and route.path not in UNDOCUMENTED
        for method in route.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    described = {(method, path) for path, ops in document()["paths"].items() for method in ops}
    assert described == routes


def test_every_reference_leads_somewhere():
    text = msgspec.json.encode(document()).decode()
    schemas = document()["components"]["schemas"]
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.partition('"')[0] in schemas


def test_every_parameter_of_a_path_is_described():
    for path, operations in document()["paths"].items():
        named = [part.partition("}")[0] for part in path.split("{")[1:]]
        for operation in operations.values():
            described = operation.get("parameters", [])
            assert [(p["name"], p["in"]) for p in described if p["in"] != "query"] == [
                (n, "path") for n in named
            ]


def test_operation_ids_are_unique():
    ids = [op["operationId"] for ops in document()["paths"].values() for op in ops.values()]
    assert len(ids) == len(set(ids))


def test_the_schema_of_decide_is_the_decoders():
    schema: dict[str, Any] = document()["components"]["schemas"]["DecideRequest"]
    assert set(schema["properties"]) == {
        field.encode_name for field in msgspec.structs.fields(DecideRequest)
    }
    assert schema["additionalProperties"] is False


def test_the_document_is_valid_openapi():
    """Checked by schemathesis' own reader, which also resolves the references."""
    import schemathesis

    loaded = schemathesis.openapi.from_dict(document())
    operations: Any = loaded.get_all_operations()
    assert all(type(found).__name__ == "Ok" for found in operations)


@asynchronous
async def test_the_document_is_served(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        reply = await edge.call("GET", "/openapi.json")
        assert reply.status == 200
        assert reply.json["openapi"] == "3.1.0"
        assert reply.json == document()
