"""A gateway that answers as a test says, and clients for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import msgspec
from aiohttp import web

from cluster.frames import Op
from cluster.partition_map import PartitionMap, encode_map
from serve.client import Client
from tests.serve.fake_owner import Answer

KEY = "sk_" + "k" * 49
KEY_ID = sha256(KEY.encode()).hexdigest()[:12]
SDK_SECRETS = {KEY_ID: sha256(KEY.encode()).digest()}

DECIDED = (
    b'{"duplicate":false,"profileVersion":3,"durability":"memory","degraded":false,'
    b'"tookMs":{"queue":0.1,"update":0.2,"score":0.3},"decisions":[]}'
)
TRACKED = b'{"duplicate":true,"profileVersion":3,"durability":"memory"}'

HttpRequest = tuple[str, str, bytes]
HttpAnswer = tuple[int, bytes] | tuple[int, bytes, dict[str, str]]
HttpHandler = Callable[[str, str, bytes], HttpAnswer | Awaitable[HttpAnswer]]


def answered(method: str, path: str, body: bytes) -> HttpAnswer:
    return 200, DECIDED if path == "/v1/decide" else TRACKED


class FakeGateway:
    """handler(method, path, body) -> (status, body[, headers]) for all but the map."""

    def __init__(
        self, handler: HttpHandler = answered, partition_map: PartitionMap | None = None
    ) -> None:
        self.handler = handler
        self.map = partition_map
        self.map_asked = 0
        self.requests: list[HttpRequest] = []
        self.keys: set[str | None] = set()
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> FakeGateway:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.keys.add(request.headers.get("x-api-key"))
        if request.path == "/v1/shards":
            self.map_asked += 1
            if self.map is None:
                return web.Response(status=404, body=b"{}")
            document = msgspec.json.decode(encode_map(self.map)) | {"tenant": "shop"}
            return web.Response(body=msgspec.json.encode(document))
        self.requests.append((request.method, request.raw_path, body))
        answer = self.handler(request.method, request.raw_path, body)
        if isinstance(answer, Awaitable):
            answer = await answer
        status, data, *headers = answer
        return web.Response(status=status, body=data, headers=headers[0] if headers else None)


def by_op(op: int, meta: bytes, body: bytes) -> Answer:
    """What an owner answers."""
    return 200, DECIDED if op == Op.DECIDE else TRACKED


def new_client(gateway: FakeGateway, api_key: str = KEY, **settings: Any) -> Client:
    return Client(gateway.url, api_key, **settings)


def problem(status: int, **fields: str) -> bytes:
    return msgspec.json.encode({"title": "t", "status": status} | fields)
