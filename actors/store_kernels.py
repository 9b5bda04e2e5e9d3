"""The kernels of the profile store: functions over arrays, compiled by numba. State has one owner.

One person is one 64-byte row, a cache line, and one blob of uint32 words in an arena:

    [vector f32 x vector_d][traits][counters: type, fast, slow][affinities: attribute, weight][ring]

A ring event is three words: item | type << 24, time in seconds, value as float32. The ring takes
what is left of the blob, is linear while it can grow and circular once it has `ring_max` events.
Blobs come in size classes at most 1/8 apart (above 64 words); a freed blob goes to its class's
free list. Arrays never move and an array argument costs 60 ns a call, so kernels take few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.events import PURCHASED

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
        ("reserved", "u1", (3,)),
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
AFFINITIES_MAX = 8
COUNTERS_MAX = 64


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

# Slots of `rates`: float64.
RATE_FAST = 0  # 1 / half-life in seconds
RATE_SLOW = 1
SESSION_GAP = 2
RATES = 3

FULL = -2

VECTOR_STEP = 0.1
"""Share of the newest item in a person's vector: v = (1 - VECTOR_STEP) v + VECTOR_STEP m."""


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
    """Forget a profile: its blob and its key are zeroed, its row is free again."""
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
    )


@kernel
def _make_room(
    rows: Any, words: Any, heap: Any, row: Int, gap_at: Int, gap: Int, ring: Int
) -> bool:
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
    if grows and not _make_room(rows, words, heap, row, fixed_words(rows, row), 0, stored + 1):
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
def _count(
    rows: Any,
    words: Any,
    floats: Any,
    heap: Any,
    row: Int,
    event_type: Int,
    fast: float,
    slow: float,
) -> bool:
    """Add to the decayed counters of an event type. False: arena full."""
    at = np.int64(rows[row].blob_at) + rows[row].vector_d + rows[row].trait_words
    count = np.int64(rows[row].counters_n)
    for i in range(count):
        if words[at + COUNTER_WORDS * i] == event_type:
            floats[at + COUNTER_WORDS * i + 1] += np.float32(fast)
            floats[at + COUNTER_WORDS * i + 2] += np.float32(slow)
            return True
    if count == COUNTERS_MAX:
        return True
    gap_at = np.int64(rows[row].vector_d) + rows[row].trait_words + COUNTER_WORDS * count
    if not _make_room(rows, words, heap, row, gap_at, COUNTER_WORDS, np.int64(rows[row].ring_n)):
        return False
    rows[row].counters_n = count + 1
    at = np.int64(rows[row].blob_at) + gap_at
    words[at] = event_type
    floats[at + 1] = fast
    floats[at + 2] = slow
    return True


@kernel
def _like(
    rows: Any, words: Any, floats: Any, heap: Any, row: Int, attribute: Int, weight: float
) -> bool:
    """Add to the affinity for an attribute; the weakest gives way. False: arena full."""
    count = np.int64(rows[row].affinities_n)
    first = (
        np.int64(rows[row].vector_d)
        + rows[row].trait_words
        + COUNTER_WORDS * np.int64(rows[row].counters_n)
    )
    at = np.int64(rows[row].blob_at) + first
    weakest = 0
    for i in range(count):
        if words[at + AFFINITY_WORDS * i] == attribute:
            floats[at + AFFINITY_WORDS * i + 1] += np.float32(weight)
            return True
        if floats[at + AFFINITY_WORDS * i + 1] < floats[at + AFFINITY_WORDS * weakest + 1]:
            weakest = i
    if count == AFFINITIES_MAX:
        words[at + AFFINITY_WORDS * weakest] = attribute
        floats[at + AFFINITY_WORDS * weakest + 1] = weight
        return True
    gap_at = first + AFFINITY_WORDS * count
    if not _make_room(rows, words, heap, row, gap_at, AFFINITY_WORDS, np.int64(rows[row].ring_n)):
        return False
    rows[row].affinities_n = count + 1
    at = np.int64(rows[row].blob_at) + gap_at
    words[at] = attribute
    floats[at + 1] = weight
    return True


@kernel
def _decay(rows: Any, floats: Any, row: Int, fast: float, slow: float) -> None:
    """Multiply the counters by their factors and the affinities by the slow one."""
    at = np.int64(rows[row].blob_at) + rows[row].vector_d + rows[row].trait_words
    for _ in range(rows[row].counters_n):
        floats[at + 1] *= np.float32(fast)
        floats[at + 2] *= np.float32(slow)
        at += COUNTER_WORDS
    for _ in range(rows[row].affinities_n):
        floats[at + 1] *= np.float32(slow)
        at += AFFINITY_WORDS


