"""`/v1/{kind}` and `/v1/{kind}/{id}`: documents put, read and deleted, as JSON or YAML."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec
from fastapi import Request

from actors.document_desk import DocumentAnswer, DocumentDeleted, DocumentsAnswer
from actors.kinds import KINDS
from cluster.errors import RequestError
from serve.auth import Caller
from serve.bodies import read_body
from serve.gateway import Gateway
from serve.operation import Operation
from serve.problems import Answer
from serve.yaml_input import YAML_TYPES, yaml_to_json

Work = Callable[[Gateway, Caller, Request], Awaitable[Answer]]

_VERSION = re.compile(r'"?(0|[1-9][0-9]{0,8})"?')


async def put_document(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    """The document is checked, and with `?dryRun=true` that is all."""
    kind, document_id = kind_of(request), request.path_params["id"]
    body = await read_body(gateway, request)
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = yaml_to_json(body) if media in YAML_TYPES else body
    dry_run = flag_of(request, "dryRun")
    return answer_of_document(
        await gateway.control.put_document(
            caller.tenant, kind, document_id, content, _expected(request), dry_run
        )
    )


async def get_document(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    kind, document_id = kind_of(request), request.path_params["id"]
    version = _version(request.query_params.get("version"), "version")
    return answer_of_document(
        await gateway.control.get_document(caller.tenant, kind, document_id, version)
    )


async def delete_document(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    kind, document_id = kind_of(request), request.path_params["id"]
    return Answer(
        200,
        await gateway.control.delete_document(caller.tenant, kind, document_id, _expected(request)),
    )


async def list_documents(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return Answer(200, await gateway.control.list_documents(caller.tenant, kind_of(request)))


def kind_of(request: Request) -> str:
    """The kind that a route names: the second part of its path."""
    path: str = request.scope["route"].path
    return path.split("/")[2]


def answer_of_document(document: bytes) -> Answer:
    """A DocumentAnswer, its version as the ETag."""
    version = msgspec.json.decode(document, type=DocumentAnswer).version
    return Answer(200, document, ((b"etag", b'"%d"' % version),))


def _expected(request: Request) -> int | None:
    return _version(request.headers.get("if-match"), "If-Match")


def _version(text: str | None, field: str) -> int | None:
    if text is None or text == "*":
        return None
    found = _VERSION.fullmatch(text)
    if found is None:
        raise RequestError(422, "this is no version", field, text, "a version, as 3")
    return int(found[1])


def flag_of(request: Request, name: str) -> bool:
    """A parameter of the query that is true or false, and false without being named."""
    text = request.query_params.get(name, "false")
    if text not in ("true", "false"):
        raise RequestError(422, "a flag is true or false", name, text, "true or false")
    return text == "true"


DOCUMENT_ROUTES: tuple[tuple[str, str, Work], ...] = tuple(
    (method, f"/v1/{kind.name}{rest}", work)
    for kind in KINDS
    for method, rest, work in (
        ("PUT", "/{id}", put_document),
        ("GET", "/{id}", get_document),
        ("DELETE", "/{id}", delete_document),
        ("GET", "", list_documents),
    )
)

DOCUMENT_OPERATIONS: tuple[Operation, ...] = tuple(
    operation
    for kind in KINDS
    for operation in (
        Operation(
            "put",
            f"/v1/{kind.name}/{{id}}",
            f"Put one of {kind.name}; `?dryRun=true` only checks it",
            kind.type,
            DocumentAnswer,
            query=(("dryRun", "boolean"),),
        ),
        Operation(
            "get",
            f"/v1/{kind.name}/{{id}}",
            f"One of {kind.name}",
            answer=DocumentAnswer,
            query=(("version", "integer"),),
        ),
        Operation(
            "delete",
            f"/v1/{kind.name}/{{id}}",
            f"Delete one of {kind.name}",
            answer=DocumentDeleted,
        ),
        Operation("get", f"/v1/{kind.name}", f"All {kind.name}", answer=DocumentsAnswer),
    )
)
