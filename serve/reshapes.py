"""Ranges are split, moved and merged, and nodes emptied: what operators ask of a running fleet.

Each call starts something and answers at once; `/v1/reshapes` and `/v1/nodes` tell how far it is.
A node may be named by Ray's id, by the beginning of that, or by its address.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Request
from msgspec import Meta

from actors.messages import Strict, Wire
from cluster.errors import RequestError
from serve.auth import Caller
from serve.bodies import read_body
from serve.gateway import Gateway, decode
from serve.operation import Operation
from serve.problems import Answer

Work = Callable[[Gateway, Caller, Request], Awaitable[Answer]]
Cut = Annotated[str, Meta(pattern="^[0-9a-f]{1,16}$")]
NodeName = Annotated[str, Meta(min_length=1, max_length=256)]
ShardName = Annotated[str, Meta(min_length=1, max_length=64)]

PREFIX_MIN = 6
"""Digits of a node's id that name it, if no other begins so."""


class SplitRequest(Strict):
    """`POST /v1/shards/{id}:split`.

    at        where to cut, hexadecimal and ascending; without it where half of the load lies, or
              in the middle while nothing is known of the load
    node_ids  where the parts go, one per part; without it what the fleet's load says
    """

    at: Annotated[list[Cut], Meta(max_length=63)] = []
    node_ids: Annotated[list[NodeName], Meta(max_length=64)] = []


class MoveRequest(Strict):
    """`POST /v1/shards/{id}:move`. Without a node, to the one with the least load."""

    node_id: NodeName | None = None


class MergeRequest(Strict):
    """`POST /v1/shards:merge`: shards that lie side by side become one."""

    shards: Annotated[list[ShardName], Meta(min_length=2, max_length=64)]
    node_id: NodeName | None = None


class ReshapeTarget(Wire):
    """A shard that is to be: its range as hexadecimal text."""

    shard_id: str
    start: str
    stop: str
    node_id: str


class ReshapeAnswer(Wire):
    """A reshape, under way or ended.

    step            "done" and "aborted" are the last ones; `reason` says why it was aborted
    frozen_seconds  how long requests were held, not failed
    """

    id: str
    kind: Literal["split", "move", "merge", "shift"]
    sources: list[str]
    targets: list[ReshapeTarget]
    step: str
    reason: str
    started_at: float
    seconds: float
    frozen_seconds: float


class ReshapesAnswer(Wire):
    """The answer to `GET /v1/reshapes`: those under way, and the last 100."""

    reshapes: list[ReshapeAnswer]


class NodeAnswer(Wire):
    """A node that may have shards.

    draining     nothing is placed there any more, and what is there leaves
    shards_left  what keeps a draining node; at 0 and 0 it may go
    """

    node_id: str
    address: str
    cpus: float
    memory_bytes: int
    shards: list[str]
    copies: list[str]
    draining: bool = False
    shards_left: int = 0
    copies_left: int = 0


class NodesAnswer(Wire):
    """The answer to `GET /v1/nodes`."""

    nodes: list[NodeAnswer]


