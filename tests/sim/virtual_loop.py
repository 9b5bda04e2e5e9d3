"""An event loop whose clock jumps to the next timer: asyncio code without the waiting."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class Stuck(AssertionError):
    """Nobody has anything left to wait for but somebody else."""


class _Selector(selectors.SelectSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Stuck("the simulation waits for ever")
            self.now_s += timeout
        return ready


def run(main: Coroutine[Any, Any, None]) -> float:
    """Run to the end; returns how many seconds that was, by the simulated clock."""
    selector = _Selector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    try:
        loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.close()
    return selector.now_s
