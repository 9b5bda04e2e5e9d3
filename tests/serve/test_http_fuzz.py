"""Whatever comes in over HTTP, a 4xx problem document or the owner's answer goes out."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.gateway import BATCH_ROUTE, FAST_ROUTES
from tests.serve.edge import Edge, new_edge

PATHS = (*FAST_ROUTES, BATCH_ROUTE, "/v1/items:batch", "/v1/imports")

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()  # NaN and Infinity, which Python's json writes and JSON does not have
    | st.text(max_size=20)
    | st.sampled_from(["", "\0", "\ud800", "x" * 300, "userId", "1e999"])
)
names = st.sampled_from(
    ["userId", "anonymousId", "messageId", "type", "event", "events", "decisions", "batch", "items"]
) | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=12,
)
documents = st.dictionaries(names, values, max_size=6).map(json.dumps).map(str.encode)
batches = st.lists(st.dictionaries(names, values, max_size=4), max_size=4).map(
    lambda messages: json.dumps({"batch": messages, "items": messages}).encode()
)


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A valid document with some bytes overwritten, cut off or nested too deep."""
    data = bytearray(draw(documents | batches))
    kind = draw(st.sampled_from(["overwrite", "cut", "nest", "repeat"]))
    at = draw(st.integers(0, len(data)))
    if kind == "overwrite":
        data[at : at + 3] = draw(st.binary(max_size=4))
    elif kind == "cut":
        del data[at:]
    elif kind == "nest":
        data[at:at] = draw(st.sampled_from([b"[", b'{"a":'])) * draw(st.integers(1, 5000))
    else:
        data = data * draw(st.integers(2, 5))
    return bytes(data)


bodies = documents | batches | broken() | st.binary(max_size=200)


class Runner:
    """One edge in one event loop for all examples: what one breaks, the next one sees."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self._entered = new_edge(Path(self.folder.name))
        self.edge: Edge = self.loop.run_until_complete(self._entered.__aenter__())

    def post(self, path: str, body: bytes, cut: int, plain: bool):
        app = self.edge.plain if plain else None
        call = self.edge.post(path, body, cut=cut, app=app)
        return self.loop.run_until_complete(asyncio.wait_for(call, 10))

    def close(self) -> None:
        self.loop.run_until_complete(self._entered.__aexit__(None, None, None))
        self.loop.close()
        self.folder.cleanup()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(PATHS), body=bodies, cut=st.sampled_from([0, 1, 7]), plain=st.booleans()
)
def test_any_body_is_answered_and_the_gateway_lives(runner, path, body, cut, plain):
    reply = runner.post(path, body, cut, plain)
    assert 200 <= reply.status < 500, (reply.status, reply.body)
    document = json.loads(reply.body)
    if reply.status >= 400:
        assert reply.headers["content-type"] == "application/problem+json"
        assert document["status"] == reply.status
        assert document["title"]
    for result in document.get("results", ()) if path == BATCH_ROUTE else ():
        assert result["status"] < 500
    assert runner.post("/v1/track", b'{"userId":"ada"}', 0, plain).status == 200


@settings(max_examples=200, deadline=None)
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"x-api-key", b"authorization", b"host", b"origin", b"cookie"]),
            st.binary(max_size=80),
        ),
        max_size=4,
    )
)
def test_any_header_is_answered_and_none_gets_in_by_accident(runner, headers):
    call = runner.edge.post("/v1/track", b'{"userId":"ada"}', tuple(headers))
    reply = runner.loop.run_until_complete(call)
    assert reply.status in (401, 403)
