"""Keeps shards alive: starts them where their logs are, notices their death, starts them again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from actors.custody import Custody, Pulse
from actors.shard_handle import NewShard, ShardHandle, Slot
from cluster.errors import Unavailable

LOG = logging.getLogger("onehop.actors")

RESTART_S_MAX = 5.0
START_S = 120.0
"""How long a shard may take from its actor's start until it serves."""
PING_S = 1.0
SILENT_PINGS_MAX = 3
"""Heartbeats without an answer until a shard counts as standing still."""


class Supervision:
    """One per coordinator.

    seed     brings a shard that was started up to what all shards know
    publish  tells the world where it is now
    """

    def __init__(
        self,
        new_shard: NewShard,
        custody: Custody | None,
        seed: Callable[[Slot], Awaitable[None]],
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        self._new_shard = new_shard
        self._custody = custody
        self._seed = seed
        self._publish = publish
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, slot: Slot) -> None:
        """Look after a shard that was started."""
        self._tasks[slot.shard_id] = asyncio.create_task(self._supervise(slot))

    def stop(self, slot: Slot) -> None:
        """Let a shard be: it is not started again."""
        task = self._tasks.pop(slot.shard_id, None)
        for one in (task, slot.tending):
            if one is not None:
                one.cancel()

    async def close(self) -> None:
        """Look after nobody any more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def launch(self, slot: Slot) -> None:
        """Start a shard, or adopt the one that lives. Raises whatever it failed with."""
        if self._custody is not None:
            slot.place = await self._custody.place(slot.shard_id, slot.tries)
        handle: ShardHandle | None = None
        try:
            async with asyncio.timeout(START_S):
                handle = await self._new_shard(slot.shard_id, slot.key_range, slot.place)
                slot.handle = handle
                slot.started = await handle.start()
                slot.pid = (await handle.ping()).pid
        except BaseException as error:
            # Half a start is not to be gone on with: the next one begins with an empty actor.
            slot.tries += 1
            if handle is not None:
                await handle.kill()
            if isinstance(error, TimeoutError):
                raise Unavailable(f"it did not start within {START_S} s") from None
            raise
        slot.tries = 0

    async def _supervise(self, slot: Slot) -> None:
        """Start the shard again whenever it dies."""
        while True:
            assert slot.handle is not None
            await self._watch(slot, slot.handle)
            slot.up.clear()
            slot.restarts += 1
            LOG.warning("shard %s died; restart %d", slot.shard_id, slot.restarts)
            if slot.tending is not None:
                slot.tending.cancel()
            # Ray learns of a lost node late; what it takes for dead runs on for nobody.
            with suppress(Exception):
                await slot.handle.kill()
            await self._relaunch(slot)
            await self._publish()

    async def _watch(self, slot: Slot, handle: ShardHandle) -> None:
        """Returns when the shard has died, or was ended since it does not answer."""
        gone = asyncio.create_task(handle.wait_gone())
        silent = 0
        try:
            while silent < SILENT_PINGS_MAX:
                done, _ = await asyncio.wait([gone], timeout=PING_S)
                if done:
                    return
                try:
                    async with asyncio.timeout(PING_S):
                        pulse = await handle.ping()
                    silent = 0
                    self._tend(slot, pulse, handle)
                except TimeoutError:
                    silent += 1
                except Unavailable:
                    return
            LOG.error("shard %s stands still: it is ended", slot.shard_id)
            await self._end(slot, handle)
        finally:
            gone.cancel()

    def _tend(self, slot: Slot, pulse: Pulse, handle: ShardHandle) -> None:
        """Let its backup be seen to, beside the heartbeat."""
        if self._custody is None or slot.started is None:
            return
        if slot.tending is None or slot.tending.done():
            work = self._custody.tend(slot.shard_id, slot.started.node_id, pulse, handle)
            slot.tending = asyncio.create_task(_logged(work, slot.shard_id))

    async def _end(self, slot: Slot, handle: ShardHandle) -> None:
        """End a shard that may have been stopped: what it holds must be free for its successor."""
        if self._custody is not None and slot.started is not None and slot.pid is not None:
            await self._custody.nodes.kill(slot.started.node_id, slot.pid)
        await handle.kill()

    async def _relaunch(self, slot: Slot) -> None:
        pause_s = 0.05
        while True:
            try:
                await self.launch(slot)
                await self._seed(slot)
                return
            except Exception as error:
                # Also a log that can't be trusted: its range stays down, and says so every time.
                LOG.error("shard %s did not start: %s", slot.shard_id, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESTART_S_MAX)


async def _logged(work: Awaitable[None], shard_id: str) -> None:
    try:
        await work
    except Exception as error:
        LOG.warning("the backup of shard %s waits: %r", shard_id, error)
