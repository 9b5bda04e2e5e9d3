"""The kernels of rows, index and arena: functions over arrays, compiled by numba. One owner.

One person is one 64-byte row, a cache line, and one blob of uint32 words in an arena:

    [vector f32 x vector_d][traits][counters: type, fast, slow][affinities: attribute, weight]
    [ledger][ring]

Traits and ledger are bytes: a word with their length, then the bytes. A ring event is three words:
item | type << 24, time in seconds, value as float32. The ring takes what is left of the blob, is
linear while it can grow and circular once it has `ring_max` events. Blobs come in size classes at
most 1/8 apart (above 64 words); a freed blob goes to its class's free list. Arrays never move and
an array argument costs 60 ns a call, so kernels take few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

ROW = np.dtype(
    [
        ("key_hi", "<i8"),
        ("key_lo", "<i8"),
        ("blob_at", "<u4"),
        ("version", "<u4"),
        ("first_seen", "<u4"),
        ("last_seen", "<u4"),
        ("session_start", "<u4"),
        ("session_id", "<u4"),
        ("events_total", "<u4"),
        ("money", "<f4"),
        ("session_events", "<u2"),
        ("vector_d", "<u2"),
        ("trait_words", "<u2"),
        ("blob_class", "u1"),
        ("ring_cap", "u1"),
        ("ring_n", "u1"),
        ("ring_head", "u1"),
        ("counters_n", "u1"),
        ("affinities_n", "u1"),
        ("flags", "u1"),
        ("reserved", "u1"),
        ("ledger_words", "<u2"),
    ],
    align=True,
)
assert ROW.itemsize == 64

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
# Kernels allocate nothing, so numba's reference counts (its "NRT") would only cost: four times
# the run time of `apply_many`, as each call of a helper counts each of its arrays up and down.
kernel: Callable[[Kernel], Kernel] = njit(cache=True, _nrt=False)  # type: ignore[call-overload]

# Integers of any width, as numba infers them.
Int = Any

LIVE = 1  # bit of `flags`: the row holds a profile
BOUGHT = 2  # bit of `flags`: there was a purchase, so the ring may hold one
NO_ITEM = 0xFFFFFF
ITEM_MASK = 0xFFFFFF
TYPE_SHIFT = 24
EVENT_WORDS = 3
COUNTER_WORDS = 3
AFFINITY_WORDS = 2
# Words that one event may add at most, its item's vector aside: a counter, four attributes, itself.
EVENT_GROWTH = COUNTER_WORDS + 4 * AFFINITY_WORDS + EVENT_WORDS


def _size_classes() -> NDArray[np.int64]:
    sizes = list(range(0, 65, 4))
    while sizes[-1] < 4096:
        step = 1 << (sizes[-1].bit_length() - 4)
        sizes.append(sizes[-1] + step)
    return np.array(sizes, dtype=np.int64)


CLASS_WORDS = _size_classes()
BLOB_WORDS_MAX = int(CLASS_WORDS[-1])
# The smallest class that holds a number of words.
CLASS_FOR = np.searchsorted(CLASS_WORDS, np.arange(BLOB_WORDS_MAX + 1)).astype(np.uint8)

# Slots of `heap`, the allocator's state: int64. Free lists of the classes follow.
HEAP_NEXT = 0  # first word never given out
HEAP_LIMIT = 1  # words of the arena
HEAP_USED = 2  # words in live blobs
RING_MAX = 3
INDEX_MASK = 4
OLD_MASK = 5  # -1: no migration under way
OLD_AT = 6  # next slot of the old index to be moved
INDEX_FILLED = 7  # slots of the index taken, tombstones included
ROWS_NEXT = 8  # first row never used
ROWS_FREE = 9  # head of the free rows, row + 1
ROWS_LIVE = 10
ROWS_LIMIT = 11
EVENTS_TOTAL = 12
FREE_LISTS = 16
HEAP_SLOTS = FREE_LISTS + len(CLASS_WORDS)

TOMBSTONE = -1
# A longer migration step would be a pause, a shorter one could not keep up with inserts.
MIGRATE_SLOTS = 64

FULL = -2


@kernel
def find(rows: Any, index: Any, old: Any, heap: Any, hi: Int, lo: Int) -> Any:
    """Row of a key, or -1."""
    row = _probe(rows, index, heap[INDEX_MASK], hi, lo)
    if row < 0 and heap[OLD_MASK] >= 0:
        row = _probe(rows, old, heap[OLD_MASK], hi, lo)
    return row


@kernel
def _probe(rows: Any, table: Any, mask: Int, hi: Int, lo: Int) -> Any:
    at = lo & mask
    while True:
        entry = table[at]
        if entry == 0:
            return -1
        if entry > 0:
            row = entry - 1
            if rows[row].key_lo == lo and rows[row].key_hi == hi:
                return row
        at = (at + 1) & mask


@kernel
def insert(rows: Any, index: Any, old: Any, heap: Any, hi: Int, lo: Int, now_s: Int) -> Any:
    """Row of a new profile, whose key must not be there yet; FULL if no row is free."""
    if heap[OLD_MASK] >= 0:
        _migrate(rows, index, old, heap, MIGRATE_SLOTS)
    if heap[ROWS_FREE] > 0:
        row = heap[ROWS_FREE] - 1
        heap[ROWS_FREE] = rows[row].blob_at
    elif heap[ROWS_NEXT] < heap[ROWS_LIMIT]:
        row = heap[ROWS_NEXT]
        heap[ROWS_NEXT] += 1
    else:
        return FULL
    rows[row].key_hi = hi
    rows[row].key_lo = lo
    rows[row].blob_at = 0
    rows[row].version = 0
    rows[row].first_seen = now_s
    rows[row].last_seen = now_s
    rows[row].session_start = now_s
    rows[row].session_id = 0
    rows[row].events_total = 0
    rows[row].money = 0.0
    rows[row].session_events = 0
    rows[row].vector_d = 0
    rows[row].trait_words = 0
    rows[row].blob_class = 0
    rows[row].ring_cap = 0
    rows[row].ring_n = 0
    rows[row].ring_head = 0
    rows[row].counters_n = 0
    rows[row].affinities_n = 0
    rows[row].flags = LIVE
    rows[row].ledger_words = 0
    _place(index, heap, lo, row)
    heap[ROWS_LIVE] += 1
    return row


@kernel
def _place(index: Any, heap: Any, lo: Int, row: Int) -> None:
    at = lo & heap[INDEX_MASK]
    while index[at] > 0:
        at = (at + 1) & heap[INDEX_MASK]
    if index[at] == 0:
        heap[INDEX_FILLED] += 1
    index[at] = row + 1


@kernel
def _migrate(rows: Any, index: Any, old: Any, heap: Any, slots: Int) -> None:
    """Move up to `slots` slots of the old index; ends the migration when all are moved."""
    stop = min(heap[OLD_AT] + slots, heap[OLD_MASK] + 1)
    for at in range(heap[OLD_AT], stop):
        if old[at] > 0:
            row = old[at] - 1
            # The slot stays as a tombstone, so that probes of the old index go on past it.
            old[at] = TOMBSTONE
            _place(index, heap, rows[row].key_lo, row)
    heap[OLD_AT] = stop
    if stop > heap[OLD_MASK]:
        heap[OLD_MASK] = -1


@kernel
def remove(rows: Any, words: Any, index: Any, old: Any, heap: Any, row: Int) -> None:
    """Forget a profile: its blob and its row are zeroed, and free again."""
    lo = rows[row].key_lo
    for table, mask in ((index, heap[INDEX_MASK]), (old, heap[OLD_MASK])):
        if mask < 0:
            continue
        at = lo & mask
        while table[at] != 0:
            if table[at] == row + 1:
                table[at] = TOMBSTONE
                break
            at = (at + 1) & mask
    _release(words, heap, np.int64(rows[row].blob_at), np.int64(rows[row].blob_class))
    rows[row].flags = 0
    rows[row].version = 0
    rows[row].first_seen = 0
    rows[row].last_seen = 0
    rows[row].session_start = 0
    rows[row].session_id = 0
    rows[row].events_total = 0
    rows[row].money = 0.0
    rows[row].key_hi = 0
    rows[row].key_lo = 0
    rows[row].blob_class = 0
    rows[row].blob_at = heap[ROWS_FREE]
    heap[ROWS_FREE] = row + 1
    heap[ROWS_LIVE] -= 1


@kernel
def _allocate(words: Any, heap: Any, size_class: Int) -> Any:
    """Start of a blob of the class, or FULL."""
    size = CLASS_WORDS[size_class]
    head = heap[FREE_LISTS + size_class]
    if head > 0:
        heap[FREE_LISTS + size_class] = words[head]
        heap[HEAP_USED] += size
        return head
    at = heap[HEAP_NEXT]
    if at + size > heap[HEAP_LIMIT]:
        return FULL
    heap[HEAP_NEXT] = at + size
    heap[HEAP_USED] += size
    return at


@kernel
def _release(words: Any, heap: Any, at: Int, size_class: Int) -> None:
    """Zero a blob, since it held personal data, and put it on its class's free list."""
    if size_class == 0:
        return
    for word in range(at, at + CLASS_WORDS[size_class]):
        words[word] = 0
    words[at] = heap[FREE_LISTS + size_class]
    heap[FREE_LISTS + size_class] = at
    heap[HEAP_USED] -= CLASS_WORDS[size_class]


