"""Queues of a warm start: one lane per owner, and streams that are opened ahead of their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

LANE_MAX = 2
"""Calls that wait in a lane beside the one that runs; who puts more waits."""
AHEAD_MAX = 2
"""Entries taken from a stream before its turn; what produces them has its own bound."""

T = TypeVar("T")
Work = Callable[[], Awaitable[None]]


class Lane:
    """Runs calls one after the other. After one has failed none is run any more."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Work] = asyncio.Queue(LANE_MAX)
        self._failed: BaseException | None = None
        self._task = asyncio.create_task(self._run())

    async def put(self, work: Work) -> None:
        """Queue a call; waits while the lane is full. Raises what an earlier call raised."""
        if self._failed is not None:
            raise self._failed
        await self._queue.put(work)

    async def drain(self) -> None:
        """Return when all queued calls are done. Raises what one of them raised."""
        await self._queue.join()
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Stop at once; what is queued is not run."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            work = await self._queue.get()
            if self._failed is None:
                try:
                    await work()
                except Exception as error:
                    self._failed = error
            self._queue.task_done()


async def read_ahead(
    opens: Sequence[Callable[[], AsyncIterator[T]]], parallel: int
) -> AsyncGenerator[AsyncIterator[T], None]:
    """The streams in order, up to `parallel` of them running at once.

    Close it (`aclosing`) to stop those that run.
    """
    queues: list[asyncio.Queue[tuple[T | None, BaseException | None]]] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        for turn in range(len(opens)):
            while len(tasks) < min(turn + parallel, len(opens)):
                queues.append(asyncio.Queue(AHEAD_MAX))
                tasks.append(asyncio.create_task(_pump(opens[len(tasks)](), queues[-1])))
            yield _entries(queues[turn])
    finally:
        for task in tasks:
            task.cancel()


async def _pump(
    stream: AsyncIterator[T], queue: asyncio.Queue[tuple[T | None, BaseException | None]]
) -> None:
    try:
        async for entry in stream:
            await queue.put((entry, None))
        await queue.put((None, StopAsyncIteration()))
    except Exception as error:
        await queue.put((None, error))


async def _entries(
    queue: asyncio.Queue[tuple[T | None, BaseException | None]],
) -> AsyncIterator[T]:
    while True:
        entry, end = await queue.get()
        if isinstance(end, StopAsyncIteration):
            return
        if end is not None:
            raise end
        assert entry is not None
        yield entry
