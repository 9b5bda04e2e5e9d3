"""Ray's actors that run shards: found again, made, and on every node in use one to spare.

Most of what the start of a shard takes is that of a process: imports, and kernels that are loaded.
A spare has that behind it: a shard that died is back once its log is read, and a range moves
without the start of a process beside those who answer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.backup_actor import NAMESPACE, reach
from actors.custody import Place
from actors.ray_shard import RayShard
from actors.shard_actor import ShardActor
from actors.shard_handle import ShardHandle
from actors.supervision import START_S
from cluster.config import Config
from cluster.errors import Unavailable
from cluster.keys import KeyRange

LOG = logging.getLogger("onehop.actors")

PREFIX = "onehop-shard-"
CALL_S = 5.0
STARTING_S = 20.0
"""How long a spare may take until it can become a shard if it has just been started."""
SPARE_S = 120.0
"""How long a spare may take until it is ready; there may be no room for it."""
CPUS_LEFT = 1.0
"""What a spare leaves free on a node where gateways and others have a place, too."""
REST_S = 10.0
"""From the use of a spare to the start of the next: what needed it may still be busy."""
RETRY_S = 600.0


class _Process(NamedTuple):
    name: str
    actor: Any


class _Spare(NamedTuple):
    """loaded: whether it is ready; life: ends when it can't be, or has died."""

    process: _Process
    loaded: asyncio.Event
    life: asyncio.Task[None]


