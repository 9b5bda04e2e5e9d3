"""Drives a handoff: copies, freezes, swaps, and undoes what did not come to the swap.

Plain asyncio without Ray: sources and targets are reached through protocols. The coordinator runs
this; if it dies at any moment, nothing is owed: before the swap the sources claim their ranges
again by themselves, and after it whoever starts owners finds the targets in the table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import pairwise
from typing import Protocol, TypeVar

import msgspec

from cluster.errors import IllegalTransition, OnehopError, Unavailable
from cluster.handoff import FREEZE_S_MAX, Step, after, landed, reshaped
from cluster.ownership import Claim, EpochStore, NotEntitled

Result = TypeVar("Result")
LOG = logging.getLogger("onehop.actors")

NEAR_RECORDS = 500
"""Targets that lack less are near: so much is taken in while the sources are frozen."""
COPY_S_MAX = 600.0
LAG_S = 0.1
UNDO_S = 5.0


class Source(Protocol):
    """A shard that gives its range away. All raise Unavailable if it can't be reached."""

    async def freeze(self, handoff: str, epoch: int) -> int:
        """Hold what arrives; the last sequence of its log, once that is durable. NotEntitled."""

    async def resume(self, handoff: str) -> None:
        """Claim the range again if it froze for this handoff; returns when that is decided, which
        does not depend on whether the caller still waits."""

    async def release(self, handoff: str) -> None:
        """The table has been swapped: send everybody there."""


class Target(Protocol):
    """A shard that is to be. All raise Unavailable if it can't be reached."""

    async def copy(self) -> None:
        """Copy the sources' logs as they are now, then go on following them."""

    async def lag(self) -> int:
        """Records of the sources that it lacks at this moment."""

    async def finish(self, last_seqs: Mapping[str, int]) -> None:
        """Returns once all up to these sequences, by source, is in its own log, durably."""

    async def serve(self, epoch: int) -> None:
        """The table names it at this epoch: own the range."""

    async def discard(self) -> None:
        """It is not to be: forget everything."""


class Handed(msgspec.Struct, frozen=True):
    """How a handoff ended. frozen_s: how long nobody was served."""

    step: Step
    reason: str = ""
    frozen_s: float = 0.0


class Handoff:
    """One handoff.

    sources  by shard, with the epoch of their claims
    targets  by shard; `claims` are what they are to own
    landed   called when the targets serve: from then on, who asks for the map is sent to them
    """

    def __init__(
        self,
        name: str,
        epochs: Mapping[str, int],
        sources: Mapping[str, Source],
        claims: Mapping[str, Claim],
        targets: Mapping[str, Target],
        store: EpochStore,
        pause: Callable[[], Awaitable[None]],
        landed: Callable[[], Awaitable[None]],
    ) -> None:
        self.name = name
        self.step = Step.COPY
        self._epochs = dict(epochs)
        self._sources = sources
        self._claims = claims
        self._targets = targets
        self._store = store
        self._pause = pause
        self._landed = landed
        self._loop = asyncio.get_running_loop()
        self._copying: asyncio.Timeout | None = None
        self._aborted = ""
        self._passed = [("begun", self._loop.time())]

    def abort(self, reason: str) -> None:
        """Undo it. Raises IllegalTransition once the sources are frozen: it is over in no time."""
        if self._copying is None or self.step not in (Step.COPY, Step.STREAM):
            raise IllegalTransition(f"a handoff at {self.step} can't be aborted")
        self._aborted = reason
        self._copying.reschedule(self._loop.time())

    async def run(self) -> Handed:
        """Hand over, or leave everything as it was. Raises only if it is cancelled."""
        frozen_at_s = 0.0
        try:
            async with asyncio.timeout(COPY_S_MAX) as self._copying:
                await _all(target.copy() for target in self._targets.values())
                self._move("copied")
                while await self._lag() > NEAR_RECORDS:
                    await asyncio.sleep(LAG_S)
            self._move("near")
            frozen_at_s = self._loop.time()
            # Below the sources' own bound, or they would take the range back meanwhile.
            async with asyncio.timeout(0.8 * FREEZE_S_MAX):
                last_seqs = await self._freeze()
                self._move("frozen")
                await _all(target.finish(last_seqs) for target in self._targets.values())
            self._move("caught up")
        except (OnehopError, TimeoutError) as error:
            self._move("failed")
            return await self._undo(self._aborted or str(error) or "it took too long")
        try:
            epoch = await self._swap()
        except NotEntitled as error:
            self._move("lost")
            return await self._undo(str(error))
        self._move("won")
        # Targets first: who is sent to them should find them serving.
        await _try_all(target.serve(epoch) for target in self._targets.values())
        await self._landed()
        frozen_s = self._loop.time() - frozen_at_s
        await _try_all(source.release(self.name) for source in self._sources.values())
        self._move("told")
        LOG.info("handoff %s is done, frozen for %.3f s: %s", self.name, frozen_s, self._times())
        return Handed(self.step, "", frozen_s)

    async def _lag(self) -> int:
        return sum(await _all(target.lag() for target in self._targets.values()))

    async def _freeze(self) -> dict[str, int]:
        names = list(self._sources)
        last_seqs = await _all(
            self._sources[shard].freeze(self.name, self._epochs[shard]) for shard in names
        )
        return dict(zip(names, last_seqs, strict=True))

    async def _swap(self) -> int:
        """Give the ranges to the targets; their epoch. Raises NotEntitled if it surely did not
        happen and never will."""
        claims = tuple(self._claims.values())
        while True:
            try:
                version, table = await self._store.read()
                if table is None:
                    raise NotEntitled("there is no table")
                if not landed(table, claims):
                    # Also after an attempt of which nothing is known: it can't happen any more if
                    # this one, of the same version, does; and if it did, that is seen here.
                    swapped = reshaped(table, self._epochs, claims)
                    if not await self._store.swap(version, swapped):
                        continue
                return max(self._epochs.values()) + 1
            except Unavailable:
                await self._pause()

    async def _undo(self, reason: str) -> Handed:
        """Leave everything as it was. Who can't be told finds out by itself."""
        LOG.warning("handoff %s is undone: %s", self.name, reason)
        await _try_all(source.resume(self.name) for source in self._sources.values())
        await _try_all(target.discard() for target in self._targets.values())
        self._move("undone")
        return Handed(self.step, reason)

    def _move(self, event: str) -> None:
        self.step = after(self.step, event)
        self._passed.append((event, self._loop.time()))

    def _times(self) -> str:
        """How long each step took, for those who ask why it took so long."""
        return ", ".join(
            f"{event} {1000 * (at_s - before_s):.0f} ms"
            for (_, before_s), (event, at_s) in pairwise(self._passed)
        )


async def _all(calls: Iterable[Awaitable[Result]]) -> list[Result]:
    """The results of all; of failures the first is raised, once all have ended."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


async def _try_all(calls: Iterable[Awaitable[None]]) -> None:
    """Tell all of them, as far as they can be reached in time."""

    async def tell(call: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(UNDO_S):
                await call
        except (OnehopError, TimeoutError) as error:
            LOG.warning("somebody was not told of a handoff: %r", error)

    await asyncio.gather(*(tell(call) for call in calls))