@kernel
def fixed_words(rows: Any, row: Int) -> Any:
    """Words of the blob before the ring."""
    return (
        np.int64(rows[row].vector_d)
        + rows[row].trait_words
        + COUNTER_WORDS * np.int64(rows[row].counters_n)
        + AFFINITY_WORDS * np.int64(rows[row].affinities_n)
        + rows[row].ledger_words
    )


@kernel
def make_room(rows: Any, words: Any, heap: Any, row: Int, gap_at: Int, gap: Int, ring: Int) -> bool:
    """Insert `gap` zero words (or take out -gap) at `gap_at` and leave room for `ring` events.

    False if the arena is full or the blob would be too large; then nothing has changed.
    """
    fixed = fixed_words(rows, row)
    start = np.int64(rows[row].blob_at)
    stored = np.int64(rows[row].ring_n)
    used = fixed + EVENT_WORDS * stored
    needed = fixed + gap + EVENT_WORDS * ring
    if needed > BLOB_WORDS_MAX:
        return False
    old_class = np.int64(rows[row].blob_class)
    tail = gap_at - gap if gap < 0 else gap_at
    if needed <= CLASS_WORDS[old_class]:
        if gap > 0:
            for at in range(start + used - 1, start + gap_at - 1, -1):
                words[at + gap] = words[at]
        elif gap < 0:
            for at in range(start + tail, start + used):
                words[at + gap] = words[at]
        new_start, new_class = start, old_class
    else:
        new_class = np.int64(CLASS_FOR[needed])
        new_start = _allocate(words, heap, new_class)
        # The arena is used up: a freed blob that is larger than needed is better than none.
        while new_start < 0 and new_class + 1 < len(CLASS_WORDS):
            new_class += 1
            new_start = _allocate(words, heap, new_class)
        if new_start < 0:
            return False
        for at in range(gap_at):
            words[new_start + at] = words[start + at]
        for at in range(tail, used):
            words[new_start + at + gap] = words[start + at]
        _release(words, heap, start, old_class)
        rows[row].blob_at = new_start
        rows[row].blob_class = new_class
    for at in range(new_start + gap_at, new_start + gap_at + gap):
        words[at] = 0
    # A linear ring takes all that the class leaves; a circular one has ring_max already.
    rows[row].ring_cap = min((CLASS_WORDS[new_class] - fixed - gap) // EVENT_WORDS, heap[RING_MAX])
    return True


@kernel
def append_event(
    rows: Any,
    words: Any,
    heap: Any,
    row: Int,
    item: Int,
    event_type: Int,
    value: float,
    time_s: Int,
) -> bool:
    """Put one event into the ring; the oldest leaves when it is full. False: arena full."""
    stored = np.int64(rows[row].ring_n)
    grows = stored == rows[row].ring_cap and stored < heap[RING_MAX]
    if grows and not make_room(rows, words, heap, row, fixed_words(rows, row), 0, stored + 1):
        return False
    if rows[row].ring_head >= rows[row].ring_cap:
        rows[row].ring_head = 0
    head = np.int64(rows[row].ring_head)
    at = np.int64(rows[row].blob_at) + fixed_words(rows, row) + EVENT_WORDS * head
    words[at] = np.uint32(item | (event_type << TYPE_SHIFT))
    words[at + 1] = np.uint32(time_s)
    words[at + 2] = np.float32(value).view(np.uint32)
    rows[row].ring_head = head + 1
    if rows[row].ring_n < rows[row].ring_cap:
        rows[row].ring_n += 1
    return True


@kernel
def event_at(rows: Any, row: Int, newest: Int) -> Any:
    """Word of the `newest`-th event of the ring, 0 = the latest; newest < ring_n."""
    slot = np.int64(rows[row].ring_head) - 1 - newest
    if slot < 0:
        slot += rows[row].ring_cap
    return np.int64(rows[row].blob_at) + fixed_words(rows, row) + EVENT_WORDS * slot


@kernel
def ensure_rows(
    rows: Any,
    index: Any,
    old: Any,
    heap: Any,
    hi: Any,
    lo: Any,
    times_s: Any,
    out: Any,
    start: Int,
    stop: Int,
) -> Any:
    """Rows of many keys, created where missing, into `out`; returns where it stopped.

    hi, lo int64 [n]; times_s uint32 [n]; out int32 [n]. Stops early when the index must grow first
    or no row is free, so that the caller can grow it and go on.
    """
    for i in range(start, stop):
        row = find(rows, index, old, heap, hi[i], lo[i])
        if row < 0:
            if heap[INDEX_FILLED] * 4 >= (heap[INDEX_MASK] + 1) * 3:
                return i
            row = insert(rows, index, old, heap, hi[i], lo[i], np.int64(times_s[i]))
            if row < 0:
                return i
        out[i] = row
    return stop
