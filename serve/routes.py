"""Everything HTTP as a FastAPI app: the hot paths once more, and all that is not hot.

Each handler takes the raw request, asks the `Gateway` and writes its answer; shapes are checked
by the types of actors/messages.py, not by FastAPI, so that both ways in say the same.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from actors.messages import Item
from cluster.errors import OnehopError, RequestError, Unavailable
from cluster.frames import Op
from cluster.keys import key_hash, place
from cluster.partition_map import Owner
from serve.auth import Caller
from serve.bodies import profile_id, read_body
from serve.contacts import CONTACT_ROUTES
from serve.documents import DOCUMENT_ROUTES
from serve.doors import Work as DoorWork
from serve.fast_lane import installed, respond
from serve.gateway import BATCH_ROUTE, FAST_ROUTES, Gateway, decode
from serve.metrics import alarms_of, exposition
from serve.ofrep import OFREP_ROUTES
from serve.openapi import Health, ImportRequest, ItemResult, ItemsAnswer, ItemsBatch, describe
from serve.personalizer import PERSONALIZER_ROUTES
from serve.policies import POLICY_ROUTES
from serve.problems import (
    JSON_TYPE,
    PROBLEM_TYPE,
    Answer,
    answer_of,
    http_problem,
)
from serve.reports import REPORT_ROUTES
from serve.reshapes import RESHAPE_ROUTES
from serve.rewards import REWARD_ROUTES
from serve.stream import STREAM_ROUTE, serve_stream

ITEM_ID_MAX = 256
# Shorter than the timeout of any SDK that waits for the answer.
MAP_WAIT_S = 1.0
# A probe must not wait for a shard that is slow.
ALARMS_S = 0.5
_DECISION_ID = re.compile("[0-9a-f]{32}")

Work = Callable[[Gateway, Caller, Request], Awaitable[Answer]]


def build_app() -> FastAPI:
    """The app; its gateway is the one installed in the event loop that serves a request."""
    app = FastAPI(title="onehop", docs_url=None, redoc_url=None, redirect_slashes=False)
    for path in (*FAST_ROUTES, BATCH_ROUTE):
        app.add_api_route(path, _hot, methods=["POST"])
        app.add_api_route(path, _hot, methods=["OPTIONS"])
    app.add_api_websocket_route(STREAM_ROUTE, _stream)
    for method, path, work in ROUTES:
        app.add_api_route(path, _endpoint(path, work), methods=_methods(method))
    for method, path, door in DOORS:
        app.add_api_route(path, _door(path, door), methods=_methods(method))
    app.add_api_route("/health/live", _live, methods=_methods("GET"))
    app.add_api_route("/health/ready", _ready, methods=_methods("GET"))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(OnehopError, _our_error)
    app.add_exception_handler(Exception, _our_error)
    describe(app)
    return app


async def get_profile(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return await _profile(gateway, caller, request, Op.PROFILE_GET)


async def delete_profile(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return await _profile(gateway, caller, request, Op.PROFILE_DELETE)


async def _profile(gateway: Gateway, caller: Caller, request: Request, op: Op) -> Answer:
    field, id_type, person_id = profile_id(request.path_params["id"])
    position = place(key_hash(caller.tenant, id_type, person_id))
    body = msgspec.json.encode({field: person_id})
    return Answer(*await gateway.router.call(op, position, body, caller.meta, True))


async def get_decision(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    decision_id: str = request.path_params["id"]
    if not _DECISION_ID.fullmatch(decision_id):
        wanted = "32 hexadecimal digits, lower case"
        raise RequestError(422, "no decision has such an id", "id", decision_id, wanted)
    position = int(decision_id[:16], 16)
    body = decision_id.encode()
    return Answer(*await gateway.router.call(Op.DECISION_GET, position, body, caller.meta, True))


async def put_item(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    item_id = _item_id(request)
    fields = decode(await read_body(gateway, request), dict[str, msgspec.Raw])
    inside = fields.setdefault("id", msgspec.Raw(msgspec.json.encode(item_id)))
    if (seen := decode(bytes(inside), str)) != item_id:
        raise RequestError(422, "the id differs from the path's", "id", seen, item_id)
    decode(msgspec.json.encode(fields), Item)
    results = await gateway.control.put_items(caller.tenant, msgspec.json.encode([fields]))
    (result,) = _results(results)
    return Answer(result.status, msgspec.json.encode(result.error or result))


async def put_items(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    batch: ItemsBatch = decode(await read_body(gateway, request), ItemsBatch)
    results = await gateway.control.put_items(caller.tenant, msgspec.json.encode(batch.items))
    return Answer(200, msgspec.json.encode(ItemsAnswer(_results(results))))


async def get_item(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    # The catalogue is whole on every shard, so any of them may answer.
    position = random.getrandbits(64)
    body = _item_id(request).encode()
    return Answer(*await gateway.router.call(Op.ITEM_GET, position, body, caller.meta, True))


async def delete_item(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    item_id = _item_id(request)
    (deleted,) = await gateway.control.delete_items(caller.tenant, [item_id])
    if not deleted:
        raise RequestError(404, "there is no such item", "id", item_id)
    return Answer(200, msgspec.json.encode({"id": item_id, "deleted": True}))


async def post_import(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    spec: ImportRequest = decode(await read_body(gateway, request), ImportRequest)
    if not (spec.events or spec.items or spec.profiles):
        raise RequestError(422, "there is nothing to import", wanted="events, items or profiles")
    return Answer(202, await gateway.control.start_import(caller.tenant, msgspec.json.encode(spec)))


async def get_import(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    import_id: str = request.path_params["id"]
    status = await gateway.control.import_status(caller.tenant, import_id)
    if status is None:
        raise RequestError(404, "there is no such import", "id", import_id)
    return Answer(200, status)


async def get_plan(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return Answer(200, await gateway.control.plan())


async def get_models(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return Answer(200, await gateway.control.model_versions(caller.tenant))


async def roll_back_model(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    name: str = request.path_params["name"]
    serving = await gateway.control.roll_back_model(caller.tenant, name)
    if serving is None:
        raise RequestError(404, "no such model version is saved", "name", repr(name))
    return Answer(200, msgspec.json.encode({"serving": serving}))


async def get_shards(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    newer_than = request.query_params.get("newerThan", "")
    if newer_than.isdecimal() and len(newer_than) < 19:
        # An SDK was told of a newer epoch, of which this gateway may not know either.
        await gateway.router.refresh(int(newer_than), MAP_WAIT_S)
    elif newer_than:
        raise RequestError(422, "the epoch is no number", "newerThan", newer_than, "an epoch")
    partition_map = gateway.router.map
    stats = await shard_stats(gateway)
    owners = [
        msgspec.to_builtins(owner) | {"stats": stats[owner.shard_id]}
        for owner in partition_map.owners
    ]
    # The tenant, since with it the SDK computes its people's places.
    answer = {"epoch": partition_map.epoch, "tenant": caller.tenant, "owners": owners}
    return Answer(200, msgspec.json.encode(answer))


async def get_metrics(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return Answer(200, exposition(gateway.counts, await shard_stats(gateway), gateway.gateway_id))


async def shard_stats(gateway: Gateway) -> dict[str, msgspec.Raw | None]:
    """Each shard's counters as it wrote them; None for one that can't be reached."""

    async def ask(owner: Owner) -> msgspec.Raw | None:
        try:
            status, body = await gateway.router.call_shard(owner.shard_id, Op.STATS)
        except Unavailable:
            return None
        return msgspec.Raw(body) if status == 200 else None

    owners = gateway.router.map.owners
    answers = await asyncio.gather(*map(ask, owners))
    return {owner.shard_id: stats for owner, stats in zip(owners, answers, strict=True)}


ROUTES: tuple[tuple[str, str, Work], ...] = (
    *CONTACT_ROUTES,
    *REWARD_ROUTES,
    ("GET", "/v1/profiles/{id:path}", get_profile),
    ("DELETE", "/v1/profiles/{id:path}", delete_profile),
    ("PUT", "/v1/items/{id:path}", put_item),
    ("GET", "/v1/items/{id:path}", get_item),
    ("DELETE", "/v1/items/{id:path}", delete_item),
    ("POST", "/v1/items:batch", put_items),
    ("GET", "/v1/decisions/{id}", get_decision),
    ("POST", "/v1/imports", post_import),
    ("GET", "/v1/imports/{id}", get_import),
    ("GET", "/v1/plan", get_plan),
    ("GET", "/v1/models", get_models),
    ("POST", "/v1/models/{name}:rollback", roll_back_model),
    ("GET", "/v1/shards", get_shards),
    ("GET", "/metrics", get_metrics),
    *REPORT_ROUTES,
    *POLICY_ROUTES,
    *RESHAPE_ROUTES,
    *DOCUMENT_ROUTES,
)


def check_path(request: Request) -> None:
    """Raises RequestError (400) if the path, unquoted, is not UTF-8: the server before us put
    replacement characters there, and with them another id."""
    raw: bytes = request.scope.get("raw_path", b"")
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        shown = raw.decode("latin-1")
        raise RequestError(400, "the path is not valid UTF-8", "id", shown, "UTF-8") from None


DOORS: tuple[tuple[str, str, DoorWork], ...] = (*OFREP_ROUTES, *PERSONALIZER_ROUTES)


def _methods(method: str) -> list[str]:
    return ["GET", "HEAD"] if method == "GET" else [method]


def _gateway() -> Gateway:
    gateway = installed()
    if gateway is None:
        raise Unavailable("the gateway is starting")
    return gateway


async def _hot(request: Request) -> Response:
    sent: dict[str, Any] = {}

    async def collect(message: Any) -> None:
        sent.update(message)

    await respond(_gateway(), request.scope, request.receive, collect)
    response = Response(sent.get("body", b""), sent.get("status", 400))
    response.raw_headers = list(sent.get("headers", ()))
    return response


async def _stream(websocket: WebSocket) -> None:
    await serve_stream(_gateway(), websocket.scope, websocket.receive, websocket.send)


def _endpoint(path: str, work: Work) -> Callable[[Request], Awaitable[Response]]:
    route = path.replace(":path}", "}")

    async def endpoint(request: Request) -> Response:
        gateway = _gateway()

        async def checked(caller: Caller) -> Answer:
            check_path(request)
            return await work(gateway, caller, request)

        name = f"{request.method} {route}"
        answer = await gateway.guarded(name, request.scope["headers"], checked)
        response = _response(answer)
        if path == "/metrics" and answer.status == 200:
            response.headers["content-type"] = "text/plain; version=0.0.4; charset=utf-8"
        return response

    endpoint.__name__ = work.__name__
    return endpoint


def _door(path: str, work: DoorWork) -> Callable[[Request], Awaitable[Response]]:
    route = path.replace(":path}", "}")

    async def endpoint(request: Request) -> Response:
        gateway = _gateway()
        answer = await work(gateway, request)
        gateway.count(f"{request.method} {route}", answer.status)
        response = Response(answer.body, answer.status)
        if answer.body and PROBLEM_TYPE not in answer.headers:
            response.raw_headers.append(JSON_TYPE)
        response.raw_headers += answer.headers
        return response

    endpoint.__name__ = work.__name__
    return endpoint


async def _live() -> Response:
    return Response(b'{"status":"live"}', media_type="application/json")


async def _ready() -> Response:
    if not _gateway().router.reachable:
        return _response(answer_of(Unavailable("not every shard can be reached")))
    health = Health("ready", await _alarms(_gateway()))
    return Response(msgspec.json.encode(health), media_type="application/json")


async def _alarms(gateway: Gateway) -> dict[str, list[str]]:
    """What ails each shard that answers quickly, if anything does."""
    try:
        async with asyncio.timeout(ALARMS_S):
            stats = await shard_stats(gateway)
    except TimeoutError:
        return {}
    found = {name: alarms_of(raw) for name, raw in stats.items() if raw is not None}
    return {name: alarms for name, alarms in found.items() if alarms}


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _response(http_problem(error.status_code, error.detail, request.url.path))
    response.headers.update(error.headers or {})
    return response


async def _validation_error(request: Request, error: Exception) -> Response:
    return _response(http_problem(422, "the request does not fit", str(error)))


async def _our_error(request: Request, error: Exception) -> Response:
    return _response(answer_of(error))


def _response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers += [
        JSON_TYPE if answer.status < 400 else PROBLEM_TYPE,
        *answer.headers,
    ]
    return response


def _item_id(request: Request) -> str:
    item_id: str = request.path_params["id"]
    if not 0 < len(item_id) <= ITEM_ID_MAX:
        raise RequestError(
            422, "the id is not usable", "id", item_id, f"1 to {ITEM_ID_MAX} characters"
        )
    return item_id


def _results(results: bytes) -> list[ItemResult]:
    """The coordinator's results; it leaves out a status of 200."""
    return [
        msgspec.convert({"status": 200} | result, ItemResult)
        for result in msgspec.json.decode(results, type=list[dict[str, Any]])
    ]
