"""Ray's shell around a node's backups, and the nodes as the coordinator sees them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.backup import Backups
from actors.copies import CopyFolder, CopyFound, CopyState, copies_here, remove_copy
from actors.epoch_store import open_store, reached_directly
from actors.quiet import come_first
from cluster.access import read_secret
from cluster.config import Config
from cluster.errors import OnehopError, Unavailable
from cluster.ownership import EpochStore, Table

LOG = logging.getLogger("onehop.actors")

NAMESPACE = "onehop"
COORDINATOR = "onehop-coordinator"
CALL_S = 5.0
START_S = 60.0
PING_S = 1.0
Result = TypeVar("Result")


def backup_actor_name(node_id: str) -> str:
    """Ray's name of the actor that keeps a node's backups."""
    return f"onehop-backups-{node_id}"


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class BackupActor:
    """One per node. All methods may interleave at their awaits."""

    def __init__(self, config_json: bytes) -> None:
        self.config = msgspec.json.decode(config_json, type=Config)
        logging.basicConfig(level=self.config.log_level)
        come_first()
        self.backups: Backups | None = None
        self.starting = asyncio.Lock()

    async def _started(self) -> Backups:
        async with self.starting:
            if self.backups is None:
                backups = Backups(self.config, read_secret(self.config))
                host = self.config.shard_host
                if host == "node":
                    host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
                await backups.start(host)
                self.backups = backups
        return self.backups

    async def ping(self) -> int:
        return os.getpid()

    async def copies(self) -> list[CopyFound]:
        return await asyncio.to_thread(copies_here, self.config)

    async def create(self, shard_id: str, copy_id: str, state_json: bytes) -> None:
        state = msgspec.json.decode(state_json, type=CopyState)
        CopyFolder(self.config, shard_id, copy_id).create(state)

    async def remove(self, shard_id: str, copy_id: str) -> None:
        (await self._started()).drop(shard_id, copy_id)
        await asyncio.to_thread(remove_copy, self.config, shard_id, copy_id)

    async def follow(
        self, shard_id: str, copy_id: str, made_for: int | None
    ) -> tuple[str, int, int]:
        """Where the copy listens, and this process."""
        backups = await self._started()
        backups.open(shard_id, copy_id, made_for)
        return (*backups.address, os.getpid())

    async def release(self, shard_id: str, copy_id: str, epoch: int) -> float:
        return await (await self._started()).release(shard_id, copy_id, epoch)


@ray.remote(num_cpus=0, max_retries=0)
def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


async def release_backup(node_id: str, shard_id: str, copy_id: str, epoch: int) -> float:
    """`Backups.release` on this node, if there are backups. Raises Unavailable."""
    try:
        actor: Any = ray.get_actor(backup_actor_name(node_id), NAMESPACE)
    except ValueError:
        raise Unavailable("no process follows with this copy") from None
    lease_s: float = await reach(actor.release.remote(shard_id, copy_id, epoch), CALL_S)
    return lease_s


class RayNodes:
    """`Nodes` over Ray. What lies on the coordinator's own node is looked at without an actor."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._own = ray.get_runtime_context().get_node_id()
        self._actors: dict[str, Any] = {}
        self._pids: dict[str, int] = {}
        self._left: set[str] = set()

    def alive(self) -> list[str]:
        role = "shards" if self._config.node_roles else "CPU"
        return sorted(
            node["NodeID"]
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
            and node["Resources"].get(role, 0) > 0
            and node["NodeID"] not in self._left
        ) or [self._own]

    async def copies(self, node_id: str) -> list[CopyFound]:
        if node_id == self._own:
            return await asyncio.to_thread(copies_here, self._config)
        found: list[CopyFound] = await self._call(node_id, "copies")
        return [CopyFound(*one) for one in found]

    async def create(self, node_id: str, shard_id: str, copy_id: str, state: CopyState) -> None:
        if node_id == self._own:
            CopyFolder(self._config, shard_id, copy_id).create(state)
        else:
            await self._call(node_id, "create", shard_id, copy_id, msgspec.json.encode(state))

    async def remove(self, node_id: str, shard_id: str, copy_id: str) -> None:
        if node_id == self._own and node_id not in self._actors:
            await asyncio.to_thread(remove_copy, self._config, shard_id, copy_id)
            return
        await self._call(node_id, "remove", shard_id, copy_id)

    async def follow(
        self, node_id: str, shard_id: str, copy_id: str, made_for: int | None
    ) -> tuple[str, int]:
        host, port, pid = await self._call(node_id, "follow", shard_id, copy_id, made_for)
        self._pids[node_id] = pid
        return host, port

    async def check(self, node_id: str) -> None:
        if node_id in self._pids:
            try:
                await self._call(node_id, "ping", timeout_s=PING_S)
            except Unavailable:
                await self.kill(node_id, self._pids.pop(node_id))
                self._actors.pop(node_id, None)

    async def kill(self, node_id: str, pid: int) -> None:
        try:
            if node_id == self._own:
                os.kill(pid, signal.SIGKILL)
            else:
                task: Any = _kill
                await reach(task.options(scheduling_strategy=_on(node_id)).remote(pid), CALL_S)
        except (ProcessLookupError, OnehopError) as error:
            LOG.info("process %d of node %s is not ended: %s", pid, node_id, error)

    async def _call(self, node_id: str, method: str, *args: Any, timeout_s: float = CALL_S) -> Any:
        actor = self._actors.get(node_id)
        if actor is None:
            timeout_s = max(timeout_s, START_S)
            actor = self._actors[node_id] = BackupActor.options(  # type: ignore[attr-defined]
                name=backup_actor_name(node_id),
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                scheduling_strategy=_on(node_id),
            ).remote(msgspec.json.encode(self._config))
        try:
            return await reach(getattr(actor, method).remote(*args), timeout_s)
        except Unavailable:
            # It may have died: the next call makes another, or finds the one that is.
            self._actors.pop(node_id, None)
            raise

    def leave(self, node_id: str) -> None:
        """Nothing is on this node any more: end its backups, and begin none there."""
        self._left.add(node_id)
        actor = self._actors.pop(node_id, None)
        self._pids.pop(node_id, None)
        if actor is not None:
            ray.kill(actor)

    def come_back(self, node_id: str) -> None:
        """The node may have backups again."""
        self._left.discard(node_id)

    def close(self) -> None:
        """End all backups."""
        for actor in self._actors.values():
            ray.kill(actor)


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


