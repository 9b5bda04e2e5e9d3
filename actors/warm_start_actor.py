"""Warm start on Ray: tasks read row groups, actors own ranges. A shell around `warm_start`.

Chunks go from reader to owner through the object store; the driver only passes references on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from time import time
from typing import Any, get_args

import msgspec
import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError

from actors.coordinator import Coordinator, ItemResult
from actors.import_rows import Lookup
from actors.messages import BATCH_MAX
from actors.model_actor import MODEL_ACTOR
from actors.parquet_input import Kind, Source, check_roots
from actors.readers import ReadPlan, read_events, read_items, read_profiles, survey
from actors.warm_start import Batch, ImportSpec, Progress, Survey, WarmStart
from cluster.config import Config
from cluster.errors import OnehopError, RequestError, Unavailable

LOG = logging.getLogger("onehop.actors")
NAMESPACE = "onehop"

BATCHES_AHEAD = 8
"""Batches that a reader keeps in the object store before it waits for the owners."""
IMPORTS_MAX = 64
"""Imports whose status is kept, the newest."""

# Readers claim no CPU: shards and gateways may have claimed all, and the import must still run.
# How many run at once is bounded by `RayReaders.parallel`.
_task: Any = ray.remote(num_cpus=0, max_retries=2, scheduling_strategy="SPREAD")
_stream: Any = ray.remote(
    num_cpus=0, max_retries=2, scheduling_strategy="SPREAD", num_returns="streaming"
)


@_task
def _survey(source: Source, group: int) -> Survey:
    return survey(source, group)


@_stream
def _events(
    plan: ReadPlan, source: Source, group: int, lookup: Lookup, starts: NDArray[np.uint64]
) -> Iterator[Any]:
    for batch in read_events(plan, source, group, lookup, starts):
        yield batch._replace(chunks=[])
        for chunk in batch.chunks:  # noqa: UP028 - Ray sends into the generator, a list can't take it
            yield chunk


@_stream
def _profiles(
    plan: ReadPlan, source: Source, group: int, starts: NDArray[np.uint64]
) -> Iterator[Any]:
    for batch in read_profiles(plan, source, group, starts):
        yield batch._replace(chunks=[])
        for chunk in batch.chunks:  # noqa: UP028 - Ray sends into the generator, a list can't take it
            yield chunk


@_stream
def _items(source: Source, group: int) -> Iterator[Batch]:
    yield from read_items(source, group)


class RayReaders:
    """`Readers` as Ray tasks; a batch's chunks are object references."""

    def __init__(self, plan: ReadPlan, parallel: int) -> None:
        self.parallel = parallel
        self._plan = plan
        self._shared: dict[int, tuple[Lookup, Any]] = {}

    async def survey(self, source: Source, group: int) -> Survey:
        found: Survey = await _reach(_survey.remote(source, group))
        return found

    def events(
        self, source: Source, group: int, lookup: Lookup, starts: NDArray[np.uint64]
    ) -> AsyncIterator[Batch]:
        # One copy in the object store serves all readers of a node.
        if id(lookup) not in self._shared:
            self._shared[id(lookup)] = (lookup, ray.put(lookup))
        reference = self._shared[id(lookup)][1]
        task = _events.options(_generator_backpressure_num_objects=_ahead(starts))
        stream = task.remote(self._plan, source, group, reference, starts)
        return self._batches(stream, len(starts))

    def profiles(
        self, source: Source, group: int, starts: NDArray[np.uint64]
    ) -> AsyncIterator[Batch]:
        task = _profiles.options(_generator_backpressure_num_objects=_ahead(starts))
        return self._batches(task.remote(self._plan, source, group, starts), len(starts))

    async def items(self, source: Source, group: int) -> AsyncIterator[Batch]:
        task = _items.options(_generator_backpressure_num_objects=2)
        async for reference in task.remote(source, group):
            yield await _reach(reference)

    async def _batches(self, stream: Any, owners: int) -> AsyncIterator[Batch]:
        async for reference in stream:
            batch: Batch = await _reach(reference)
            chunks = 0 if self._plan.dry else owners
            yield batch._replace(chunks=[await anext(stream) for _ in range(chunks)])


def _ahead(starts: NDArray[np.uint64]) -> int:
    return BATCHES_AHEAD * (len(starts) + 1)


class RayOwner:
    """`Owner` over a shard's actor."""

    def __init__(self, actor: Any, start: int, tenant: str) -> None:
        self.start = start
        self._tenant = tenant
        self._actor = actor

    async def load(self, kind: Kind, token: str, chunk: Any) -> None:
        if kind == "events":
            await _reach(self._actor.load_events.remote(token, self._tenant, chunk))
        else:
            await _reach(self._actor.load_profiles.remote(token, self._tenant, chunk))

    async def tokens(self, prefix: str) -> set[str]:
        return set(await _reach(self._actor.load_tokens.remote(prefix)))

    async def event_numbers(self, names: list[str]) -> list[int]:
        numbers: list[int] = await _reach(self._actor.event_numbers.remote(self._tenant, names))
        return numbers

    async def finish(self) -> None:
        # One base for all owners, built once; a second owner's wish finds nothing left to merge.
        model: Any = ray.get_actor(MODEL_ACTOR, namespace=NAMESPACE)
        await _reach(model.merge.remote())
        await _reach(self._actor.end_load.remote(self._tenant))


