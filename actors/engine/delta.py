"""The events that no base holds yet: a circular log, linked by person and by item. One writer.

Learning an event appends one row of LOG_COLUMNS int64 (a cache line) and sets three links, so it
costs a fraction of a microsecond whatever the history. Positions are absolute and never reused;
position p lies in slot p % capacity. A link is a position + 1, so that zeroed memory means none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.arena import reserve
from actors.engine.history import History, sequence_uid

ITEM = 0
BACK = 1  # the person's event before, in the same sequence
FORWARD = 2  # the person's event after
OLDER = 3  # the event before on the same item, of whomever
TIME = 4
ROW = 5
UID = 6  # names the sequence; uint64 bits
START = 7  # when the sequence started
LOG_COLUMNS = 8

# Slots of `state`: int64.
NEXT = 0  # position of the next event
INCLUDED = 1  # events before this position are in the base
TAKEN = 2  # events before this position were handed out as a delta
STATE_SLOTS = 3


def new_log(capacity: int) -> NDArray[np.int64]:
    """An empty log; `capacity` is a power of two. Memory is taken as it fills."""
    return reserve(np.int64, capacity * LOG_COLUMNS).reshape(capacity, LOG_COLUMNS)


@njit(cache=True)
def append(
    log: Any,
    state: Any,
    last: Any,
    newest: Any,
    row: int,
    key: int,
    item: int,
    now_s: int,
    gap_s: int,
) -> None:
    """Append one event of the person at `row` (-1: nobody known) and link it.

    last    int64 [rows_max], link to each person's last event
    newest  int64 [items_max], link to each item's last event
    """
    capacity = log.shape[0]
    position = state[NEXT]
    horizon = position - capacity
    entry = log[position % capacity]
    entry[ITEM] = item
    entry[BACK] = 0
    entry[FORWARD] = 0
    entry[OLDER] = newest[item]
    entry[TIME] = now_s
    entry[ROW] = row
    entry[START] = now_s
    newest[item] = position + 1
    if row >= 0:
        back = last[row] - 1
        last[row] = position + 1
        if back > horizon:
            before = log[back % capacity]
            # A row that was given to another person starts anew: its key differs.
            if before[ROW] == row and now_s <= before[TIME] + gap_s:
                before[FORWARD] = position + 1
                entry[BACK] = back + 1
                entry[START] = before[START]
                entry[UID] = before[UID]
    if entry[BACK] == 0:
        entry[UID] = np.int64(sequence_uid(key, now_s))
    state[NEXT] = position + 1


@njit(cache=True)
def count(counts: Any, recent: Any, sums: Any, item: int) -> None:
    """Count one event of an item: float32 [items_max] twice, and the float64 [2] sums of both."""
    counts[item] += 1
    recent[item] += 1
    sums[0] += 1
    sums[1] += 1


@njit(cache=True, nogil=True)
def _taken(log: Any, first: int, stop: int) -> Any:
    """The events at positions [first, stop) as a History's arrays, one sequence per person part."""
    capacity = log.shape[0]
    n = stop - first
    part_of = np.empty(n, np.int64)
    uids = np.empty(n, np.uint64)
    times = np.empty(n, np.uint32)
    cursor = np.zeros(n + 1, np.int64)
    count = 0
    for p in range(first, stop):
        entry = log[p % capacity]
        back = entry[BACK] - 1
        if back >= first:
            part = part_of[back - first]
        else:
            part = count
            count += 1
            uids[part] = np.uint64(entry[UID])
            times[part] = np.uint32(entry[START])
        part_of[p - first] = part
        cursor[part] += 1
    starts = np.zeros(count + 1, np.int64)
    for part in range(count):
        starts[part + 1] = starts[part] + cursor[part]
        cursor[part] = starts[part]
    items = np.empty(n, np.int32)
    for p in range(first, stop):
        part = part_of[p - first]
        items[cursor[part]] = log[p % capacity, ITEM]
        cursor[part] += 1
    return uids[:count].copy(), times[:count].copy(), starts, items


def events(log: NDArray[np.int64], first: int, stop: int) -> History:
    """The events at positions [first, stop) that are still in the log, which is unchanged."""
    first = max(first, stop - len(log))
    return History(*_taken(log, first, stop))