class CoordinatorsStore:
    """The epoch store of the coordinator's node, as others reach it."""

    async def read(self) -> tuple[int, Table | None]:
        version, table = await ask_coordinator("read_table")
        return version, None if table is None else msgspec.json.decode(table, type=Table)

    async def swap(self, version: int, table: Table) -> bool:
        done: bool = await ask_coordinator("swap_table", version, msgspec.json.encode(table))
        return done


async def ask_coordinator(method: str, *args: Any) -> Any:
    """What the coordinator's actor answers. Raises Unavailable, or the OnehopError it raised."""
    try:
        coordinator: Any = ray.get_actor(COORDINATOR, NAMESPACE)
    except ValueError:
        raise Unavailable("there is no coordinator") from None
    return await reach(getattr(coordinator, method).remote(*args), CALL_S)


def store_of(config: Config) -> EpochStore:
    """The epoch store as a shard reaches it."""
    return open_store(config) if reached_directly(config) else CoordinatorsStore()


async def reach(call: Awaitable[Result], timeout_s: float) -> Result:
    """The result of an actor call. Raises the OnehopError that it raised, else Unavailable."""
    try:
        return await asyncio.wait_for(asyncio.ensure_future(call), timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, OnehopError):
            raise error.cause from None
        raise Unavailable(f"a call failed: {error.cause!r}") from None
    except TimeoutError:
        raise Unavailable(f"no answer within {timeout_s} s") from None
    except (RayError, ValueError) as error:
        raise Unavailable(f"can't be reached: {error}") from None
