"""A gateway without Ray and without sockets to the caller: ASGI calls in, a fake owner behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from actors.catalogue import decode_items
from actors.coordinator import ItemResult
from actors.document_desk import DocumentDesk
from actors.documents import Stored
from actors.messages import BATCH_MAX
from cluster.access import StoredKey
from cluster.errors import RequestError
from serve.auth import Keys, PlainKeys, generate_key, write_keys
from serve.fast_lane import FastLane, install, uninstall
from serve.gateway import Gateway
from serve.routes import build_app
from tests.serve.fake_fleet import FakeFleet
from tests.serve.fake_owner import FakeOwner, Handler, Maps, map_of, new_router

LOCAL = (b"host", b"127.0.0.1:8000")
Headers = tuple[tuple[bytes, bytes], ...]


def echo_json(op: int, meta: bytes, body: bytes) -> tuple[int, bytes]:
    """An owner that answers with what it was asked."""
    return 200, msgspec.json.encode(
        {"op": op, "meta": meta.decode(), "body": body.decode(errors="replace")}
    )


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class FakeControl:
    """A catalogue in a dict, and documents, per tenant; imports are only remembered."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Any] = {}
        self.imports: dict[tuple[str, str], bytes] = {}
        self.fleet = FakeFleet()
        self.desk = DocumentDesk(asyncio.Lock(), self._spread, lambda: 1_790_000_000.0)

    async def put_items(self, tenant: str, items_json: bytes) -> bytes:
        results = []
        raw = msgspec.json.decode(items_json)
        for item, entry in zip(raw, decode_items(items_json, BATCH_MAX), strict=True):
            if isinstance(entry, RequestError):
                results.append(ItemResult("", entry.status))
            else:
                self.items[tenant, entry.id] = item
                results.append(ItemResult(entry.id))
        return msgspec.json.encode(results)

    async def delete_items(self, tenant: str, ids: list[str]) -> list[bool]:
        return [self.items.pop((tenant, item_id), None) is not None for item_id in ids]

    async def _spread(self, tenant: str, versions: list[Stored]) -> None:
        await asyncio.sleep(0)

    async def put_document(
        self,
        tenant: str,
        kind: str,
        document_id: str,
        content: bytes,
        expected: int | None,
        dry_run: bool,
    ) -> bytes:
        put = await self.desk.put(tenant, kind, document_id, content, expected, dry_run)
        return msgspec.json.encode(put)

    async def get_document(
        self, tenant: str, kind: str, document_id: str, version: int | None
    ) -> bytes:
        return msgspec.json.encode(self.desk.get(tenant, kind, document_id, version))

    async def delete_document(
        self, tenant: str, kind: str, document_id: str, expected: int | None
    ) -> bytes:
        return msgspec.json.encode(await self.desk.delete(tenant, kind, document_id, expected))

    async def list_documents(self, tenant: str, kind: str) -> bytes:
        return msgspec.json.encode(self.desk.all_of(tenant, kind))

    async def start_import(self, tenant: str, spec_json: bytes) -> bytes:
        self.imports[tenant, "1"] = spec_json
        return b'{"id":"1"}'

    async def import_status(self, tenant: str, import_id: str) -> bytes | None:
        return self.imports.get((tenant, import_id))

    async def plan(self) -> bytes:
        return b'{"reshapes":[],"blocked":[],"cpusWanted":0.5,"shards":[]}'

    async def reshape(self, request_json: bytes) -> bytes:
        return self.fleet.reshape(msgspec.json.decode(request_json))

    async def reshapes(self) -> bytes:
        return msgspec.json.encode(self.fleet.begun)

    async def abort_reshape(self, reshape_id: str) -> bytes | None:
        return self.fleet.abort(reshape_id)

    async def nodes(self) -> bytes:
        return msgspec.json.encode(self.fleet.nodes)

    async def drain(self, node_id: str) -> bytes:
        return self.fleet.drain(node_id)

    async def undrain(self, node_id: str) -> None:
        self.fleet.set_draining(node_id, False)

    async def model_versions(self, tenant: str) -> bytes:
        return msgspec.json.encode({"serving": "m2", "events": 5, "saved": ["m1", "m2"]})

    async def roll_back_model(self, tenant: str, name: str) -> str | None:
        return "m3" if name == "m1" else None


class Edge(NamedTuple):
    """fast is the middleware over the app; plain is the app alone, as without Serve's hook."""

    fast: FastLane
    plain: Any
    owner: FakeOwner
    gateway: Gateway
    control: FakeControl
    keys: PlainKeys

    async def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Headers = (LOCAL,),
        app: Any = None,
        cut: int = 0,
        query: bytes = b"",
    ) -> Reply:
        """One HTTP request; the path as it is on the wire, so with percent signs.

        cut  the body arrives in pieces of this many bytes (0: at once)
        """
        step = cut or len(body) or 1
        pieces = [body[at : at + step] for at in range(0, len(body), step)] or [b""]
        incoming = [
            {"type": "http.request", "body": piece, "more_body": more}
            for piece, more in zip(pieces, [True] * (len(pieces) - 1) + [False], strict=True)
        ]
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await (app or self.fast)(scope_of(method, path, headers, query), receive, send)
        return reply_of(sent)

    async def post(
        self, path: str, body: bytes, headers: Headers = (LOCAL,), app: Any = None, cut: int = 0
    ) -> Reply:
        return await self.call("POST", path, body, headers, app, cut)


def scope_of(method: str, path: str, headers: Headers, query: bytes = b"") -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": query,
        "headers": list(headers),
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50_000),
        "http_version": "1.1",
    }


def reply_of(sent: list[dict[str, Any]]) -> Reply:
    """What an app sent, as one reply."""
    start = sent[0]
    names = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(start["status"], names, b"".join(m.get("body", b"") for m in sent[1:]))


@asynccontextmanager
async def new_edge(
    folder: Path,
    handler: Handler = echo_json,
    keyless: bool = True,
    body_timeout_s: float = 5.0,
    origins: tuple[str, ...] = (),
    **settings: Any,
) -> AsyncIterator[Edge]:
    """An edge with one pair of keys for tenant "shop" (keyless callers are tenant "default").

    origins   of the pk_ key
    settings  of the router
    """
    (sk, sk_stored), (pk, pk_stored) = stored_pair(origins)
    write_keys(folder / "keys.json", [sk_stored, pk_stored])
    owner = await FakeOwner(handler).start()
    router = new_router(Maps(map_of(1, owner)), **settings)
    await router.start()
    control = FakeControl()
    keys = Keys(folder / "keys.json", keyless)
    gateway = Gateway(keys, router, control, "g1", body_timeout_s)
    install(gateway)
    app = build_app()
    try:
        yield Edge(FastLane(app), app, owner, gateway, control, PlainKeys(sk, pk))
    finally:
        uninstall(gateway)
        await router.close()
        await owner.stop()


def stored_pair(
    origins: tuple[str, ...] = (),
) -> tuple[tuple[str, StoredKey], tuple[str, StoredKey]]:
    return generate_key("sk", "shop", 0.0), generate_key("pk", "shop", 0.0, origins=origins)


def key_header(key: str) -> Headers:
    return (LOCAL, (b"x-api-key", key.encode()))
