"""The one OpenAPI 3.1 document, and the types that only the edge knows.

Built from the message types themselves, so that it can't say anything else than the decoders.
The table OPERATIONS names every route; a test holds it against the app's.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI
from msgspec import Meta

from actors.decisions import DecideAnswer, DecideRequest, Decision
from actors.messages import (
    BATCH_MAX,
    IdentifyRequest,
    Item,
    Name,
    PageRequest,
    Problem,
    Strict,
    TrackAnswer,
    TrackRequest,
    Wire,
)
from serve.contacts import CONTACT_OPERATIONS
from serve.documents import DOCUMENT_OPERATIONS
from serve.ofrep import OFREP_OPERATIONS
from serve.operation import Operation
from serve.personalizer import PERSONALIZER_OPERATIONS
from serve.policies import POLICY_OPERATIONS
from serve.reports import REPORT_OPERATIONS
from serve.reshapes import RESHAPE_OPERATIONS
from serve.rewards import REWARD_OPERATIONS

VERSION = "0.1.0"
Path4096 = Annotated[str, Meta(min_length=1, max_length=4096)]


class ImportRequest(Strict):
    """`POST /v1/imports`: Parquet files or folders that the server can read, at least one.

    mapping       field -> column, where a column is named otherwise
    strict_items  refuse events on unknown items instead of adding the items
    dry_run       check and count everything, change nothing
    """

    events: Path4096 | None = None
    items: Path4096 | None = None
    profiles: Path4096 | None = None
    mapping: Annotated[dict[Name, Name], Meta(max_length=64)] = msgspec.field(default_factory=dict)
    strict_items: bool = False
    dry_run: bool = False


class ItemsBatch(Strict):
    """`POST /v1/items:batch` as it is read: each item is checked and answered on its own."""

    items: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=BATCH_MAX)]


class DecideMessage(DecideRequest, kw_only=True):
    """A decide call inside a batch."""

    type: Literal["decide"]


class TrackMessage(TrackRequest, kw_only=True):
    """A track call inside a batch."""

    type: Literal["track"]


class IdentifyMessage(IdentifyRequest, kw_only=True):
    """An identify call inside a batch."""

    type: Literal["identify"]


class PageMessage(PageRequest, kw_only=True):
    """A page call inside a batch."""

    type: Literal["page"]


BATCH_MESSAGES = (DecideMessage, TrackMessage, IdentifyMessage, PageMessage)


class ItemsRequest(Strict):
    """`POST /v1/items:batch`."""

    items: Annotated[list[Item], Meta(min_length=1, max_length=BATCH_MAX)]


class BatchResult(Wire):
    """One message's outcome: `answer` below status 400, else `problem`."""

    status: int
    answer: dict[str, Any] | None = None
    problem: Problem | None = None


class BatchAnswer(Wire):
    """The answer to `POST /v1/batch`, in the order of the messages."""

    results: list[BatchResult]


class ItemResult(Wire):
    """One item's outcome."""

    id: str
    status: int
    error: Problem | None = None


class ItemsAnswer(Wire):
    """The answer to `POST /v1/items:batch`, in the order of the items."""

    results: list[ItemResult]


class ItemDeleted(Wire):
    """The answer to `DELETE /v1/items/{id}`: every shard has taken the item down."""

    id: Name
    deleted: bool


class ShardAnswer(Wire):
    """One shard: its range (hexadecimal text), where it listens, and its counters."""

    shard_id: str
    host: str
    port: int
    start: str
    stop: str
    node_id: str
    stats: dict[str, Any] | None


class ShardsAnswer(Wire):
    """The answer to `GET /v1/shards`: the partition map, and the tenant of the caller's key."""

    epoch: int
    tenant: str
    owners: list[ShardAnswer]


class Health(Wire):
    """alarms by shard: "memory 70 %", "memory 90 %", "disk full", "overloaded"."""

    status: Literal["live", "ready"]
    alarms: dict[str, list[str]] = {}


ANY_KEY = ("pk_", "sk_")
_PARAMETER = re.compile(r"{(\w+)}")

