"""The way to one owner's address: a connection, or the attempts to get one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from cluster.errors import AuthError, OnehopError, Unavailable
from serve.connection import Connection

BACKOFF_MIN_S = 0.01
BACKOFF_MAX_S = 1.0

OnLost = Callable[[Connection], None]


class Link:
    """Connects at once, stays connected, reconnects after ever longer, jittered pauses.

    new_connection    makes a connection that is not yet connected, given its `on_lost`
    on_change         called whenever the connection came, went, or was not made
    connect_timeout_s bound of one attempt, handshake included
    """

    def __init__(
        self,
        address: tuple[str, int],
        new_connection: Callable[[OnLost], Connection],
        on_change: Callable[[], None],
        connect_timeout_s: float,
        rng: random.Random,
    ) -> None:
        self.address = address
        self.connection: Connection | None = None
        """The connection, if requests may be sent on it now."""
        self.error: OnehopError | None = None
        """Why the last attempt failed."""
        self.tried = asyncio.Event()
        """Set after the first attempt, and when there will be none."""
        self._new_connection = new_connection
        self._on_change = on_change
        self._connect_timeout_s = connect_timeout_s
        self._rng = rng
        self._lost = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def retire(self) -> Connection | None:
        """Stop trying. Returns the connection, which closes once its requests are answered."""
        connection, self.connection = self.connection, None
        self._task.cancel()
        if connection is not None:
            connection.retire()
        return connection

    async def close(self, reason: str) -> None:
        """Stop trying and end the connection now."""
        connection = self.retire()
        if connection is not None:
            connection.abort(reason)
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff_s = BACKOFF_MIN_S
        loop = asyncio.get_running_loop()
        try:
            while True:
                started_s = loop.time()
                if await self._connect():
                    await self._lost.wait()
                self.tried.set()
                self._on_change()
                if loop.time() - started_s > BACKOFF_MAX_S:
                    backoff_s = BACKOFF_MIN_S
                await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
        finally:
            self.tried.set()

    async def _connect(self) -> bool:
        """One attempt. True if there is a connection now; else `error` says why not."""
        self._lost.clear()
        attempt = self._new_connection(self._forget)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await asyncio.get_running_loop().create_connection(lambda: attempt, *self.address)
                await attempt.ready
        except (OSError, OnehopError) as error:
            attempt.abort("the connection was not made")
            reason = str(error) or type(error).__name__
            self.error = error if isinstance(error, AuthError) else Unavailable(reason)
            return False
        except asyncio.CancelledError:
            attempt.abort("the connection was not made")
            raise
        if self._lost.is_set():
            return False
        self.connection = attempt
        self.error = None
        self.tried.set()
        self._on_change()
        return True

    def _forget(self, connection: Connection) -> None:
        # At once, not when the task wakes: a request of this very turn must not be sent on it.
        if self.connection is connection:
            self.connection = None
        self._lost.set()
