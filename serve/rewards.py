"""Treatment decisions over HTTP: rewards, activation, and what came of those that have closed."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec
from fastapi import Request

from actors.reward_ops import (
    PAGE_MAX,
    Activation,
    OutcomesPage,
    OutcomesRequest,
    RewardAnswer,
    RewardRequest,
)
from cluster.errors import RequestError
from cluster.frames import Op
from serve.auth import Caller
from serve.bodies import read_body
from serve.gateway import Gateway, decode
from serve.operation import Operation
from serve.problems import Answer

Work = Callable[[Gateway, Caller, Request], Awaitable[Answer]]
_DECISION_ID = re.compile("[0-9a-f]{32}")


async def post_reward(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    decision_id = _decision_id(request)
    body = await read_body(gateway, request)
    decode(body, RewardRequest)
    return await _ask(gateway, caller, Op.REWARD, decision_id, decision_id.encode() + body)


async def post_activation(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    decision_id = _decision_id(request)
    return await _ask(gateway, caller, Op.ACTIVATE, decision_id, decision_id.encode())


async def get_outcomes(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    shard_id = request.query_params.get("shard", "")
    shards = [owner.shard_id for owner in gateway.router.map.owners]
    if shard_id not in shards:
        raise RequestError(404, "no such shard", "shard", repr(shard_id), ", ".join(shards))
    try:
        after = int(request.query_params.get("after", "0"))
        count = int(request.query_params.get("count", str(PAGE_MAX)))
    except ValueError:
        raise RequestError(422, "a page is named by numbers", "after", "", "numbers") from None
    body = msgspec.json.encode(OutcomesRequest(after, count))
    decode(body, OutcomesRequest)
    status, content = await gateway.router.call_shard(shard_id, Op.OUTCOMES, body, caller.meta)
    return Answer(status, content)


async def _ask(gateway: Gateway, caller: Caller, op: Op, decision_id: str, body: bytes) -> Answer:
    # A repeat changes nothing, so it may be sent again after a broken connection.
    position = int(decision_id[:16], 16)
    return Answer(*await gateway.router.call(op, position, body, caller.meta, True))


def _decision_id(request: Request) -> str:
    decision_id: str = request.path_params["id"]
    if not _DECISION_ID.fullmatch(decision_id):
        wanted = "32 hexadecimal digits, lower case"
        raise RequestError(422, "no decision has such an id", "id", decision_id, wanted)
    return decision_id


REWARD_ROUTES: tuple[tuple[str, str, Work], ...] = (
    ("POST", "/v1/decisions/{id}/reward", post_reward),
    ("POST", "/v1/decisions/{id}/activate", post_activation),
    ("GET", "/v1/outcomes", get_outcomes),
)

REWARD_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "post",
        "/v1/decisions/{id}/reward",
        "What came of a treatment decision",
        RewardRequest,
        RewardAnswer,
    ),
    Operation(
        "post",
        "/v1/decisions/{id}/activate",
        "A decision was shown: its reward window begins",
        answer=Activation,
    ),
    Operation("get", "/v1/outcomes", "Closed treatment decisions of a shard", answer=OutcomesPage),
)
