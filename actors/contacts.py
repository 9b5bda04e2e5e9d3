"""What a shard does by itself: timers fire, decisions close, messages leave. Begun and stopped."""

from __future__ import annotations

import asyncio

from actors.shard import Shard
from actors.watch import FIRED_MAX

PULSE_S = 0.1


class Contacts:
    """Only who owns a range may let its timers fire and send its messages."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._pulse()),
                asyncio.create_task(self._shard.mailroom.run()),
            ]

    def stop(self) -> None:
        """What was on its way is sent again, with the same id, by whoever begins next."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def _pulse(self) -> None:
        while True:
            # As many as that are a pause; with more to fire, requests come in between.
            full = self._shard.pulse() == FIRED_MAX
            await asyncio.sleep(0 if full else PULSE_S)
