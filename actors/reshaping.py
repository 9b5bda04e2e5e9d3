"""Splits, merges and moves of ranges: asked for by people or the plan, done by handoffs.

A part of the coordinator; plain asyncio without Ray. One form for all: shards side by side are
replaced by new ones that cover the same keys. New shards get new names, so that no name ever means
two things; what is left of the old ones is removed when nobody can ask them any more.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import pairwise
from time import time
from typing import NamedTuple

import msgspec

from actors.coordinator import Coordinator
from actors.copies import new_copy_id
from actors.custody import Custody, Place
from actors.handoff import Handed, Handoff
from actors.incoming import Order, Source
from actors.replicator import Peer
from actors.shard_handle import Movable, NewShard, ShardHandle, Slot
from actors.supervision import START_S
from cluster.errors import IllegalTransition, OnehopError, RequestError, Unavailable
from cluster.handoff import Step
from cluster.keys import KeyRange
from cluster.ownership import Claim, Copy, claim_of
from cluster.plan import Plan

LOG = logging.getLogger("onehop.actors")

RESHAPES_KEPT = 100
TARGETS_MAX = 16
STORE_RETRY_S = 0.05
LINGER_S = 5.0
"""How long a source says where its range went; every gateway has the new map long before."""


class TargetState(msgspec.Struct, rename="camel"):
    """One shard that is to be. start, stop: hexadecimal text."""

    shard_id: str
    start: str
    stop: str
    node_id: str


class Reshaping(msgspec.Struct, rename="camel"):
    """How far a reshape is, as `GET /v1/reshapes` tells it. frozen_seconds: nobody was served."""

    id: str
    kind: str
    sources: list[str]
    targets: list[TargetState]
    step: str = Step.COPY.value
    reason: str = ""
    started_at: float = 0.0
    seconds: float = 0.0
    frozen_seconds: float = 0.0

    @property
    def ended(self) -> bool:
        return self.step in (Step.DONE.value, Step.ABORTED.value)


class Part(NamedTuple):
    """A new shard, and where it is to be."""

    key_range: KeyRange
    node_id: str


class Reshaper:
    """One per coordinator.

    on_shards  told of the names of all shards that learn, whenever those change
    """

    def __init__(
        self,
        coordinator: Coordinator,
        custody: Custody,
        new_shard: NewShard,
        on_shards: Callable[[list[str]], Awaitable[None]],
    ) -> None:
        self._coordinator = coordinator
        self._custody = custody
        self._new_shard = new_shard
        self._on_shards = on_shards
        self._states: deque[Reshaping] = deque()
        self._handoffs: dict[str, Handoff] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[str] = set()
        """Shards that gave their range away and are not ended yet."""

    @property
    def moving(self) -> set[str]:
        """Shards whose range is being handed over."""
        return {one for state in self._states if not state.ended for one in state.sources}

    def states(self) -> list[Reshaping]:
        """What runs and what ran last, oldest first."""
        for state in self._states:
            if not state.ended:
                state.seconds = round(time() - state.started_at, 3)
                handoff = self._handoffs.get(state.id)
                state.step = handoff.step.value if handoff is not None else state.step
        return list(self._states)

    def abort(self, reshape_id: str) -> Reshaping:
        """Undo one. Raises RequestError: 404 unknown, 409 too late."""
        found = next((state for state in self.states() if state.id == reshape_id), None)
        if found is None:
            raise RequestError(404, "no such reshape", "id", repr(reshape_id))
        try:
            if found.ended:
                raise IllegalTransition(f"it is {found.step}")
            handoff = self._handoffs.get(reshape_id)
            if handoff is None:
                raise IllegalTransition("it is about to begin")
            handoff.abort("it was aborted by hand")
        except IllegalTransition as error:
            raise RequestError(409, f"too late to abort: {error}", "id", repr(reshape_id)) from None
        return found

    @property
    def under_way(self) -> int:
        return sum(not state.ended for state in self._states)

    @property
    def busy(self) -> set[str]:
        """Shards that a reshape under way takes or makes."""
        made = {t.shard_id for state in self._states if not state.ended for t in state.targets}
        return self.moving | made

    @property
    def needed(self) -> set[str]:
        """Shards whose copies must stay, whatever the table says: those of a target that still
        copies are named by nothing else, nor those of a source that tells where its range went."""
        return {*self._coordinator.names, *self.busy, *self._leaving}

    def act(self, plan: Plan) -> None:
        """Do what the plan says; what can't be done now is planned again."""
        for reshape in plan.reshapes:
            try:
                parts = [Part(target.key_range, target.node_id) for target in reshape.targets]
                state = self.start(reshape.kind, reshape.sources, parts)
                LOG.info("the plan's %s %s: %s", reshape.kind, state.id, reshape.why)
            except RequestError as error:
                LOG.info("a planned %s of %s waits: %s", reshape.kind, reshape.sources, error)

    def check(self, sources: Sequence[str]) -> None:
        """Raises RequestError if these shards can't be reshaped together now."""
        known = {slot.shard_id: slot for slot in self._coordinator.slots}
        for shard_id in sources:
            if shard_id not in known:
                raise RequestError(
                    404, "no such shard", "shards", repr(shard_id), ", ".join(sorted(known))
                )
            if shard_id in self.moving:
                raise RequestError(409, "its range is being handed over", "shards", repr(shard_id))
        for one, other in pairwise([known[shard_id].key_range for shard_id in sources]):
            if one.stop != other.start:
                raise RequestError(
                    400,
                    "the shards are not side by side in this order",
                    "shards",
                    repr(list(sources)),
                    "shards whose ranges follow each other",
                )
        if len(set(sources)) < len(sources) or not sources:
            raise RequestError(400, "each shard once", "shards", repr(list(sources)), "1 or more")
        if self._coordinator.importing:
            raise RequestError(409, "an import is running: ranges move when it is done")

    def start(self, kind: str, sources: Sequence[str], parts: Sequence[Part]) -> Reshaping:
        """Replace shards side by side by others; returns at once. Raises RequestError."""
        self.check(sources)
        if not 1 <= len(parts) <= TARGETS_MAX:
            raise RequestError(400, "too many parts", "at", str(len(parts)), f"1 to {TARGETS_MAX}")
        names = self._new_names(len(parts))
        targets = [
            TargetState(name, f"{p.key_range.start:x}", f"{p.key_range.stop:x}", p.node_id)
            for name, p in zip(names, parts, strict=True)
        ]
        state = Reshaping(
            "r" + secrets.token_hex(4), kind, list(sources), targets, started_at=round(time(), 3)
        )
        self._states.append(state)
        while len(self._states) > RESHAPES_KEPT and self._states[0].ended:
            self._states.popleft()
        self._coordinator.reshaping += 1
        self._spawn(self._run(state, parts))
        return state

    def _new_names(self, count: int) -> list[str]:
        named = {slot.shard_id for slot in self._coordinator.slots} | self._leaving
        named |= {target.shard_id for state in self._states for target in state.targets}
        last = max((int(name) for name in named if name.isdecimal()), default=-1)
        return [str(last + 1 + i) for i in range(count)]

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, state: Reshaping, parts: Sequence[Part]) -> None:
        started_s = asyncio.get_running_loop().time()
        try:
            handed = await self._hand_over(state, parts)
        except Exception as error:
            LOG.exception("reshape %s failed", state.id)
            handed = Handed(Step.ABORTED, str(error) or repr(error))
        finally:
            self._coordinator.reshaping -= 1
        self._handoffs.pop(state.id, None)
        state.step, state.reason = handed.step.value, handed.reason
        state.seconds = round(asyncio.get_running_loop().time() - started_s, 3)
        state.frozen_seconds = round(handed.frozen_s, 4)
        LOG.info("reshape %s: %s", state.id, msgspec.json.encode(state).decode())
        await self._clean_up(state)

    async def _hand_over(self, state: Reshaping, parts: Sequence[Part]) -> Handed:
        coordinator, custody = self._coordinator, self._custody
        sources = {one.shard_id: one for one in coordinator.slots if one.shard_id in state.sources}
        table = await custody.read()
        assert table is not None
        epochs = {shard_id: table.claim(shard_id).epoch for shard_id in sources}
        epoch = max(epochs.values()) + 1
        targets: dict[str, _Target] = {}
        for name, part in zip([one.shard_id for one in state.targets], parts, strict=True):
            targets[name] = _Target(self, state.id, name, part, epoch, list(sources.values()))
        try:
            # One process after the other: their start takes a core from those who answer.
            for target in targets.values():
                await target.make()
            handoff = self._handoffs[state.id] = Handoff(
                state.id,
                epochs,
                {name: _Giver(slot, coordinator) for name, slot in sources.items()},
                {name: target.claim for name, target in targets.items()},
                targets,
                custody.store,
                _pause,
                lambda: self._land(state, targets),
            )
        except BaseException:
            for target in targets.values():
                await target.discard()
            raise
        return await handoff.run()

    async def _land(self, state: Reshaping, targets: dict[str, _Target]) -> None:
        slots = [target.slot for target in targets.values()]
        self._leaving |= set(state.sources)
        await self._coordinator.replace(state.sources, slots)
        LOG.info("reshape %s: the map has %s now", state.id, [slot.shard_id for slot in slots])

    async def _clean_up(self, state: Reshaping) -> None:
        """End the sources of a handoff that is done, and remove what nobody needs any more."""
        if state.step == Step.DONE.value:
            await asyncio.sleep(LINGER_S)
            await self._coordinator.end(state.sources)
            self._leaving -= set(state.sources)
        try:
            await self._on_shards(self._coordinator.names)
            await self._custody.clean_gone(lambda: self.needed)
        except OnehopError as error:
            LOG.warning("not all is cleaned up after reshape %s: %s", state.id, error)

    # What targets need.

    async def adopt(self, slot: Slot) -> None:
        """Tell a shard that is to be whatever all shards are told, from now on."""
        await self._coordinator.adopt(slot)
        await self._on_shards(self._coordinator.names)

    async def make(self, target: _Target) -> ShardHandle:
        """Its process, and a backup if its sources have one. Sets its claim."""
        shard_id, part = target.slot.shard_id, target.part
        copy = Copy(new_copy_id(), part.node_id)
        peer = None
        if self._custody.config.level == "replica":
            peer = await self._custody.candidate(shard_id, part.node_id, target.epoch)
            if peer is None:
                raise Unavailable("there is no second node for its backup")
        backup = peer.copy if peer else None
        target.claim = claim_of(shard_id, part.key_range, target.epoch, copy, backup)
        target.peer = peer
        target.slot.place = Place(copy.copy_id, part.node_id)
        return await self._new_shard(shard_id, part.key_range, target.slot.place)

    async def forsake(self, slot: Slot) -> None:
        self._coordinator.forsake(slot)
        if slot.handle is not None:
            await slot.handle.kill()


