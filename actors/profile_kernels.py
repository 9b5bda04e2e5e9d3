"""The kernels that change a person's profile: counters, affinities, session, ring and sections.

They work on the rows and blobs of `store_kernels`, which says how both lie in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from actors.events import PURCHASED
from actors.store_kernels import (
    AFFINITY_WORDS,
    BOUGHT,
    COUNTER_WORDS,
    EVENTS_TOTAL,
    ITEM_MASK,
    NO_ITEM,
    TYPE_SHIFT,
    Int,
    append_event,
    event_at,
    fixed_words,
    kernel,
    make_room,
)

AFFINITIES_MAX = 8
COUNTERS_MAX = 64

# Slots of `rates`: float64.
RATE_FAST = 0  # 1 / half-life in seconds
RATE_SLOW = 1
SESSION_GAP = 2
RATES = 3

# Sections of a blob that `set_section` replaces.
VECTOR = 0
TRAITS = 1
LEDGER = 2

VECTOR_STEP = 0.1
"""Share of the newest item in a person's vector: v = (1 - VECTOR_STEP) v + VECTOR_STEP m."""


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
    if not make_room(rows, words, heap, row, gap_at, COUNTER_WORDS, np.int64(rows[row].ring_n)):
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
    if not make_room(rows, words, heap, row, gap_at, AFFINITY_WORDS, np.int64(rows[row].ring_n)):
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
def set_section(rows: Any, words: Any, heap: Any, row: Int, section: Int, content: Any) -> bool:
    """Replace VECTOR, TRAITS or LEDGER by `content`, uint32 [n]. False: arena full."""
    size = np.int64(len(content))
    first = np.int64(0)
    have = np.int64(rows[row].vector_d)
    if section == TRAITS:
        first, have = have, np.int64(rows[row].trait_words)
    elif section == LEDGER:
        have = np.int64(rows[row].ledger_words)
        first = fixed_words(rows, row) - have
    gap_at = first + min(have, size)
    if size != have:
        if not make_room(rows, words, heap, row, gap_at, size - have, np.int64(rows[row].ring_n)):
            return False
        if section == VECTOR:
            rows[row].vector_d = size
        elif section == TRAITS:
            rows[row].trait_words = size
        else:
            rows[row].ledger_words = size
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
        if not make_room(rows, words, heap, row, 0, d, np.int64(rows[row].ring_n)):
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
