"""Arms of `tests.bench.hop` that a team would build by hand on Redis: a usual and a tuned one.

`weak` is FastAPI with redis.asyncio: HGETALL, work in numpy, HSET. Two requests of one person at
once can lose an update. `strong` is raw ASGI with msgspec, hiredis on one connection whose
commands of one event-loop turn leave in one write, one Lua call that changes the state atomically,
and numba for the scores. Both reach Redis over TCP; `strong` also over a Unix socket, if named.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from collections import deque
from hashlib import sha1
from typing import Any

import hiredis
import msgspec
import numpy as np
import redis.asyncio
from fastapi import FastAPI

from tests.bench.harness import Redis
from tests.bench.hop_peers import (
    Answer,
    DecideRequest,
    Decision,
    Ranked,
    best,
    best_into,
    item_numbers,
)
from tests.bench.hop_work import (
    DIMENSIONS,
    EVENT,
    HISTORY,
    PEOPLE,
    RESULTS,
    RING,
    embeddings,
    histories,
    moved,
    person_id,
    vectors_after,
)

PORT = "HOP_REDIS_PORT"
SOCKET = "HOP_REDIS_SOCKET"  # empty: over TCP
SEED = "HOP_SEED"
RING_EVENT = struct.Struct("<II")
FILL_CHUNK = 2_000

SCRIPT = b"""
local format = '%s'
local old = redis.call('HMGET', KEYS[1], 'v', 'r', ARGV[1])
local v = {struct.unpack(format, old[1])}
local m = {struct.unpack(format, ARGV[2])}
for i = 1, %d do v[i] = 0.9 * v[i] + 0.1 * m[i] end
local new = struct.pack(format, unpack(v, 1, %d))
local ring = ARGV[3] .. string.sub(old[2], 1, %d)
redis.call('HSET', KEYS[1], 'v', new, 'r', ring, ARGV[1], (tonumber(old[3]) or 0) + 1)
return new
""" % (b"<" + b"f" * DIMENSIONS, DIMENSIONS, DIMENSIONS, RING_EVENT.size * (RING - 1))


def fill(server: Redis, seed: int, packed: bool) -> None:
    """Give everybody their history: `packed` as the tuned arm keeps it, else as the usual one."""
    history = histories(seed)
    vectors = vectors_after(history, embeddings(seed))
    now_s = int(time.time())
    client = redis.Redis(unix_socket_path=server.socket)
    for start in range(0, PEOPLE, FILL_CHUNK):
        pipeline: Any = client.pipeline(transaction=False)
        for person in range(start, min(start + FILL_CHUNK, PEOPLE)):
            newest_first = history[person, ::-1].tolist()
            if packed:
                ring = b"".join(RING_EVENT.pack(item, now_s) for item in newest_first)
                fields = {"v": vectors[person].tobytes(), "r": ring, EVENT: HISTORY}
            else:
                recent = json.dumps([[item, now_s] for item in newest_first])
                fields = {"vector": vectors[person].tobytes(), "recent": recent}
                fields["count:" + EVENT] = HISTORY
            pipeline.hset(person_id(person), mapping=fields)
        pipeline.execute()
    client.close()


def weak() -> FastAPI:
    """The usual way. A factory, for uvicorn."""
    api = FastAPI()
    client: Any = redis.asyncio.Redis(port=int(os.environ[PORT]))
    items = embeddings(int(os.environ[SEED]))
    item_of = item_numbers()
    names = list(item_of)

    @api.post("/v1/decide")
    async def decide(request: DecideRequest) -> Answer:
        profile = await client.hgetall(request.userId)
        vector = np.frombuffer(profile[b"vector"], np.float32)
        recent = json.loads(profile[b"recent"])
        changed: dict[str, Any] = {}
        for event in request.events:
            item = item_of[event.properties.itemId]
            vector = moved(vector, items[item])
            recent = [[item, int(time.time())], *recent[: RING - 1]]
            counter = "count:" + event.event
            changed[counter] = int(profile.get(counter.encode(), 0)) + 1
        changed |= {"vector": vector.tobytes(), "recent": json.dumps(recent)}
        await client.hset(request.userId, mapping=changed)
        return Answer(
            decisions=[
                Decision(
                    surface=decision.surface,
                    ranking=[
                        Ranked(id=names[i], score=score)
                        for i, score in best(
                            items,
                            [item_of[a] for a in decision.actions],
                            vector,
                            decision.numResults,
                        )
                    ],
                )
                for decision in request.decisions
            ]
        )

    return api


class Connection(asyncio.Protocol):
    """Pipelined Redis connection: commands of one turn leave in one write."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def call(self, *arguments: Any) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._waiting.append(future)
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(arguments))
        return future

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(answer)


class StrongEvent(msgspec.Struct):
    event: str
    properties: dict[str, str]


class StrongDecision(msgspec.Struct):
    surface: str
    actions: list[str]
    numResults: int


class StrongRequest(msgspec.Struct):
    userId: str
    events: list[StrongEvent]
    decisions: list[StrongDecision]


class Strong:
    """The tuned way, an ASGI application. One event and one decision a request, as the load has."""

    def __init__(self) -> None:
        self._items = embeddings(int(os.environ[SEED]))
        self._embedding = [row.tobytes() for row in self._items]
        self._item_of = item_numbers()
        self._names = list(self._item_of)
        self._decode = msgspec.json.Decoder(StrongRequest).decode
        self._encode = msgspec.json.Encoder().encode
        self._rows = np.zeros(RESULTS, np.int32)
        self._scores = np.zeros(RESULTS, np.float32)
        self._sha = sha1(SCRIPT).hexdigest()
        self._redis: Connection | None = None
        # Compile before the first request.
        best_into(self._items, np.zeros(1, np.int32), self._items[0], self._rows, self._scores)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if os.environ[SOCKET]:
            _, connection = await loop.create_unix_connection(Connection, os.environ[SOCKET])
        else:
            port = int(os.environ[PORT])
            _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        await connection.call("SCRIPT", "LOAD", SCRIPT)
        self._redis = connection
        return connection

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        answer = await self._decide(body) if body else b"{}"
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _decide(self, body: bytes) -> bytes:
        request = self._decode(body)
        event, decision = request.events[0], request.decisions[0]
        item = self._item_of[event.properties["itemId"]]
        state = await (self._redis or await self._connect()).call(
            "EVALSHA",
            self._sha,
            "1",
            request.userId,
            event.event,
            self._embedding[item],
            RING_EVENT.pack(item, int(time.time())),
        )
        if isinstance(state, hiredis.ReplyError):
            raise state
        vector = np.frombuffer(state, np.float32)
        item_of = self._item_of
        candidates = np.array([item_of[a] for a in decision.actions], np.int32)
        rows, scores = self._rows[: decision.numResults], self._scores
        filled = best_into(self._items, candidates, vector, rows, scores)
        names = self._names
        ranking = [
            {"id": names[row], "score": score}
            for row, score in zip(rows[:filled].tolist(), scores[:filled].tolist(), strict=True)
        ]
        return self._encode({"decisions": [{"surface": decision.surface, "ranking": ranking}]})


def strong() -> Strong:
    """The tuned way. A factory, for uvicorn."""
    return Strong()
