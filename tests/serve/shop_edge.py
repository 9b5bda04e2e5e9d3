"""A gateway without Ray before a real shard with a small shop: HTTP in, decisions out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from actors.document_desk import DocumentDesk
from actors.documents import Stored
from actors.people import parse_caller
from tests.actors.surfaces.shop import Shop
from tests.serve.edge import LOCAL, Edge, Headers, Reply, new_edge

JSON = {"content-type": "application/json"}


class ShopEdge:
    """An edge whose owner is the shop's shard; keyless callers are its tenant."""

    def __init__(self, edge: Edge, shop: Shop) -> None:
        self.edge = edge
        self.shop = shop

    async def call(
        self, method: str, path: str, body: Any = None, headers: Headers = (LOCAL,)
    ) -> Reply:
        """One request with a JSON body; what follows a "?" of the path is its query."""
        content = b"" if body is None else msgspec.json.encode(body)
        path, _, query = path.partition("?")
        return await self.edge.call(method, path, content, headers, query=query.encode())

    async def put(self, path: str, **document: Any) -> None:
        reply = await self.call("PUT", path, document)
        assert reply.status == 200, reply.body


@asynccontextmanager
async def new_shop_edge(folder: Path) -> AsyncIterator[ShopEdge]:
    shop = Shop()

    def handle(op: int, meta: bytes, body: bytes) -> tuple[int, bytes]:
        return shop.shard.handle(op, parse_caller(meta), body, 0)

    async def spread(tenant: str, versions: list[Stored]) -> None:
        shop.shard.put_documents(tenant, versions)

    async with new_edge(folder, handle) as edge:
        edge.control.desk = DocumentDesk(asyncio.Lock(), spread, lambda: shop.now_s)
        yield ShopEdge(edge, shop)