class ShardProcesses:
    """One per coordinator. config: also says what is logged, once the coordinator knows it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._living: dict[str, _Process] = {}
        """Shards that outlived a coordinator, until they are asked for."""
        self._processes: dict[str, _Process] = {}
        self._spares: dict[str, _Spare] = {}
        """By node."""
        self._next_s: dict[str, float] = {}
        """When a node may start its next one."""

    async def find(self, wanted: Collection[str]) -> None:
        """Find the shards that outlived a coordinator, and end what else runs: shards that no
        claim names any more, those that were replaced, spares."""
        listed = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        names = [a["name"] for a in listed if a["namespace"] == NAMESPACE]
        processes = []
        for name in names:
            if name.startswith(PREFIX):
                with suppress(ValueError):
                    processes.append(_Process(name, ray.get_actor(name, NAMESPACE)))
        told = await asyncio.gather(*(_who(process) for process in processes))
        newest = sorted(zip(told, processes, strict=True), key=lambda one: one[0][1])
        self._living = {
            shard_id: process for (shard_id, _), process in newest if shard_id in wanted
        }
        for process in processes:
            if process not in self._living.values():
                LOG.info("%s is ended: it is no shard that is wanted", process.name)
                ray.kill(process.actor)

    async def make(self, shard_id: str, key_range: KeyRange, place: Place) -> ShardHandle:
        """The shard that lives, or a process that is to start as this one. Raises Unavailable."""
        process = self._living.pop(shard_id, None)
        if process is None:
            what = f"{key_range.start:x}", f"{key_range.stop:x}", msgspec.json.encode(place)
            process = await self._become(place.node_id, shard_id, *what)
        self._processes[shard_id] = process
        return RayShard(process.actor)

    def names(self, shard_ids: Iterable[str]) -> dict[str, str]:
        """Ray's names of the actors of shards, as far as they have any."""
        return {one: self._processes[one].name for one in shard_ids if one in self._processes}

    def name(self, shard_id: str) -> str:
        """Ray's name of a shard's actor. Raises Unavailable if there never was such a shard."""
        return self._process(shard_id).name

    def actor(self, shard_id: str) -> Any:
        """Raises Unavailable if there never was such a shard."""
        return self._process(shard_id).actor

    def _process(self, shard_id: str) -> _Process:
        if shard_id not in self._processes:
            raise Unavailable(f"shard {shard_id} is not running")
        return self._processes[shard_id]

    async def stats(self, shard_id: str) -> dict[str, Any] | None:
        """A shard's counters; None if it can't be asked."""
        try:
            stats: dict[str, Any] = await reach(self.actor(shard_id).stats.remote(), CALL_S)
        except Unavailable:
            return None
        return stats

    async def keep_spares(self, node_ids: Collection[str], start: bool) -> None:
        """See to it that these nodes, as far as they have room, and no others have a spare each.

        Called every few seconds; starts one at most, and none unless it may `start` one.
        """
        now_s = asyncio.get_running_loop().time()
        for node_id, spare in list(self._spares.items()):
            if spare.life.done():
                LOG.warning("the spare of node %s is gone: %r", node_id, spare.life.exception())
                self._next_s[node_id] = now_s + (REST_S if spare.loaded.is_set() else RETRY_S)
            if spare.life.done() or node_id not in node_ids:
                self._end(self._spares.pop(node_id))
        for node_id in node_ids if start and self.config.spares else ():
            due = node_id not in self._spares and now_s >= self._next_s.get(node_id, 0.0)
            if due and await asyncio.to_thread(self._fits, node_id):
                process, loaded = self._start(node_id), asyncio.Event()
                life = asyncio.create_task(_live(process.actor, loaded))
                self._spares[node_id] = _Spare(process, loaded, life)
                return

    def close(self) -> None:
        """End all spares."""
        for spare in self._spares.values():
            self._end(spare)
        self._spares.clear()

    def _end(self, spare: _Spare) -> None:
        spare.life.cancel()
        ray.kill(spare.process.actor)

    async def _become(self, node_id: str, *what: Any) -> _Process:
        """A process that has become this shard: the spare of the node, else a new one."""
        spare = self._take(node_id)
        if spare is not None:
            try:
                # One that is not ready yet is sooner ready than another.
                limit_s = CALL_S if spare.loaded.is_set() else STARTING_S
                await reach(spare.process.actor.become.remote(*what), limit_s)
                spare.life.cancel()
                return spare.process
            except Unavailable as error:
                LOG.warning("the spare %s is of no use: %s", spare.process.name, error)
                self._end(spare)
            except BaseException:
                self._end(spare)
                raise
        process = self._start(node_id)
        try:
            await reach(process.actor.become.remote(*what), START_S)
        except BaseException:
            # Whoever asked has no handle by which to end it.
            ray.kill(process.actor)
            raise
        return process

    def _take(self, node_id: str) -> _Spare | None:
        """The spare of a node, or any if the node is all the same."""
        node_id = node_id or next(iter(self._spares), "")
        self._next_s[node_id] = asyncio.get_running_loop().time() + REST_S
        return self._spares.pop(node_id, None)

    @property
    def _claims(self) -> dict[str, float]:
        """What a process claims from Ray, for placement in a fleet; on one machine claims must
        never keep a shard, of which there may be more by now than at first, from starting."""
        claims = {"CPU": self.config.shard_cpus if self.config.address else 0.0}
        return claims | ({"shards": 1.0} if self.config.node_roles else {})

    def _fits(self, node_id: str) -> bool:
        """Whether a node has room for one more: what has to wait for it would have Ray's
        autoscaler add a node."""
        wanted = self._claims
        if wanted["CPU"] and not self.config.node_roles:
            wanted["CPU"] += CPUS_LEFT
        free = available_resources_per_node().get(node_id, {})  # type: ignore[no-untyped-call]
        return all(free.get(name, 0.0) >= amount for name, amount in wanted.items())

    def _start(self, node_id: str) -> _Process:
        name = PREFIX + secrets.token_hex(8)
        where: dict[str, Any] = {}
        claims = self._claims
        if node_id:
            where["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
        try:
            actor = ShardActor.options(  # type: ignore[attr-defined]
                name=name,
                lifetime="detached",
                num_cpus=claims.pop("CPU"),
                resources=claims,
                **where,
            ).remote(msgspec.json.encode(self.config))
        except RayError as error:
            raise Unavailable(f"no process can be started: {error}") from None
        return _Process(name, actor)


async def _who(process: _Process) -> tuple[str, int]:
    """Which shard a process is, and its epoch; ("", 0) if it is none or does not say."""
    try:
        shard_id, epoch = await reach(process.actor.who.remote(), START_S)
    except Unavailable as error:
        LOG.warning("%s does not say which shard it is: %s", process.name, error)
        return "", 0
    return shard_id, epoch


async def _live(actor: Any, loaded: asyncio.Event) -> None:
    """The life of a spare. Raises what ends it."""
    await reach(actor.load.remote(), SPARE_S)
    loaded.set()
    await actor.forever.remote()
