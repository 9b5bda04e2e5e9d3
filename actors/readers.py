"""Reading row groups: what a reader does, wherever it runs, and readers within this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.import_documents import item_documents, profile_chunks
from actors.import_rows import EventRows, Lookup, encoded, usable_names
from actors.manifest import GroupCount
from actors.parquet_input import Source, batches
from actors.warm_start import Batch, Survey

T = TypeVar("T")


class ReadPlan(msgspec.Struct, frozen=True):
    """What all reading of one import has in common.

    latest_s  the latest time that an event may have
    dry       keep nothing but counts
    """

    tenant: str
    latest_s: float
    dry: bool


def survey(source: Source, group: int) -> Survey:
    """The names in one row group of events. Raises RequestError if it is corrupt."""
    item, event = source.columns["itemId"], source.columns["event"]
    items: list[pa.Array] = []
    names: set[str] = set()
    last: list[pa.Array] = []
    for _, batch in batches(source, group, [item, event]):
        found = [encoded(batch.column(name))[0] for name in (item, event)]
        # Batches of a row group mostly share their dictionaries.
        if not last or not found[0].equals(last[0]):
            items.append(pa.array(usable_names(found[0]), pa.large_utf8()))
        if not last or not found[1].equals(last[1]):
            names.update(usable_names(found[1]))
        last = found
    return Survey(pa.chunked_array(items, pa.large_utf8()).unique(), sorted(names))


def read_events(
    plan: ReadPlan, source: Source, group: int, lookup: Lookup, starts: NDArray[np.uint64]
) -> Iterator[Batch]:
    """The batches of one row group of events; a chunk is what `Loads.events` takes."""
    # Arrays that come from shared memory are read-only, for which kernels would be compiled anew.
    lookup = lookup._replace(event_numbers=lookup.event_numbers.copy())
    rows = EventRows(source, plan.tenant, lookup, starts.copy(), plan.latest_s)
    for first, batch in batches(source, group, list(source.columns.values())):
        chunks, rejected, samples = rows.convert(first, batch)
        count = GroupCount(batch.num_rows, sum(len(c["item"]) for c in chunks), rejected)
        yield Batch(count, samples, [] if plan.dry else chunks)


def read_profiles(
    plan: ReadPlan, source: Source, group: int, starts: NDArray[np.uint64]
) -> Iterator[Batch]:
    """The batches of one row group of profiles; a chunk is what `Loads.profiles` takes."""
    columns = [*source.columns.values(), *source.extra]
    for first, batch in batches(source, group, columns):
        chunks, (rejected, samples) = profile_chunks(source, first, batch, plan.tenant, starts)
        count = GroupCount(batch.num_rows, sum(len(c["key_hi"]) for c in chunks), rejected)
        yield Batch(count, samples, [] if plan.dry else chunks)


def read_items(source: Source, group: int) -> Iterator[Batch]:
    """The batches of one row group of items, as `Readers.items` wants them."""
    columns = [*source.columns.values(), *source.extra]
    for first, batch in batches(source, group, columns):
        documents, rows, (rejected, samples) = item_documents(source, first, batch)
        yield Batch(GroupCount(batch.num_rows, len(rows), rejected), samples, [documents, rows])


class LocalReaders:
    """Readers in this process: threads take turns with the event loop."""

    parallel = 1

    def __init__(self, plan: ReadPlan) -> None:
        self._plan = plan

    async def survey(self, source: Source, group: int) -> Survey:
        return await asyncio.to_thread(survey, source, group)

    def events(
        self, source: Source, group: int, lookup: Lookup, starts: NDArray[np.uint64]
    ) -> AsyncIterator[Batch]:
        return _threaded(lambda: read_events(self._plan, source, group, lookup, starts))

    def profiles(
        self, source: Source, group: int, starts: NDArray[np.uint64]
    ) -> AsyncIterator[Batch]:
        return _threaded(lambda: read_profiles(self._plan, source, group, starts))

    def items(self, source: Source, group: int) -> AsyncIterator[Batch]:
        return _threaded(lambda: read_items(source, group))


async def _threaded(opens: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    """The entries of a blocking iterator, each taken in a thread."""
    entries = opens()
    end: Any = object()
    while (entry := await asyncio.to_thread(next, entries, end)) is not end:
        yield entry
