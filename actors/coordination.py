"""The coordinator with all that works for it, as callers of the cluster reach it.

All methods may interleave; the map changes in one turn.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, TypeVar

import msgspec
import ray
from ray.exceptions import RayError

from actors.archive import Store
from actors.backup_actor import RayNodes
from actors.cluster_archive import ClusterArchive
from actors.coordinator import Coordinator
from actors.custody import Custody, Place
from actors.epoch_store import open_store
from actors.fleet_care import Desks, FleetCare
from actors.machines_actor import RayMachines, machines_of
from actors.model_actor import MODEL_ACTOR, ModelActor
from actors.planning import Advisor
from actors.quiet import come_first
from actors.recovery import lock_folder
from actors.reshape_desk import ReshapeDesk, ReshapeRequest
from actors.reshaping import Reshaper
from actors.shard_handle import ShardHandle
from actors.shard_processes import ShardProcesses
from actors.warm_start_actor import Imports
from cluster.config import Config
from cluster.errors import RequestError
from cluster.keys import KeyRange
from cluster.ownership import Table
from cluster.partition_map import encode_map
from cluster.placement import ON_HEAD, Node

LOG = logging.getLogger("onehop.actors")

PLAN_S = 5.0
Result = TypeVar("Result")


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


class Coordination:
    """One per cluster, in a `CoordinatorActor`. It adopts the shards that outlived the last one."""

    def __init__(self, config_json: bytes) -> None:
        self.config = msgspec.json.decode(config_json, type=Config)
        logging.basicConfig(level=self.config.log_level)
        come_first()
        self.store = open_store(self.config)
        self.custody: Custody | None = None
        self.lock: int | None = None
        self.nodes = RayNodes(self.config)
        if self.config.durability != "memory":
            self.custody = Custody(self.config, self.store, self.nodes)
        self.processes = ShardProcesses(self.config)
        self.coordinator = Coordinator(self.config, self._new_shard, self.custody)
        self.imports = Imports(self.config, self.coordinator, self.processes.actor)
        self.advisor = Advisor(self.config)
        self.reshaper: Reshaper | None = None
        self.desk: ReshapeDesk | None = None
        if self.custody is not None:
            self.reshaper = Reshaper(
                self.coordinator, self.custody, self._new_shard, self._on_shards
            )
            self.desk = ReshapeDesk(
                self.coordinator, self.custody, self.reshaper, self.advisor, self._all_nodes
            )
        machines = RayMachines(self.config, self.nodes)
        fleet = None
        if self.custody is not None and self.reshaper is not None and self.desk is not None:
            fleet = Desks(self.custody, self.reshaper, self.desk)
        self.care = FleetCare(self.config, self.advisor, fleet, machines, self._pairs)
        self.starting: asyncio.Task[None] | None = None
        self.model: Any = None
        self.archiver: asyncio.Task[None] | None = None
        self.advising: asyncio.Task[None] | None = None
        self.telling: asyncio.Task[None] | None = None
        self.cleaning: asyncio.Task[None] | None = None

    async def _started(self) -> Coordinator:
        """The coordinator, once its shards are up; the first caller starts them.

        After a failure the next caller does: a shard may have been dying beside a coordinator.
        """
        if self.starting is None or _failed(self.starting):
            self.starting = asyncio.create_task(self._start())
        await asyncio.shield(self.starting)
        return self.coordinator

    async def _start(self) -> None:
        if self.custody is not None and self.lock is None:
            # Two onehops on one data folder would each take the other's shards for dead.
            folder = self.config.data_path / "shards"
            self.lock = await asyncio.to_thread(lock_folder, folder, name="coordinator.lock")
        await self.coordinator.open()
        if self.custody is not None:
            self.processes.config = self.custody.config
        await self.processes.find(set(self.coordinator.restarts()))
        # Before the shards, beside whose start its process can do its imports.
        self.model = ModelActor.options(  # type: ignore[attr-defined]
            name=MODEL_ACTOR, lifetime="detached", get_if_exists=True, resources=ON_HEAD
        ).remote(msgspec.json.encode(self.config))
        await self.coordinator.start()
        await self._on_shards(self.coordinator.names)
        if self.custody is not None and self.reshaper is not None:
            reshaper = self.reshaper
            cleaning = self.custody.clean_gone(lambda: reshaper.needed)
            self.cleaning = asyncio.create_task(cleaning)
        self.advising = asyncio.create_task(self._advise())
        if self.config.archive_uri and self.config.durability != "memory":
            self.archiver = asyncio.create_task(self._archive())
        try:
            await self.model.start.remote()
        except RayError as error:
            # Shards answer without it, from what each of them learned.
            LOG.error("the model actor did not start: %s", error)

    async def _on_shards(self, shard_ids: list[str]) -> None:
        """Let these learn together."""
        try:
            await self.model.set_shards.remote(self.processes.names(shard_ids))
            await self.model.start.remote()
        except RayError as error:
            LOG.error("the model actor does not know which shards there are: %s", error)

    async def _archive(self) -> None:
        """Copy what belongs to no shard to the archive: models, layout, manifests of imports."""
        store = await asyncio.to_thread(Store, self.config.archive_uri)
        archive = ClusterArchive(store, self.config.data_path)
        while True:
            owners = self.coordinator.map.owners
            named = [owner.shard_id for owner in owners]
            epoch, now_s = self.coordinator.map.epoch, asyncio.get_running_loop().time()
            await asyncio.to_thread(archive.step, epoch, named, now_s)
            await asyncio.sleep(self.config.archive_s)

    async def _advise(self) -> None:
        """Measure shards and nodes again and again, for the plan."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(PLAN_S)
            try:
                partition_map = self.coordinator.map
                names = [owner.shard_id for owner in partition_map.owners]
                stats = await asyncio.gather(*map(self.processes.stats, names))
                found = dict(zip(names, stats, strict=True))
                await self.care.step(loop.time(), partition_map, found)
                # Also a model actor that died and came back has to be told.
                await self._on_shards(self.coordinator.names)
                # While ranges move, the start of a process would be in the way.
                start = not self.coordinator.reshaping
                await self.processes.keep_spares(self._nodes_in_use(), start)
            except Exception:
                # Advice is never worth a shard's life; the next measurement may be possible.
                LOG.exception("no plan can be made")

    async def read_table(self) -> tuple[int, bytes | None]:
        """The epoch store, for those who can't reach it by themselves."""
        version, table = await self.store.read()
        return version, None if table is None else msgspec.json.encode(table)

    async def swap_table(self, version: int, table_json: bytes) -> bool:
        return await self.store.swap(version, msgspec.json.decode(table_json, type=Table))

    async def _new_shard(self, shard_id: str, key_range: KeyRange, place: Place) -> ShardHandle:
        handle = await self.processes.make(shard_id, key_range, place)
        if self.advising is not None:
            # What it learns is asked for under its new name.
            self.telling = asyncio.create_task(self._on_shards(self.coordinator.names))
        return handle

    async def shard_actor(self, shard_id: str) -> str:
        """Ray's name of the actor that is this shard now. Raises Unavailable."""
        return self.processes.name(shard_id)

    async def map(self) -> bytes:
        return encode_map((await self._started()).map)

    async def wait_map(self, epoch: int, timeout_s: float) -> bytes:
        return encode_map(await (await self._started()).wait_map(epoch, timeout_s))

    async def put_items(self, tenant: str, items_json: bytes) -> bytes:
        results = await (await self._started()).put_items(tenant, items_json)
        return msgspec.json.encode(results)

    async def delete_items(self, tenant: str, ids: list[str]) -> list[bool]:
        return await (await self._started()).take_down(tenant, ids)

    async def register_items(self, tenant: str, ids: list[str]) -> int:
        return await (await self._started()).register_items(tenant, ids)

    async def item_ids(self, tenant: str) -> list[str]:
        return (await self._started()).item_ids(tenant)

    async def put_document(
        self,
        tenant: str,
        kind: str,
        document_id: str,
        content: bytes,
        expected: int | None,
        dry_run: bool,
    ) -> bytes:
        desk = (await self._started()).documents
        put = await desk.put(tenant, kind, document_id, content, expected, dry_run)
        return msgspec.json.encode(put)

    async def delete_document(
        self, tenant: str, kind: str, document_id: str, expected: int | None
    ) -> bytes:
        desk = (await self._started()).documents
        return msgspec.json.encode(await desk.delete(tenant, kind, document_id, expected))

    async def get_document(
        self, tenant: str, kind: str, document_id: str, version: int | None
    ) -> bytes:
        desk = (await self._started()).documents
        return msgspec.json.encode(desk.get(tenant, kind, document_id, version))

    async def list_documents(self, tenant: str, kind: str) -> bytes:
        return msgspec.json.encode((await self._started()).documents.all_of(tenant, kind))

    async def start_import(self, tenant: str, spec_json: bytes) -> bytes:
        await self._started()
        return await self.imports.start(tenant, spec_json)

    async def import_status(self, tenant: str, import_id: str) -> bytes | None:
        return self.imports.status(tenant, import_id)

    async def restarts(self) -> dict[str, int]:
        return self.coordinator.restarts()

    async def plan(self) -> bytes:
        await self._started()
        return msgspec.json.encode(self.advisor.advice())

    async def reshape(self, request_json: bytes) -> bytes:
        """Start a split, a merge or a move; its state. Raises RequestError."""
        await self._started()
        try:
            request = msgspec.json.decode(request_json, type=ReshapeRequest)
        except msgspec.DecodeError as error:
            raise RequestError(422, str(error), "", "", "a reshape") from None
        return msgspec.json.encode(self._desk().ask(request))

    async def reshapes(self) -> bytes:
        await self._started()
        return msgspec.json.encode([] if self.reshaper is None else self.reshaper.states())

    async def abort_reshape(self, reshape_id: str) -> bytes:
        """Raises RequestError: 404 unknown, 409 too late."""
        await self._started()
        self._desk()
        assert self.reshaper is not None
        return msgspec.json.encode(self.reshaper.abort(reshape_id))

    async def drain(self, node_id: str) -> bytes:
        """Empty a node; the reshapes that run. Raises RequestError."""
        await self._started()
        return msgspec.json.encode(self._desk().drain(node_id))

    async def undrain(self, node_id: str) -> bytes:
        await self._started()
        return msgspec.json.encode(self._desk().undrain(node_id))

    async def drains(self) -> bytes:
        await self._started()
        return msgspec.json.encode([] if self.desk is None else await self.desk.drains())

    async def nodes_with_shards(self) -> bytes:
        """The nodes, and what is on them."""
        report = await self.care.report((await self._started()).map)
        return msgspec.json.encode(report)

    def _pairs(self) -> bool:
        return self.custody is not None and self.custody.config.level == "replica"

    def _desk(self) -> ReshapeDesk:
        if self.desk is None:
            wanted = "disk or replica: ranges move by their logs"
            raise RequestError(409, "nothing is logged here", "durability", "memory", wanted)
        return self.desk

    def _nodes_in_use(self) -> set[str]:
        """Nodes with a shard or a copy of one; not those that are to go."""
        used = {owner.node_id for owner in self.coordinator.map.owners}
        if self.custody is not None and self.custody.table is not None:
            backups = (claim.backup for claim in self.custody.table.claims)
            used |= {backup.node_id for backup in backups if backup is not None}
            used -= self.custody.draining
        return used.intersection(self.nodes.alive())

    def _all_nodes(self) -> list[Node]:
        machines = machines_of(self.config, ray.nodes())  # type: ignore[no-untyped-call]
        return [Node(m.node_id, m.cpus, m.memory_bytes) for m in machines]

    async def model_versions(self, tenant: str) -> bytes:
        await self._started()
        return msgspec.json.encode(await self.model.versions.remote(tenant))

    async def roll_back_model(self, tenant: str, name: str) -> str | None:
        """Name of the version that serves now; None if no version of that name is saved."""
        await self._started()
        serving: str | None = await self.model.rollback.remote(tenant, name)
        return serving

    async def shutdown(self) -> None:
        await self.care.close()
        if self.model is not None:
            try:
                await self.model.stop.remote()
            except RayError as error:
                LOG.error("the model actor did not save: %s", error)
            ray.kill(self.model)
        await self.coordinator.shutdown()
        self.processes.close()
        self.nodes.close()