async def split_shard(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    asked: SplitRequest = await _body(gateway, request, SplitRequest)
    parts = len(asked.at) + 1 if asked.at else 2
    if asked.node_ids and len(asked.node_ids) != parts:
        raise RequestError(
            422, "there is not one node per part", "nodeIds", f"{len(asked.node_ids)}", f"{parts}"
        )
    return await _reshape(gateway, "split", [request.path_params["id"]], asked.node_ids, asked.at)


async def move_shard(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    asked: MoveRequest = await _body(gateway, request, MoveRequest)
    nodes = [asked.node_id] if asked.node_id else []
    return await _reshape(gateway, "move", [request.path_params["id"]], nodes)


async def merge_shards(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    asked: MergeRequest = await _body(gateway, request, MergeRequest)
    return await _reshape(gateway, "merge", asked.shards, [asked.node_id] if asked.node_id else [])


async def get_reshapes(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return Answer(200, _listed("reshapes", await gateway.control.reshapes()))


async def get_reshape(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    wanted: str = request.path_params["id"]
    for reshape in msgspec.json.decode(await gateway.control.reshapes()):
        if reshape["id"] == wanted:
            return Answer(200, msgspec.json.encode(reshape))
    raise RequestError(404, "there is no such reshape", "id", wanted)


async def abort_reshape(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    wanted: str = request.path_params["id"]
    aborted = await gateway.control.abort_reshape(wanted)
    if aborted is None:
        raise RequestError(404, "there is no such reshape", "id", wanted)
    return Answer(202, aborted)


async def get_nodes(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return Answer(200, _listed("nodes", await gateway.control.nodes()))


async def drain_node(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    (node_id,) = await _node_ids(gateway, [request.path_params["id"]], "id")
    return Answer(202, _listed("reshapes", await gateway.control.drain(node_id)))


async def undrain_node(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    (node_id,) = await _node_ids(gateway, [request.path_params["id"]], "id")
    await gateway.control.undrain(node_id)
    return Answer(200, msgspec.json.encode({"nodeId": node_id, "draining": False}))


def find_node(nodes: Sequence[NodeAnswer], name: str, field: str) -> str:
    """The id of the node with this id, beginning of an id, or address. Raises RequestError.

    >>> find_node([NodeAnswer("ab12cd34", "10.0.0.1", 4, 0, [], [])], "ab12cd", "id")
    'ab12cd34'
    """
    found = [node.node_id for node in nodes if name in (node.node_id, node.address)]
    if not found and len(name) >= PREFIX_MIN:
        found = [node.node_id for node in nodes if node.node_id.startswith(name)]
    if len(found) > 1:
        raise RequestError(409, "more than one node is called so", field, name, "a node's id")
    if not found:
        known = ", ".join(node.node_id[:12] for node in nodes[:8])
        raise RequestError(404, "there is no such node", field, name, f"one of {known}")
    return found[0]


async def _reshape(
    gateway: Gateway, kind: str, shards: list[str], nodes: list[str], cuts: Sequence[str] = ()
) -> Answer:
    wish: dict[str, Any] = {"kind": kind, "shards": shards}
    if cuts:
        wish["at"] = list(cuts)
    if nodes:
        field = "nodeIds" if kind == "split" else "nodeId"
        wish["nodeIds"] = await _node_ids(gateway, nodes, field)
    return Answer(202, await gateway.control.reshape(msgspec.json.encode(wish)))


async def _node_ids(gateway: Gateway, names: list[str], field: str) -> list[str]:
    nodes = msgspec.json.decode(await gateway.control.nodes(), type=list[NodeAnswer])
    return [find_node(nodes, name, field) for name in names]


async def _body(gateway: Gateway, request: Request, wanted: Any) -> Any:
    """The body as `wanted`; none at all is an empty object."""
    return decode(await read_body(gateway, request) or b"{}", wanted)


def _listed(name: str, items: bytes) -> bytes:
    return b'{"%b":%b}' % (name.encode(), items)


RESHAPE_ROUTES: tuple[tuple[str, str, Work], ...] = (
    ("POST", "/v1/shards/{id}:split", split_shard),
    ("POST", "/v1/shards/{id}:move", move_shard),
    ("POST", "/v1/shards:merge", merge_shards),
    ("GET", "/v1/reshapes", get_reshapes),
    ("GET", "/v1/reshapes/{id}", get_reshape),
    ("DELETE", "/v1/reshapes/{id}", abort_reshape),
    ("GET", "/v1/nodes", get_nodes),
    ("POST", "/v1/nodes/{id}:drain", drain_node),
    ("POST", "/v1/nodes/{id}:undrain", undrain_node),
)

RESHAPE_OPERATIONS = (
    Operation(
        "post",
        "/v1/shards/{id}:split",
        "Divide a shard's keys among new shards, while it serves",
        SplitRequest,
        ReshapeAnswer,
        202,
    ),
    Operation(
        "post",
        "/v1/shards/{id}:move",
        "Move a shard to another node, while it serves",
        MoveRequest,
        ReshapeAnswer,
        202,
    ),
    Operation(
        "post",
        "/v1/shards:merge",
        "Make one shard of several side by side, while they serve",
        MergeRequest,
        ReshapeAnswer,
        202,
    ),
    Operation("get", "/v1/reshapes", "Reshapes under way, and the last", answer=ReshapesAnswer),
    Operation("get", "/v1/reshapes/{id}", "How far a reshape is", answer=ReshapeAnswer),
    Operation(
        "delete",
        "/v1/reshapes/{id}",
        "Leave everything as it was, unless it is decided already",
        answer=ReshapeAnswer,
        status=202,
    ),
    Operation("get", "/v1/nodes", "Nodes, and what is on them", answer=NodesAnswer),
    Operation(
        "post",
        "/v1/nodes/{id}:drain",
        "Move everything off a node, and place nothing there",
        answer=ReshapesAnswer,
        status=202,
    ),
    Operation("post", "/v1/nodes/{id}:undrain", "Let a node have shards again"),
)
