"""A whole onehop in one event loop, without Ray: a real shard with its log, behind a real gateway.

The shard may die and come back from its log at another port, as under a coordinator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from actors.endpoint import Endpoint
from actors.journal import Journal
from actors.recovery import recover
from actors.shard import Shard
from cluster.config import Config
from cluster.keys import HASH_SPACE, KeyRange
from cluster.partition_map import PartitionMap, owner
from serve.auth import Keys, write_keys
from serve.fast_lane import FastLane, install, uninstall
from serve.gateway import Gateway
from serve.routes import build_app
from tests.serve.edge import FakeControl, Reply, stored_pair
from tests.serve.fake_owner import SECRET, Maps, new_router

EVERYTHING = KeyRange(0, HASH_SPACE)


class Whole:
    """One tenant, "default", called without a key from loopback."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.config = config
        self.port = 0
        self.epoch = 0
        self.shard: Shard
        self.endpoint: Endpoint
        self.maps: Maps
        self.gateway: Gateway
        self._tasks: list[asyncio.Task[None]] = []

    async def start_shard(self) -> PartitionMap:
        """Begin, or come back from the log; the map that says where."""
        folder = self.folder / "shards" / "0"
        folder.mkdir(parents=True, exist_ok=True)
        self.shard = shard = Shard("0", EVERYTHING, self.config)
        end = recover(shard, folder)
        shard.journal = Journal(folder, end, lambda error: None, 1 << 22)
        self.epoch += 1
        shard.epoch = self.epoch
        self.endpoint = Endpoint(shard, lambda principal: (SECRET, None))
        host, port = await self.endpoint.start("127.0.0.1")
        self._tasks = [
            asyncio.create_task(shard.mailroom.run()),
            asyncio.create_task(self._pulse()),
        ]
        return PartitionMap(self.epoch, (owner("0", EVERYTHING, host, port),))

    async def stop_shard(self) -> None:
        """End it in the middle of whatever it does; what is not in the log is lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.endpoint.close()
        assert self.shard.journal is not None
        self.shard.journal.close()

    async def restart_shard(self) -> None:
        await self.stop_shard()
        self.maps.newest = await self.start_shard()

    async def _pulse(self) -> None:
        while True:
            self.shard.pulse()
            await asyncio.sleep(0.02)

    def put(self, kind: str, document_id: str, document: dict[str, Any]) -> None:
        """A document, as the coordinator would give it to the shard."""
        documents = self.shard.tenant("default").documents
        content = msgspec.json.encode(document)
        self.shard.put_documents(
            "default", [documents.checked(kind, document_id, content, self.shard.now())]
        )

    async def call(self, method: str, path: str, body: Any = None) -> Reply:
        """One HTTP request."""
        data = b"" if body is None else msgspec.json.encode(body)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        received = await reader.read()
        writer.close()
        top, _, content = received.partition(b"\r\n\r\n")
        return Reply(int(top.split()[1]), {}, content)

    def stream(self) -> connect:
        """`async with` it for an open stream."""
        return connect(f"ws://127.0.0.1:{self.port}/v1/stream", compression=None)


class Page:
    """A page's end of a stream: replies by id, messages in their order."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._replies: dict[Any, dict[str, Any]] = {}
        self.messages: list[dict[str, Any]] = []

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send(msgspec.json.encode(message).decode())
        while message["id"] not in self._replies:
            await self._read()
        return self._replies.pop(message["id"])

    async def message(self, within_s: float = 10.0) -> dict[str, Any]:
        """The next CloudEvent. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while not self.messages:
                await self._read()
        return self.messages.pop(0)

    async def silent(self, for_s: float) -> bool:
        """Whether no message comes for so long."""
        with suppress(TimeoutError):
            await self.message(for_s)
            return False
        return True

    async def _read(self) -> None:
        for entry in msgspec.json.decode(await self._socket.recv()):
            if entry.get("type") == "message":
                self.messages.append(entry["message"])
            else:
                self._replies[entry["id"]] = entry


@asynccontextmanager
async def new_whole(folder: Path, **settings: Any) -> AsyncIterator[Whole]:
    """Start everything; end it in order."""
    small = {"profiles_max": 4096, "profile_bytes_max": 1 << 24, "items_max": 4096}
    # A test that runs on two event loops begins with nothing each time.
    folder = Path(mkdtemp(dir=folder))
    whole = Whole(folder, Config(**(small | settings)))
    whole.maps = Maps(await whole.start_shard())
    router = new_router(whole.maps)
    await router.start()
    (_, sk), (_, pk) = stored_pair()
    write_keys(folder / "keys.json", [sk, pk])
    whole.gateway = Gateway(Keys(folder / "keys.json", True), router, FakeControl(), "g1")
    install(whole.gateway)
    config = uvicorn.Config(
        FastLane(build_app()), port=0, lifespan="off", access_log=False, log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    whole.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield whole
    finally:
        server.should_exit = True
        await serving
        uninstall(whole.gateway)
        await router.close()
        await whole.stop_shard()
