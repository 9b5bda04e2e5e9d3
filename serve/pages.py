"""Pages that wait for messages: their streams subscribe at the owners of their people.

A subscription is a lease at the owner, renewed by this gateway; a new partition map renews all at
once, so a page is reached again as soon as its person's owner is. What a page gets it acknowledges;
until then the owner keeps it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from cluster.errors import OnehopError, RequestError
from cluster.frames import Op
from serve.auth import Caller
from serve.problems import Answer

LOG = logging.getLogger("onehop.serve")

RENEW_S = 10.0
LOOK_S = 0.25
PAGES_MAX = 50_000
RENEWING_MAX = 64


class Hop(Protocol):
    """The part of the router that pages use."""

    changes: int
    """Counts changes of the map and of the connections."""

    async def call(
        self, op: Op, position: int, body: bytes, meta: bytes = b"", retry_safe: bool = False
    ) -> tuple[int, bytes]: ...


class Page:
    """One subscription of one stream. on_message gets CloudEvents.

    still  raises OnehopError once the caller may not listen any more
    """

    def __init__(
        self,
        caller: Caller,
        position: int,
        person: dict[str, str | None],
        on_message: Callable[[bytes], None],
        still: Callable[[], object],
    ) -> None:
        self.caller = caller
        self.position = position
        self.person = person
        self.on_message = on_message
        self.still = still
        self.token = ""
        self.missed = False
        """The page did not read fast enough: it begins anew with the next renewal."""

    def body(self) -> bytes:
        return msgspec.json.encode(self.person | {"token": self.token})


class Pages:
    """All subscriptions of one gateway."""

    def __init__(self, router: Hop) -> None:
        self._router = router
        self._pages: dict[str, Page] = {}
        self._task: asyncio.Task[None] | None = None
        self._limit = asyncio.Semaphore(RENEWING_MAX)

    def __len__(self) -> int:
        return len(self._pages)

    async def subscribe(self, page: Page) -> Answer:
        """Subscribe a page; messages may come before this returns. Raises what `call` raises."""
        if len(self._pages) >= PAGES_MAX:
            raise RequestError(429, "too many pages are open", "", "", f"at most {PAGES_MAX}")
        self._name(page)
        if self._task is None:
            self._task = asyncio.create_task(self._renew_all())
        try:
            status, reply = await self._ask(page)
        except BaseException:
            self._pages.pop(page.token, None)
            raise
        if status >= 400:
            self._pages.pop(page.token, None)
        return Answer(status, reply)

    def leave(self, page: Page) -> None:
        """The page is gone. The owner is told by the lease that ends."""
        self._pages.pop(page.token, None)
        if not self._pages and self._task is not None:
            self._task.cancel()
            self._task = None

    def on_push(self, token: bytes, body: bytes) -> None:
        """A message from an owner; for the router's connections. Of unknown pages it is dropped."""
        page = self._pages.get(token.decode("ascii", "replace"))
        if page is not None:
            page.on_message(body)

    def _name(self, page: Page) -> None:
        """Give a page a token that no owner knows, so that what is unacknowledged comes again."""
        self._pages.pop(page.token, None)
        page.token, page.missed = secrets.token_hex(16), False
        self._pages[page.token] = page

    async def _ask(self, page: Page) -> tuple[int, bytes]:
        async with self._limit:
            return await self._router.call(
                Op.SUBSCRIBE, page.position, page.body(), page.caller.meta, True
            )

    async def _renew_all(self) -> None:
        loop = asyncio.get_running_loop()
        changes, renewed_s = self._router.changes, loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            if self._router.changes == changes and loop.time() - renewed_s < RENEW_S:
                continue
            changes, renewed_s = self._router.changes, loop.time()
            await asyncio.gather(*(self._renew(page) for page in list(self._pages.values())))

    async def _renew(self, page: Page) -> None:
        if self._pages.get(page.token) is not page:
            return
        try:
            page.still()
        except OnehopError:
            self.leave(page)
            return
        if page.missed:
            self._name(page)
        # An owner that can't be reached now is asked again in a while.
        with suppress(OnehopError):
            status, reply = await self._ask(page)
            if status >= 400:
                LOG.warning("a page is not subscribed: %d %s", status, reply[:200])
