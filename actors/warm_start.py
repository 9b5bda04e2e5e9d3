"""Warm start: history from Parquet into the owners, a bounded part at a time, never twice.

Plain asyncio without Ray: who reads files, who numbers items and who owns ranges are arguments.
The rule that makes it resumable: a batch has a token, an owner applies a token once, and an owner
can be asked which tokens it has. The manifest only says what was counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.import_rows import Lookup, Reject
from actors.lanes import Lane, read_ahead
from actors.manifest import NOTHING, GroupCount, Manifest
from actors.parquet_input import BATCH_ROWS, Kind, Source, open_sources
from cluster.errors import RequestError


class ImportSpec(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What to import. Each of events, items and profiles is a Parquet file or a folder of them.

    mapping       field -> column, where a column is named otherwise
    strict_items  refuse events on items that are not in the catalogue, instead of adding the item
    dry_run       read, check and count everything; change nothing
    """

    events: str | None = None
    items: str | None = None
    profiles: str | None = None
    tenant: str = "default"
    mapping: dict[str, str] = {}
    strict_items: bool = False
    dry_run: bool = False


class ImportReport(msgspec.Struct, frozen=True, rename="camel"):
    """What an import did, rows of earlier attempts included.

    rejected      rows by reason; a sample of each is in `rejects_file`
    rows_per_s    of the rows that this attempt read
    resumed_from  rows that an earlier attempt had finished and this one did not read again
    """

    import_id: str
    rows: int
    accepted: int
    rejected: dict[str, int]
    rejects_file: str
    items_added: int
    seconds: float
    rows_per_s: float
    resumed_from: int
    dry_run: bool


class Progress(NamedTuple):
    """How far an import is, in rows."""

    done: int
    total: int
    accepted: int
    rejected: int


class Batch(NamedTuple):
    """One batch as read. `chunks` has one entry per owner, in whatever form the owners take."""

    counted: GroupCount
    samples: list[Reject]
    chunks: Sequence[Any]


class Survey(NamedTuple):
    """The names in one row group of events: ids of items, Arrow text, and names of events."""

    items: pa.Array
    event_names: list[str]


class Readers(Protocol):
    """Reads row groups somewhere, `parallel` of them at once. A dry import's have no chunks.

    starts  uint64 [owners], where each owner's range starts, ascending
    """

    parallel: int

    async def survey(self, source: Source, group: int) -> Survey: ...

    def events(
        self, source: Source, group: int, lookup: Lookup, starts: NDArray[np.uint64]
    ) -> AsyncIterator[Batch]: ...

    def profiles(
        self, source: Source, group: int, starts: NDArray[np.uint64]
    ) -> AsyncIterator[Batch]: ...

    def items(self, source: Source, group: int) -> AsyncIterator[Batch]:
        """Batches whose chunks are two lists: items as JSON, and the row of each."""


class Owner(Protocol):
    """One shard. `load` applies a chunk unless the owner has its token."""

    start: int

    async def load(self, kind: Kind, token: str, chunk: Any) -> None: ...

    async def tokens(self, prefix: str) -> set[str]: ...

    async def event_numbers(self, names: list[str]) -> list[int]: ...

    async def finish(self) -> None:
        """All is loaded: build what is derived from it."""


class Items(Protocol):
    """The catalogue of all shards."""

    async def ids(self) -> list[str]:
        """Ids by number."""

    async def register(self, ids: list[str]) -> None:
        """Add items that are only known by id."""

    async def put(self, items: list[bytes]) -> list[str]:
        """Add or replace items, JSON each; what is wrong with each, "" for nothing."""


