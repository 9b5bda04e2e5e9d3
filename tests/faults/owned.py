"""The gateway's router and a real owner with its log, and a network between them to break.

All in this process: Ray has no part in it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from actors.endpoint import Endpoint
from actors.journal import Journal
from actors.messages import Item
from actors.recovery import recover
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, USER, KeyRange, key_hash, place
from cluster.partition_map import PartitionMap, owner
from serve.router import Router
from tests.faults.load import ITEM, Body, Reply, Wire
from tests.faults.tcp_proxy import TcpProxy

SECRET = b"s" * 32
TENANT = "default"
# Waits that a test can sit out; every fault is longer than an attempt.
ATTEMPT_S = 0.5
# The first to use a kernel compiles it.
START_S = 120.0
EVERYTHING = KeyRange(0, HASH_SPACE)


class Owner:
    """A shard that logs to `folder`, behind a proxy, in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ahead_s = 0.0
        """By how much the owner's clock is wrong."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._listener: Any = self._do(self._start())

    @property
    def proxy(self) -> TcpProxy:
        proxy: TcpProxy = self._listener
        return proxy

    @property
    def address(self) -> tuple[str, int]:
        """Where callers reach it."""
        return "127.0.0.1", self.proxy.port

    def __call__(self, act: Callable[[TcpProxy], None]) -> None:
        """Do something to the network, in its loop."""

        async def run() -> None:
            act(self.proxy)

        self._do(run())

    def restart(self) -> None:
        """Become anew what the log says; callers lose their connections."""
        port = self.address[1]
        self._do(self._stop())
        self._listener = self._do(self._start(port))

    def close(self) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """Through a gateway's router and the proxy."""
        partition = PartitionMap(1, (owner("0", EVERYTHING, *self.address, "n"),))

        async def fetch(_: int) -> PartitionMap:
            return partition

        router = Router(
            fetch,
            "gateway",
            SECRET,
            inflight_max=64,
            request_timeout_s=ATTEMPT_S,
            map_wait_s=ATTEMPT_S,
        )
        await router.start()

        async def ask(op: Op, person: str, body: Body) -> Reply:
            position = place(key_hash(TENANT, USER, person))
            content = msgspec.json.encode(body)
            reply = await router.call(op, position, content, b"s:" + TENANT.encode(), True)
            return Reply(*reply)

        try:
            yield Wire(
                lambda body: ask(Op.TRACK, body["userId"], body),
                lambda person: ask(Op.PROFILE_GET, person, {"userId": person}),
            )
        finally:
            await router.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)

    def _run(self) -> None:
        self._loop.run_forever()

    async def _listen(self, endpoint: Endpoint, port: int) -> Any:
        return await TcpProxy(await endpoint.start("127.0.0.1")).start(port)

    async def _unlisten(self) -> None:
        await self.proxy.close()

    async def _start(self, port: int = 0) -> Any:
        config = Config(profiles_max=1 << 17, profile_bytes_max=1 << 27, items_max=64)
        clock = lambda: time.time() + self.ahead_s  # noqa: E731
        self._shard = Shard("0", EVERYTHING, config, now=clock)
        end = recover(self._shard, self._folder)
        self._shard.journal = Journal(self._folder, end, self._fail, 1 << 20)
        self._shard.put_items(TENANT, msgspec.json.encode([Item(ITEM)]))
        self._endpoint = Endpoint(self._shard, lambda _: (SECRET, None))
        return await self._listen(self._endpoint, port)

    async def _stop(self) -> None:
        await self._unlisten()
        await self._endpoint.close()
        assert self._shard.journal is not None
        self._shard.journal.close()

    def _fail(self, error: OSError) -> None:
        raise error


def hold(proxy: TcpProxy) -> None:
    proxy.there.flows.clear()
    proxy.back.flows.clear()


def hold_answers(proxy: TcpProxy) -> None:
    proxy.back.flows.clear()


def hold_requests(proxy: TcpProxy) -> None:
    proxy.there.flows.clear()


def lag(proxy: TcpProxy) -> None:
    proxy.there.delay_s = proxy.back.delay_s = 0.15


def cut(proxy: TcpProxy) -> None:
    proxy.cut()


def heal(proxy: TcpProxy) -> None:
    proxy.there.delay_s = proxy.back.delay_s = 0.0
    proxy.there.flows.set()
    proxy.back.flows.set()


NETWORK_FAULTS = (hold, hold_answers, hold_requests, lag, cut)