OPERATIONS = (
    Operation(
        "post", "/v1/decide", "Events in, decisions out", DecideRequest, DecideAnswer, keys=ANY_KEY
    ),
    Operation("post", "/v1/track", "One event", TrackRequest, TrackAnswer, keys=ANY_KEY),
    Operation(
        "post", "/v1/identify", "Traits of a person", IdentifyRequest, TrackAnswer, keys=ANY_KEY
    ),
    Operation("post", "/v1/page", "A page was viewed", PageRequest, TrackAnswer, keys=ANY_KEY),
    Operation("post", "/v1/batch", "Up to 500 messages", BATCH_MESSAGES, BatchAnswer, keys=ANY_KEY),
    Operation("get", "/v1/profiles/{id}", "What is known of a person"),
    Operation("delete", "/v1/profiles/{id}", "Forget a person"),
    Operation("put", "/v1/items/{id}", "Add or replace an item", Item, ItemResult),
    Operation("get", "/v1/items/{id}", "One item", answer=Item),
    Operation("delete", "/v1/items/{id}", "Take an item down everywhere", answer=ItemDeleted),
    Operation("post", "/v1/items:batch", "Up to 500 items", ItemsRequest, ItemsAnswer),
    Operation("get", "/v1/decisions/{id}", "Why this decision", answer=Decision),
    Operation("post", "/v1/imports", "Load Parquet files", ImportRequest, status=202),
    Operation("get", "/v1/imports/{id}", "How far an import is"),
    Operation("get", "/v1/plan", "Loads of all shards, and what to split, merge or move for them"),
    Operation("get", "/v1/models", "The model that serves, and the saved versions"),
    Operation("post", "/v1/models/{name}:rollback", "Serve a saved version again"),
    Operation("get", "/v1/shards", "The partition map, with counters", answer=ShardsAnswer),
    Operation("get", "/health/live", "The process runs", answer=Health, keys=()),
    Operation("get", "/health/ready", "All shards can be reached", answer=Health, keys=()),
    Operation("get", "/metrics", "Counters for Prometheus", answer=str, media="text/plain"),
    *CONTACT_OPERATIONS,
    *REWARD_OPERATIONS,
    *DOCUMENT_OPERATIONS,
    *REPORT_OPERATIONS,
    *POLICY_OPERATIONS,
    *RESHAPE_OPERATIONS,
    *OFREP_OPERATIONS,
    *PERSONALIZER_OPERATIONS,
)

STREAM_TEXT = (
    "`GET /v1/stream` upgrades to a WebSocket that carries the messages of decide, track, "
    'identify and page, pipelined. Send one JSON object, or an array of them, each with "type" '
    'and an "id" of your choice; every message back is an array of '
    '`{"id", "status", "answer" or "problem"}` in the order in which they became ready. '
    'With "subscribe" messages for the person come too, as `{"type": "message", "message": '
    'CloudEvent}`, until `{"type": "acknowledge", "messages": [ids]}`. '
    'Key: X-API-Key header, or subprotocols `["onehop", "<key>"]`, or first message '
    '`{"apiKey": "<key>"}`.'
)


def describe(app: FastAPI) -> None:
    """Let the app serve this document as /openapi.json."""
    app.openapi = document  # type: ignore[method-assign]


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document, as plain JSON types."""
    types = {Problem}
    for operation in OPERATIONS:
        request = operation.request
        types |= set(request) if isinstance(request, tuple) else {request}
        types |= {operation.answer, operation.failure}
    types -= {None, str}
    ordered = sorted(types, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(
        ordered, ref_template="#/components/schemas/{name}"
    )
    for schema in components.values():
        _require_person(schema)
    refs = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, refs)
    described = {
        "openapi": "3.1.0",
        "info": {
            "title": "onehop",
            "version": VERSION,
            "description": STREAM_TEXT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }
    # A default may be a tuple, which JSON does not have.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(described))
    return plain


def _operation(operation: Operation, refs: dict[Any, Any]) -> dict[str, Any]:
    method, path = operation.method, operation.path
    words = path.replace("/", " ").replace(":", " ").replace("{", "by ").replace("}", "").split()
    answer = {str: {"type": "string"}, None: {"type": "object"}} | refs
    described: dict[str, Any] = {
        "operationId": "_".join((method, *words)),
        "summary": operation.summary,
        "responses": {
            str(operation.status): {"description": "It worked"}
            if operation.status == 204
            else _content("It worked", answer[operation.answer], operation.media),
            "4XX": _failures(operation, refs),
            "5XX": _content("Retry later", refs[Problem], "application/problem+json"),
        },
    }
    if operation.keys:
        described["security"] = [{"apiKey": []}, {"bearer": []}, {}]
        described["description"] = f"Keys: {' or '.join(operation.keys)}."
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": 256},
        }
        for name in _PARAMETER.findall(path)
    ] + [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
        for name, kind in operation.query
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.request is not None:
        schema = refs[operation.request] if operation.request in refs else _batch_schema(refs)
        described["requestBody"] = _content("", schema, "application/json") | {"required": True}
    return described


def _failures(operation: Operation, refs: dict[Any, Any]) -> dict[str, Any]:
    failed = _content("The caller's mistake", refs[Problem], "application/problem+json")
    if operation.failure is not None:
        failed["content"]["application/json"] = {"schema": refs[operation.failure]}
    return failed


def _content(description: str, schema: Any, media: str) -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": schema}}}


def _batch_schema(refs: dict[Any, Any]) -> dict[str, Any]:
    messages = {"anyOf": [refs[kind] for kind in BATCH_MESSAGES]}
    batch = {"type": "array", "minItems": 1, "maxItems": BATCH_MAX, "items": messages}
    return {"type": "object", "properties": {"batch": batch}, "required": ["batch"]}


def _require_person(schema: dict[str, Any]) -> None:
    """Say in the schema of a message that it must name a person."""
    if "anonymousId" in schema.get("properties", {}):
        one_id = {"type": "string", "minLength": 1}
        schema["anyOf"] = [
            {"required": [name], "properties": {name: one_id}} for name in ("userId", "anonymousId")
        ]