@kernel
def observe(
    rows: Any,
    words: Any,
    floats: Any,
    heap: Any,
    rates: Any,
    attributes: Any,
    row: Int,
    item: Int,
    event_type: Int,
    weight: float,
    value: float,
    money: float,
    time_s: Int,
    session_id: Int,
) -> bool:
    """Apply one event to a profile, all but the ring: counters, affinities, session, money.

    attributes  int32 [items, a], attribute ids of the catalogue, -1 = none
    session_id  0: a gap in time ends a session; else a change of id does
    A late event counts with the weight that its age leaves. False: arena full.
    """
    last = np.int64(rows[row].last_seen)
    late: Any = max(last - time_s, 0)
    passed: Any = max(time_s - last, 0)
    if passed > 0:
        _decay(
            rows,
            floats,
            row,
            2.0 ** (-passed * rates[RATE_FAST]),
            2.0 ** (-passed * rates[RATE_SLOW]),
        )
    fast, slow = 1.0, 1.0
    if late > 0:
        fast = 2.0 ** (-late * rates[RATE_FAST])
        slow = 2.0 ** (-late * rates[RATE_SLOW])
    ended = session_id != rows[row].session_id if session_id != 0 else passed > rates[SESSION_GAP]
    if ended or rows[row].events_total == 0:
        rows[row].session_start = time_s
        rows[row].session_events = 0
        rows[row].session_id = session_id
    fits = _count(rows, words, floats, heap, row, event_type, fast, slow)
    if item != NO_ITEM and weight > 0.0:
        for i in range(attributes.shape[1]):
            if attributes[item, i] >= 0 and fits:
                fits = _like(rows, words, floats, heap, row, attributes[item, i], weight * slow)
    rows[row].money += np.float32(money)
    rows[row].last_seen = max(last, time_s)
    rows[row].events_total += 1
    rows[row].version += 1
    heap[EVENTS_TOTAL] += 1
    return fits


@kernel
def enter_ring(
    rows: Any,
    words: Any,
    heap: Any,
    row: Int,
    item: Int,
    event_type: Int,
    value: float,
    time_s: Int,
) -> bool:
    """`append_event`, and count the event to the running session. False: arena full."""
    if rows[row].session_events < 65535:
        rows[row].session_events += 1
    if event_type == PURCHASED:
        rows[row].flags |= BOUGHT
    return append_event(rows, words, heap, row, item, event_type, value, time_s)


@kernel
def set_section(rows: Any, words: Any, heap: Any, row: Int, vector: bool, content: Any) -> bool:
    """Replace the vector (or else the traits) by `content`, uint32 [n]. False: arena full."""
    size = np.int64(len(content))
    have = np.int64(rows[row].vector_d) if vector else np.int64(rows[row].trait_words)
    first = np.int64(0) if vector else np.int64(rows[row].vector_d)
    gap_at = first + min(have, size)
    if size != have:
        if not _make_room(rows, words, heap, row, gap_at, size - have, np.int64(rows[row].ring_n)):
            return False
        if vector:
            rows[row].vector_d = size
        else:
            rows[row].trait_words = size
    start = np.int64(rows[row].blob_at) + first
    for i in range(size):
        words[start + i] = content[i]
    return True


@kernel
def blend(
    rows: Any, words: Any, floats: Any, heap: Any, embeddings: Any, row: Int, item: Int
) -> bool:
    """Move the person's vector towards an item's embedding; none (all zero) leaves it as it is.

    embeddings  float32 [items, d]; the vector becomes [d], from zero. False: arena full.
    """
    d = embeddings.shape[1]
    embedded = False
    for j in range(d):
        if embeddings[item, j] != 0.0:
            embedded = True
            break
    if not embedded:
        return True
    if rows[row].vector_d == 0:
        if not _make_room(rows, words, heap, row, 0, d, np.int64(rows[row].ring_n)):
            return False
        rows[row].vector_d = d
    at = np.int64(rows[row].blob_at)
    for j in range(min(d, np.int64(rows[row].vector_d))):
        floats[at + j] = floats[at + j] * np.float32(1.0 - VECTOR_STEP) + embeddings[
            item, j
        ] * np.float32(VECTOR_STEP)
    return True


@kernel
def blend_many(
    rows: Any,
    words: Any,
    floats: Any,
    heap: Any,
    embeddings: Any,
    at: Any,
    items: Any,
    kinds: Any,
    weights: Any,
) -> bool:
    """`blend` for events [n] in order, where weights[kind] > 0. False: arena full."""
    for i in range(len(at)):
        if weights[kinds[i]] > 0.0:
            row, item = np.int64(at[i]), np.int64(items[i])
            if not blend(rows, words, floats, heap, embeddings, row, item):
                return False
    return True


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


@kernel
def apply_many(
    rows: Any,
    words: Any,
    floats: Any,
    heap: Any,
    rates: Any,
    attributes: Any,
    weights: Any,
    no_ring: Int,
    purchase: Int,
    at: Any,
    items: Any,
    event_types: Any,
    values: Any,
    times_s: Any,
) -> Any:
    """`observe` and `enter_ring` for events [n] in order; returns how many were applied.

    at         int32 [n] rows; items int32 [n], -1 = none; event_types uint8 [n]
    weights    float32 [64] by event type
    no_ring    the event type that never enters the ring; purchase: the one whose value is money
    values     float32 [n]; times_s uint32 [n]
    Stops at the first event that does not fit the arena.
    """
    for i in range(len(at)):
        row = np.int64(at[i])
        kind = np.int64(event_types[i])
        item = np.int64(items[i])
        time_s = np.int64(times_s[i])
        value = np.float64(values[i])
        if not observe(
            rows,
            words,
            floats,
            heap,
            rates,
            attributes,
            row,
            item if item >= 0 else NO_ITEM,
            kind,
            np.float64(weights[kind]),
            value,
            value if kind == purchase else 0.0,
            time_s,
            0,
        ):
            return i
        enters = item >= 0 and kind != no_ring
        if enters and not enter_ring(rows, words, heap, row, item, kind, value, time_s):
            return i
    return len(at)


@kernel
def bought(rows: Any, words: Any, row: Int, out: Any) -> Any:
    """Items of the ring that were purchased, into out int32 [ring_max]; returns how many."""
    found = 0
    for newest in range(rows[row].ring_n):
        word = np.int64(words[event_at(rows, row, newest)])
        if word >> TYPE_SHIFT == PURCHASED:
            out[found] = word & ITEM_MASK
            found += 1
    return found
