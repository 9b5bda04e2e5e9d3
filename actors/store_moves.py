"""Profiles that move from one store to another: the rows of a key range, copied word for word."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors import store_kernels as kernels
from actors.store import ProfileStore
from actors.store_kernels import CLASS_WORDS, COUNTER_WORDS, ITEM_MASK, TYPE_SHIFT, Int, kernel
from cluster.errors import StoreFull
from cluster.keys import KeyRange

AT_ONCE = 1 << 14


def rows_in(store: ProfileStore, key_range: KeyRange) -> NDArray[np.int32]:
    """Rows int32 [n] of the profiles whose keys lie in a range."""
    rows = store.rows[: int(store.heap[kernels.ROWS_NEXT])]
    # Stores keep the halves of a hash as signed numbers.
    places = rows["key_hi"].view(np.uint64) if len(rows) else np.zeros(0, np.uint64)
    inside = (places >= np.uint64(key_range.start)) & (places <= np.uint64(key_range.stop - 1))
    found: NDArray[np.int32] = np.flatnonzero(inside & (rows["flags"] & kernels.LIVE != 0)).astype(
        np.int32
    )
    return found


def copy_range(
    target: ProfileStore,
    source: ProfileStore,
    key_range: KeyRange,
    types: NDArray[np.uint8],
) -> int:
    """Copy the profiles of a range, of which the target has none yet; returns how many.

    types  uint8 [64], the target's number of each event type of the source
    Raises StoreFull if they do not fit; some of them are there then.
    """
    found = rows_in(source, key_range)
    for start in range(0, len(found), AT_ONCE):
        rows = found[start : start + AT_ONCE]
        entries = source.rows[rows]
        made = target.ensure_many(entries["key_hi"], entries["key_lo"], entries["first_seen"])
        copied = _copy(
            *(target.rows, target.words, target.heap),
            *(source.rows, source.words, types, rows, made),
        )
        if copied < len(rows):
            raise StoreFull(f"{len(found)} profiles must fit, and {start + copied} do")
    return len(found)


@kernel
def _copy(
    rows: Any,
    words: Any,
    heap: Any,
    from_rows: Any,
    from_words: Any,
    types: Any,
    found: Any,
    made: Any,
) -> Any:
    """Fill the new, empty rows `made` with what stands in the rows `found`; how many it did."""
    for i in range(len(found)):
        source, row = found[i], made[i]
        size_class = np.int64(from_rows[source].blob_class)
        if size_class > 0:
            at = kernels._allocate(words, heap, size_class)
            if at < 0:
                return i
            start = np.int64(from_rows[source].blob_at)
            for word in range(CLASS_WORDS[size_class]):
                words[at + word] = from_words[start + word]
            rows[row].blob_at = at
            rows[row].blob_class = size_class
        _copy_row(rows, row, from_rows, source)
        _renumber(rows, words, row, types)
    return len(found)


@kernel
def _copy_row(rows: Any, row: Int, from_rows: Any, source: Int) -> None:
    rows[row].version = from_rows[source].version
    rows[row].last_seen = from_rows[source].last_seen
    rows[row].session_start = from_rows[source].session_start
    rows[row].session_id = from_rows[source].session_id
    rows[row].events_total = from_rows[source].events_total
    rows[row].money = from_rows[source].money
    rows[row].session_events = from_rows[source].session_events
    rows[row].vector_d = from_rows[source].vector_d
    rows[row].trait_words = from_rows[source].trait_words
    rows[row].ring_cap = from_rows[source].ring_cap
    rows[row].ring_n = from_rows[source].ring_n
    rows[row].ring_head = from_rows[source].ring_head
    rows[row].counters_n = from_rows[source].counters_n
    rows[row].affinities_n = from_rows[source].affinities_n
    rows[row].flags = from_rows[source].flags
    rows[row].ledger_words = from_rows[source].ledger_words


@kernel
def _renumber(rows: Any, words: Any, row: Int, types: Any) -> None:
    """Give the event types of counters and ring their numbers in this store."""
    at = np.int64(rows[row].blob_at) + rows[row].vector_d + rows[row].trait_words
    for counter in range(np.int64(rows[row].counters_n)):
        word = at + COUNTER_WORDS * counter
        words[word] = types[words[word]]
    for newest in range(np.int64(rows[row].ring_n)):
        word = kernels.event_at(rows, row, newest)
        kind = np.int64(types[words[word] >> TYPE_SHIFT])
        words[word] = np.uint32((words[word] & ITEM_MASK) | (kind << TYPE_SHIFT))
