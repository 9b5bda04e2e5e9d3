"""A webhook's receiver on loopback, which answers as a test says and verifies what it got."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from typing import Any

import msgspec
from aiohttp import web

from tests.readme_tables import README

SECRET = "whsec_" + b64encode(b"k" * 32).decode()


def verify_of_readme() -> Any:
    """The function that the README gives to receivers."""
    (code,) = re.findall(r"^```py\n(.*?)^```", README.read_text(), re.M | re.S)
    found: dict[str, Any] = {}
    exec(code, found)
    return found["verify"]


class Receiver:
    """Keeps what came, as (webhook-id, CloudEvent); `status` says what it answers."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.bodies: list[bytes] = []
        self.status = 200
        self._verify = verify_of_readme()
        self.delay_s = 0.0
        self.under_way = 0
        self.under_way_max = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Receiver:
        app = web.Application()
        app.router.add_post("/hook", self._hook)
        app.router.add_post("/moved", self._moved)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _hook(self, request: web.Request) -> web.Response:
        body = await request.read()
        self._verify(SECRET, request.headers, body)
        self.under_way += 1
        self.under_way_max = max(self.under_way, self.under_way_max)
        await asyncio.sleep(self.delay_s)
        self.under_way -= 1
        self.bodies.append(body)
        self.got.append((request.headers["webhook-id"], msgspec.json.decode(body)))
        return web.Response(status=self.status)

    async def _moved(self, request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(self.url)

    async def count(self, wanted: int, within_s: float = 10.0) -> None:
        """Returns once so many came. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while len(self.got) < wanted:
                await asyncio.sleep(0.01)