class _Giver:
    """A source as a handoff sees it."""

    def __init__(self, slot: Slot, coordinator: Coordinator) -> None:
        self._handle: Movable = slot.handle  # type: ignore[assignment]
        self._coordinator = coordinator

    async def freeze(self, handoff: str, epoch: int) -> int:
        return await self._handle.freeze(handoff, epoch)

    async def resume(self, handoff: str) -> None:
        await self._handle.resume(handoff)

    async def release(self, handoff: str) -> None:
        await self._handle.release(handoff, self._coordinator.map.epoch)


class _Target:
    """A shard that is to be, as a handoff sees it."""

    claim: Claim
    peer: Peer | None = None

    def __init__(
        self,
        reshaper: Reshaper,
        handoff: str,
        shard_id: str,
        part: Part,
        epoch: int,
        sources: Sequence[Slot],
    ) -> None:
        self.slot = Slot(shard_id, part.key_range)
        self.part = part
        self.epoch = epoch
        self._reshaper = reshaper
        self._handoff = handoff
        self._sources = [Source(slot.shard_id, slot.key_range.start) for slot in sources]

    @property
    def _handle(self) -> Movable:
        if self.slot.handle is None:
            raise Unavailable(f"shard {self.slot.shard_id} was not made")
        return self.slot.handle  # type: ignore[return-value]

    async def make(self) -> None:
        self.slot.handle = await self._reshaper.make(self)
        async with asyncio.timeout(START_S):
            await self._handle.prepare()

    async def copy(self) -> None:
        order = Order(self._handoff, self.claim, self._sources, self.peer)
        self.slot.started = await self._handle.receive(order)
        self.slot.pid = (await self._handle.ping()).pid
        await self._reshaper.adopt(self.slot)
        await self._handle.follow_sources()

    async def lag(self) -> int:
        return await self._handle.lag()

    async def finish(self, last_seqs: Mapping[str, int]) -> None:
        await self._handle.finish(dict(last_seqs))

    async def serve(self, epoch: int) -> None:
        try:
            self.slot.started = await self._handle.own()
        except OnehopError:
            # The table names it all the same: it is started from its copy, as any that died.
            await self._handle.kill()
            raise

    async def discard(self) -> None:
        await self._reshaper.forsake(self.slot)


async def _pause() -> None:
    await asyncio.sleep(STORE_RETRY_S)