class WarmStart:
    """One import. Make it, then `run` it once."""

    def __init__(
        self,
        spec: ImportSpec,
        owners: Sequence[Owner],
        items: Items,
        readers: Readers,
        folder: Path,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        """Checks the files and opens the manifest in `folder`; changes nothing else.

        Raises RequestError if a file can't be used or the same import is already running.
        """
        self._spec = spec
        self._owners = sorted(owners, key=lambda owner: owner.start)
        self._starts = np.array([owner.start for owner in self._owners], np.uint64)
        self._items = items
        self._readers = readers
        self._progress = progress
        self._sources = _sources(spec)
        self.import_id = _import_id(spec.tenant, self._sources)
        self.rows_total = sum(source.rows for source in self._sources)
        self._manifest = Manifest(folder, self.import_id, keep=not spec.dry_run)
        self._seen = NOTHING
        self._items_added = 0
        self._resumed_from = 0
        self._loaded = False

    async def run(self) -> ImportReport:
        """Items, then events, then profiles. Raises RequestError, Unavailable or StoreFull.

        After an error the same import, run again, goes on where this one stopped.
        """
        started_s = monotonic()
        try:
            for source in self._of_kind("items"):
                await self._load_items(source)
            await self._load_events(self._of_kind("events"))
            await self._load_profiles(self._of_kind("profiles"))
            if self._loaded:
                await asyncio.gather(*(owner.finish() for owner in self._owners))
        finally:
            self._manifest.close()
        seconds = max(monotonic() - started_s, 1e-6)
        total = self._manifest.total()
        return ImportReport(
            self.import_id,
            total.rows,
            total.accepted,
            total.rejected,
            str(self._manifest.rejects_path) if total.rejected else "",
            self._items_added,
            round(seconds, 3),
            round(self._seen.rows / seconds),
            self._resumed_from,
            self._spec.dry_run,
        )

    def _of_kind(self, kind: Kind) -> list[Source]:
        return [source for source in self._sources if source.kind == kind]

    # Items go through the coordinator, which numbers them and tells every shard.

    async def _load_items(self, source: Source) -> None:
        for group in range(len(source.group_rows)):
            count, samples = NOTHING, []
            async for batch in self._readers.items(source, group):
                refused: list[Reject] = []
                if not self._spec.dry_run:
                    documents, rows = batch.chunks
                    refused = _refused(source, documents, rows, await self._items.put(documents))
                kept = batch.counted.without("item_refused", len(refused))
                self._items_added += kept.accepted
                count = count.plus(kept)
                samples += [*batch.samples, *refused]
                self._advance(kept)
            self._manifest.finish(source.identity, group, count, samples)

    # Events: first the names that are in them, then the rows.

    async def _load_events(self, sources: list[Source]) -> None:
        todo = await self._missing(sources)
        if todo:
            lookup = await self._lookup(todo)

            def read(source: Source, group: int) -> AsyncIterator[Batch]:
                return self._readers.events(source, group, lookup, self._starts)

            await self._load_groups(todo, read)

    async def _lookup(self, groups: list[tuple[Source, int]]) -> Lookup:
        """Numbers of all items and event names in the row groups; adds the items that are new."""
        slots = asyncio.Semaphore(self._readers.parallel)

        async def survey(source: Source, group: int) -> Survey:
            async with slots:
                return await self._readers.survey(source, group)

        found = await asyncio.gather(*(survey(*one) for one in groups))
        names = sorted({name for one in found for name in one.event_names})
        known = pa.array(await self._items.ids(), pa.large_utf8())
        if not self._spec.strict_items:
            seen = pa.chunked_array([one.items for one in found], pa.large_utf8()).unique()
            new = seen.filter(pa.compute.invert(pa.compute.is_in(seen, known)))
            self._items_added += len(new)
            if self._spec.dry_run:
                known = pa.concat_arrays([known, new])
            elif len(new):
                await self._items.register(new.to_pylist())
                known = pa.array(await self._items.ids(), pa.large_utf8())
        numbers = np.zeros((len(self._owners), len(names)), np.uint8)
        if not self._spec.dry_run:
            numbers[:] = await asyncio.gather(*(o.event_numbers(names) for o in self._owners))
        return Lookup(known, {name: i for i, name in enumerate(names)}, numbers)

    async def _load_profiles(self, sources: list[Source]) -> None:
        def read(source: Source, group: int) -> AsyncIterator[Batch]:
            return self._readers.profiles(source, group, self._starts)

        await self._load_groups(await self._missing(sources), read)

    # Row groups are read ahead in parallel and applied in the order of the file.

    async def _load_groups(
        self,
        todo: list[tuple[Source, int]],
        read: Callable[[Source, int], AsyncIterator[Batch]],
    ) -> None:
        if not todo:
            return
        self._loaded = not self._spec.dry_run
        lanes = [Lane() for _ in self._owners]
        streams = read_ahead([partial(read, *one) for one in todo], self._readers.parallel)
        try:
            async with aclosing(streams):
                at = 0
                async for batches in streams:
                    await self._load_group(*todo[at], batches, lanes)
                    at += 1
            for lane in lanes:
                await lane.drain()
        finally:
            for lane in lanes:
                lane.close()

    async def _missing(self, sources: list[Source]) -> list[tuple[Source, int]]:
        """The row groups that are still to be loaded, in order."""
        todo: list[tuple[Source, int]] = []
        for source in sources:
            groups = await self._missing_groups(source)
            todo += [(source, group) for group in groups]
            self._resumed_from += source.rows - sum(source.group_rows[g] for g in groups)
        self._advance(NOTHING)
        return todo

    async def _missing_groups(self, source: Source) -> list[int]:
        """Row groups that were never counted, or of which some owner lacks a batch."""
        groups = range(len(source.group_rows))
        counted = self._manifest.counted(source.identity)
        if not counted:
            return list(groups)
        have = await asyncio.gather(
            *(owner.tokens(f"{self.import_id}.{source.identity}.") for owner in self._owners)
        )
        everywhere = set.intersection(*have)
        return [
            group
            for group in groups
            if group not in counted
            or not all(
                self._token(source, group, number) in everywhere
                for number in range(-(-source.group_rows[group] // BATCH_ROWS))
            )
        ]

    def _token(self, source: Source, group: int, number: int) -> str:
        return f"{self.import_id}.{source.identity}.{group}.{number}"

    async def _load_group(
        self, source: Source, group: int, batches: AsyncIterator[Batch], lanes: list[Lane]
    ) -> None:
        count, samples, number = NOTHING, [], 0
        async for batch in batches:
            token = self._token(source, group, number)
            for owner, lane, chunk in zip(self._owners, lanes, batch.chunks, strict=False):
                await lane.put(partial(owner.load, source.kind, token, chunk))
            number += 1
            count = count.plus(batch.counted)
            samples += batch.samples
            self._advance(batch.counted)
        waiting = len(lanes)

        async def passed() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                self._manifest.finish(source.identity, group, count, samples)

        # Noted once every owner has gone past it, without waiting for that here.
        for lane in lanes:
            await lane.put(passed)

    def _advance(self, count: GroupCount) -> None:
        self._seen = seen = self._seen.plus(count)
        done = seen.rows + self._resumed_from
        self._progress(Progress(done, self.rows_total, seen.accepted, seen.rows - seen.accepted))


def _sources(spec: ImportSpec) -> list[Source]:
    """All files of an import, each content once. Raises RequestError."""
    paths: list[tuple[str | None, Kind]] = [
        (spec.items, "items"),
        (spec.events, "events"),
        (spec.profiles, "profiles"),
    ]
    found: dict[tuple[str, str], Source] = {}
    for path, kind in paths:
        if path is not None:
            for source in open_sources(path, kind, spec.mapping):
                found.setdefault((kind, source.identity), source)
    if not found:
        raise RequestError(422, "nothing to import", "events", "", "a Parquet file or folder")
    return list(found.values())


def _import_id(tenant: str, sources: Sequence[Source]) -> str:
    """The same for the same content, columns and tenant, wherever the files lie."""
    hashed = blake2b(tenant.encode(), digest_size=8)
    for source in sources:
        hashed.update(f"\0{source.kind}\0{source.identity}".encode())
    return hashed.hexdigest()


def _refused(
    source: Source, documents: list[bytes], rows: list[int], wrong: list[str]
) -> list[Reject]:
    """A reject for each item that the catalogue refused, where `wrong` says why."""
    return [
        Reject(source.path, row, "item_refused", "id", document[:80].decode(errors="replace"), why)
        for document, row, why in zip(documents, rows, wrong, strict=True)
        if why
    ]
