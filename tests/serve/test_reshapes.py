"""Doors for splits, moves, merges and drains: what reaches the coordinator, what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from serve.openapi import OPERATIONS
from serve.reshapes import NodeAnswer, NodesAnswer, ReshapeAnswer, ReshapesAnswer, find_node
from tests.serve.edge import key_header, new_edge
from tests.serve.fake_fleet import FIRST, SECOND
from tests.serve.fake_owner import asynchronous

DOORS = [
    ("POST", "/v1/shards/0:split", b""),
    ("POST", "/v1/shards/0:split", b'{"at":["8"],"nodeIds":["%b","10.0.0.1"]}' % FIRST.encode()),
    ("POST", "/v1/shards/0:move", b'{"nodeId":"b2b2b2"}'),
    ("POST", "/v1/shards/1:move", b"{}"),
    ("POST", "/v1/shards:merge", b'{"shards":["0","1"]}'),
]
WISHES = [
    {"kind": "split", "shards": ["0"]},
    {"kind": "split", "shards": ["0"], "at": ["8"], "nodeIds": [FIRST, SECOND]},
    {"kind": "move", "shards": ["0"], "nodeIds": [SECOND]},
    {"kind": "move", "shards": ["1"]},
    {"kind": "merge", "shards": ["0", "1"]},
]


@asynchronous
async def test_each_door_hands_its_wish_to_the_coordinator_and_answers_what_has_begun(
    tmp_path: Path,
):
    async with new_edge(tmp_path) as edge:
        for number, (method, path, body) in enumerate(DOORS):
            reply = await edge.call(method, path, body)
            assert reply.status == 202, reply
            begun = msgspec.json.decode(reply.body, type=ReshapeAnswer)
            assert (begun.id, begun.kind) == (f"r{number}", WISHES[number]["kind"])
        assert edge.control.fleet.wishes == WISHES
        listed = await edge.call("GET", "/v1/reshapes")
        assert len(msgspec.json.decode(listed.body, type=ReshapesAnswer).reshapes) == len(DOORS)
        assert (await edge.call("GET", "/v1/reshapes/r1")).json["id"] == "r1"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/v1/shards/7:split", b"{}", 404, "id"),
        ("POST", "/v1/shards/0:split", b'{"at":["xyz"]}', 422, "at[0]"),
        ("POST", "/v1/shards/0:split", b'{"at":"8"}', 422, "at"),
        ("POST", "/v1/shards/0:split", b'{"nodeIds":["10.0.0.0"]}', 422, "nodeIds"),
        ("POST", "/v1/shards/0:split", b'{"node":"x"}', 422, ""),
        ("POST", "/v1/shards/0:move", b'{"nodeId":"10.9.9.9"}', 404, "nodeId"),
        ("POST", "/v1/shards/0:move", b'{"nodeId":"b2"}', 404, "nodeId"),
        ("POST", "/v1/shards/0:move", b"[]", 422, ""),
        ("POST", "/v1/shards:merge", b'{"shards":["0"]}', 422, "shards"),
        ("POST", "/v1/shards:merge", b'{"shards":["1","0"]}', 409, "shards"),
        ("POST", "/v1/shards:merge", b"{}", 422, ""),
        ("GET", "/v1/reshapes/r9", b"", 404, "id"),
        ("DELETE", "/v1/reshapes/r9", b"", 404, "id"),
        ("POST", "/v1/nodes/10.9.9.9:drain", b"", 404, "id"),
        ("POST", "/v1/nodes/10.9.9.9:undrain", b"", 404, "id"),
    ],
)
def test_what_does_not_fit_is_a_problem_and_begins_nothing(
    tmp_path: Path, method: str, path: str, body: bytes, status: int, field: str
):
    @asynchronous
    async def check() -> None:
        async with new_edge(tmp_path) as edge:
            reply = await edge.call(method, path, body)
            assert (reply.status, reply.json.get("field", "")) == (status, field), reply.json
            assert reply.headers["content-type"] == "application/problem+json"
            assert not edge.control.fleet.begun

    check()


@asynchronous
async def test_a_reshape_is_aborted_until_it_is_decided(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        await edge.call("POST", "/v1/shards/0:split")
        reply = await edge.call("DELETE", "/v1/reshapes/r0")
        assert (reply.status, reply.json["step"]) == (202, "abort")
        edge.control.fleet.begun[0]["step"] = "swap"
        assert (await edge.call("DELETE", "/v1/reshapes/r0")).status == 409


@asynchronous
async def test_a_node_is_drained_by_its_address_and_taken_back(tmp_path: Path):
    async with new_edge(tmp_path) as edge:
        reply = await edge.call("POST", "/v1/nodes/10.0.0.0:drain")
        assert (reply.status, len(reply.json["reshapes"])) == (202, 1)
        nodes = msgspec.json.decode((await edge.call("GET", "/v1/nodes")).body, type=NodesAnswer)
        assert [node.draining for node in nodes.nodes] == [True, False]
        reply = await edge.call("POST", f"/v1/nodes/{FIRST}:undrain")
        assert (reply.status, reply.json["nodeId"]) == (200, FIRST)
        assert not edge.control.fleet.nodes[0]["draining"]


@asynchronous
async def test_only_a_secret_key_reshapes(tmp_path: Path):
    async with new_edge(tmp_path, keyless=False) as edge:
        for method, path, body in DOORS:
            reply = await edge.call(method, path, body, key_header(edge.keys.pk))
            assert reply.status == 403
        assert not edge.control.fleet.begun


def test_all_of_it_is_in_the_document_as_202():
    begun = {op.path: op.status for op in OPERATIONS if op.method == "post" and ":" in op.path}
    assert begun["/v1/shards/{id}:split"] == begun["/v1/nodes/{id}:drain"] == 202


def test_a_name_that_two_nodes_share_is_refused():
    nodes = [NodeAnswer(f"ab12cd{n}", "10.0.0.1", 1, 0, [], []) for n in range(2)]
    for name in ("ab12cd", "10.0.0.1"):
        with pytest.raises(Exception, match="more than one node"):
            find_node(nodes, name, "id")
    assert find_node(nodes, "ab12cd1", "id") == "ab12cd1"