class CoordinatedItems:
    """`Items` over the coordinator of this process."""

    def __init__(self, coordinator: Coordinator, tenant: str) -> None:
        self._coordinator = coordinator
        self._tenant = tenant

    async def ids(self) -> list[str]:
        return self._coordinator.item_ids(self._tenant)

    async def register(self, ids: list[str]) -> None:
        await self._coordinator.register_items(self._tenant, ids)

    async def put(self, items: list[bytes]) -> list[str]:
        wrong: list[str] = []
        for start in range(0, len(items), BATCH_MAX):
            body = b"[" + b",".join(items[start : start + BATCH_MAX]) + b"]"
            results = await self._coordinator.put_items(self._tenant, body)
            wrong += [_why(result) for result in results]
        return wrong


def _why(result: ItemResult) -> str:
    return "" if result.error is None else result.error.detail or result.error.title


async def _reach(call: Awaitable[Any]) -> Any:
    """The result of a Ray call. Raises Unavailable if who was called has died."""
    try:
        return await call
    except RayError as error:
        cause: Any = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, OnehopError):
            raise cause from None
        if cause is not None:
            raise
        raise Unavailable(f"a shard or reader died during the import: {error}") from None


async def _prepare(
    spec: ImportSpec,
    config: Config,
    coordinator: Coordinator,
    actor_of: Callable[[str], Any],
    progress: Callable[[Progress], None],
) -> WarmStart:
    owners = [
        RayOwner(actor_of(owner.shard_id), owner.range.start, spec.tenant)
        for owner in coordinator.map.owners
    ]
    plan = ReadPlan(spec.tenant, time() + config.event_future_s, spec.dry_run)
    # Readers and owners share the cores; a reader is about as fast as the owners it feeds.
    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    readers = RayReaders(plan, max(1, cores // 2))
    items = CoordinatedItems(coordinator, spec.tenant)
    folder = config.data_path / "imports"
    # Reads every footer, which takes a while for many files.
    return await asyncio.to_thread(WarmStart, spec, owners, items, readers, folder, progress)


class ImportStatus(msgspec.Struct, rename="camel"):
    """What `GET /v1/imports/{id}` answers. `state` is running, done or failed."""

    id: str
    state: str
    rows_done: int
    rows_total: int
    accepted: int = 0
    rejected: int = 0
    rejected_by_reason: dict[str, int] = {}
    rejects_file: str = ""
    items_added: int = 0
    seconds: float = 0.0
    rows_per_s: float = 0.0
    resumed_from: int = 0
    dry_run: bool = False
    error: str = ""


class Imports:
    """The imports of a cluster, those that run and the last that ran.

    actor_of  Ray's actor of a shard; raises Unavailable
    """

    def __init__(
        self, config: Config, coordinator: Coordinator, actor_of: Callable[[str], Any]
    ) -> None:
        self._config = config
        self._coordinator = coordinator
        self._actor_of = actor_of
        self._status: dict[tuple[str, str], ImportStatus] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, tenant: str, spec_json: bytes) -> bytes:
        """Check the files and start; the status as JSON.

        Raises RequestError if a file can't be used or the same import is running.
        """
        spec = msgspec.structs.replace(_decode(spec_json), tenant=tenant)
        for kind in get_args(Kind):
            if (path := getattr(spec, kind)) is not None:
                check_roots(path, kind, self._config.import_paths)
        status = ImportStatus("", "running", 0, 0, dry_run=spec.dry_run)

        def progress(step: Progress) -> None:
            status.rows_done, status.rows_total = step.done, step.total
            status.accepted, status.rejected = step.accepted, step.rejected

        await self._coordinator.begin_import()
        try:
            work = await _prepare(spec, self._config, self._coordinator, self._actor_of, progress)
        except BaseException:
            self._coordinator.importing -= 1
            raise
        status.id, status.rows_total = work.import_id, work.rows_total
        while len(self._status) >= IMPORTS_MAX:
            del self._status[next(iter(self._status))]
        self._status.pop((tenant, status.id), None)
        self._status[tenant, status.id] = status
        task = asyncio.create_task(self._run(work, status))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return msgspec.json.encode(status)

    def status(self, tenant: str, import_id: str) -> bytes | None:
        """The status of an import as JSON, or None if it is not known (any more)."""
        status = self._status.get((tenant, import_id))
        return msgspec.json.encode(status) if status is not None else None

    async def _run(self, work: WarmStart, status: ImportStatus) -> None:
        try:
            report = await work.run()
        except Exception as error:
            # Whatever it was, who asks for the status must learn that it ended.
            LOG.warning("import %s failed", status.id, exc_info=not isinstance(error, OnehopError))
            status.state, status.error = "failed", str(error) or repr(error)
            return
        finally:
            self._coordinator.importing -= 1
        status.state = "done"
        status.rows_done, status.accepted = report.rows, report.accepted
        status.rejected, status.rejected_by_reason = sum(report.rejected.values()), report.rejected
        status.rejects_file, status.items_added = report.rejects_file, report.items_added
        status.seconds, status.rows_per_s = report.seconds, report.rows_per_s
        status.resumed_from = report.resumed_from


def _decode(spec_json: bytes) -> ImportSpec:
    try:
        return msgspec.json.decode(spec_json, type=ImportSpec)
    except msgspec.DecodeError as error:
        raise RequestError(422, str(error), "", "", "an import") from None
