"""Many events or traits at once, as a warm start brings them: chunks that are applied once each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors import events
from actors.profile import merge_traits
from actors.records import Loaded, LoadedTraits, pack_columns, unpack_columns
from actors.tenant import Tenant
from cluster.errors import StoreFull

if TYPE_CHECKING:
    from actors.state import ShardState

# Of one turn of the loop; more would keep requests waiting over 10 ms.
EVENTS_MAX = 20_000
PROFILES_MAX = 1000
LOADED_MAX = 200_000
"""Chunks that are remembered: of 20,000 events each, four billion of one shard."""


class Loads:
    """One per shard.

    applied  chunks that were applied, by token, and how many rows each had
    """

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self.applied: dict[str, int] = {}

    async def events_in_turns(
        self,
        token: str,
        tenant_name: str,
        chunk: dict[str, NDArray[Any]],
        make_room: Callable[[], object],
    ) -> int:
        """Apply as `events` does, any number, beside those who ask for something."""
        for part_token, part in _parts(token, chunk, EVENTS_MAX):
            make_room()
            self.events(part_token, tenant_name, part)
            await asyncio.sleep(0)
        self.mark(token, len(chunk["item"]))
        return self.applied[token]

    def events(self, token: str, tenant_name: str, chunk: dict[str, NDArray[Any]]) -> int:
        """Apply many events at once, in order, once per token. Returns how many.

        chunk  columns as in `records.COLUMNS`, in this shard's range; item -1 = none
        Raises ReadOnly while the disk is full; StoreFull if not all fit: those that did stay,
        here and in the log.
        """
        if token not in self.applied:
            tenant = self._state.tenant(tenant_name)
            self._state.check_disk()
            chunk = self._state.tombstones.kept(chunk)
            # Logged first: a chunk that fits in part is applied in the same part by replay.
            self._state.log(Loaded(tenant_name, token, pack_columns(chunk)))
            self.mark(token, len(chunk["item"]))
            self._apply(tenant, chunk)
        return self.applied[token]

    def _apply(self, tenant: Tenant, chunk: dict[str, NDArray[Any]]) -> None:
        rows = self._state.store.ensure_many(chunk["key_hi"], chunk["key_lo"], chunk["time"])
        self._state.store.apply_many(
            rows,
            chunk["item"],
            chunk["type"],
            chunk["value"],
            chunk["time"],
            tenant.catalogue.attribute_ids,
        )
        acted = (chunk["item"] >= 0) & (chunk["type"] != events.IMPRESSION)
        if not acted.all():
            rows, chunk = rows[acted], {name: column[acted] for name, column in chunk.items()}
        items, kinds = chunk["item"], chunk["type"]
        if self._state.learns:
            tenant.engine.learn_batch(rows, items, kinds, chunk["value"], chunk["time"])
        if tenant.catalogue.embeddings is not None:
            self._state.store.blend_many(rows, items, kinds, tenant.catalogue.embeddings)

    async def profiles_in_turns(self, token: str, tenant_name: str, chunk: dict[str, Any]) -> int:
        """Merge as `profiles` does, any number, beside those who ask for something.

        chunk  columns key_hi, key_lo and traits
        """
        for part_token, part in _parts(token, chunk, PROFILES_MAX):
            self.profiles(part_token, tenant_name, part["key_hi"], part["key_lo"], part["traits"])
            await asyncio.sleep(0)
        self.mark(token, len(chunk["traits"]))
        return self.applied[token]

    def profiles(
        self,
        token: str,
        tenant_name: str,
        key_hi: NDArray[np.int64],
        key_lo: NDArray[np.int64],
        traits: list[bytes],
    ) -> int:
        """Merge traits (JSON objects) into many profiles, once per token. Returns how many.

        Raises RequestError if some can't be merged, ReadOnly while the disk is full, and changes
        nothing then; StoreFull if not all fit: those that did stay, here and in the log.
        """
        if token not in self.applied:
            live = self._state.tombstones.kept(
                {"key_hi": key_hi, "key_lo": key_lo, "at": np.arange(len(traits))}
            )
            key_hi, key_lo = live["key_hi"], live["key_lo"]
            traits = [traits[at] for at in live["at"].tolist()]
            raw = np.stack([key_hi, key_lo], axis=1).astype(">i8").tobytes()
            keys = [raw[at : at + 16] for at in range(0, len(raw), 16)]
            self._state.tenant(tenant_name)
            self._state.check_disk()
            merged: list[bytes] = []
            latest: dict[bytes, bytes] = {}
            for key, document in zip(keys, traits, strict=True):
                row = self._state.store.find(key)
                stored = latest.get(key, self._state.store.traits(row) if row >= 0 else b"")
                latest[key] = merge_traits(stored, msgspec.json.decode(document))
                merged.append(latest[key])
            record = LoadedTraits(tenant_name, token, int(self._state.now()), keys, merged)
            self._state.log(record)
            self._apply_traits(record)
        return self.applied[token]

    def mark(self, token: str, count: int) -> None:
        """Remember that a warm start's chunk was applied; the oldest is forgotten for it."""
        self.applied[token] = count
        while len(self.applied) > LOADED_MAX:
            del self.applied[next(iter(self.applied))]

    def again(self, record: Loaded) -> None:
        """Do again what a record says."""
        self.mark(record.token, len(record.columns[0]) // 8)
        with suppress(StoreFull):
            self._apply(self._state.tenant(record.tenant), unpack_columns(record.columns))

    def again_traits(self, record: LoadedTraits) -> None:
        """Do again what a record says."""
        with suppress(StoreFull):
            self._apply_traits(record)

    def _apply_traits(self, record: LoadedTraits) -> None:
        self.mark(record.token, len(record.keys))
        for key, traits in zip(record.keys, record.traits, strict=True):
            self._state.set_traits(key, record.now_s, traits)


def _parts(token: str, chunk: dict[str, Any], size: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """A chunk in parts. Each has a token of its own: a crash may leave a chunk half applied."""
    for start in range(0, len(chunk["key_hi"]), size):
        yield f"{token}/{start}", {n: column[start : start + size] for n, column in chunk.items()}
