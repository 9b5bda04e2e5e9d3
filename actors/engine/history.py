"""What the engine has seen: sequences of items, one per person and session. Pure; no clock.

The learned state of the engine *is* this multiset of sequences: every index and count is
derived from it. So deltas of several shards add up by union, in any order, and the merge equals
what one shard would hold that saw every event. `merge` is canonical: equal content, equal arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray


class History(NamedTuple):
    """Sequences in order of (start time, uid). S sequences, E events.

    uids    uint64 [S], the same for all parts of one sequence, wherever they were seen
    times   uint32 [S], seconds since 1970 at which the sequence started
    starts  int64 [S + 1], where each sequence starts in `items`; the last is E
    items   int32 [E], catalogue indices, oldest first
    """

    uids: NDArray[np.uint64]
    times: NDArray[np.uint32]
    starts: NDArray[np.int64]
    items: NDArray[np.int32]

    @property
    def bytes_used(self) -> int:
        return sum(int(array.nbytes) for array in self)


def empty() -> History:
    """The history of nothing."""
    return History(
        np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(1, np.int64), np.zeros(0, np.int32)
    )


def merge(parts: Sequence[History], events_max: int) -> History:
    """The union of `parts`; parts of one sequence are joined in the order in which they stand.

    Of the result only the newest sequences are kept, so many that they have at most
    `events_max` events: this is the bound of the engine's memory.

    >>> a = History(np.array([7], np.uint64), np.array([5], np.uint32),
    ...             np.array([0, 2]), np.array([1, 2], np.int32))
    >>> b = a._replace(items=np.array([3, 4], np.int32))
    >>> merge([a, b], 100).items.tolist()
    [1, 2, 3, 4]
    """
    parts = [part for part in parts if len(part.uids)]
    if not parts:
        return empty()
    uids = np.concatenate([part.uids for part in parts])
    times = np.concatenate([part.times for part in parts])
    items = np.concatenate([part.items for part in parts])
    lengths = np.concatenate([np.diff(part.starts) for part in parts])
    # One key for (time, uid): the stable sort is nearly linear on the mostly sorted input.
    key = (times.astype(np.uint64) << np.uint64(32)) | (uids >> np.uint64(32))
    order = np.argsort(key, kind="stable")
    starts = np.zeros(len(uids) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return _trimmed(History(*_joined(uids, times, starts, items, order)), events_max)


def _trimmed(history: History, events_max: int) -> History:
    """The newest sequences of `history` with at most `events_max` events."""
    excess = len(history.items) - events_max
    if excess <= 0:
        return history
    first = int(np.searchsorted(history.starts, excess))
    cut = int(history.starts[first])
    return History(
        history.uids[first:].copy(),
        history.times[first:].copy(),
        history.starts[first:] - cut,
        history.items[cut:].copy(),
    )


@njit(cache=True, nogil=True)
def _joined(uids: Any, times: Any, starts: Any, items: Any, order: Any) -> Any:
    """The sequences in `order`, equal neighbours joined, as a History's arrays."""
    n = order.shape[0]
    out_uids = np.empty(n, np.uint64)
    out_times = np.empty(n, np.uint32)
    out_starts = np.empty(n + 1, np.int64)
    out_items = np.empty(items.shape[0], np.int32)
    count = 0
    filled = 0
    for i in range(n):
        s = order[i]
        if count == 0 or out_uids[count - 1] != uids[s] or out_times[count - 1] != times[s]:
            out_uids[count] = uids[s]
            out_times[count] = times[s]
            out_starts[count] = filled
            count += 1
        for p in range(starts[s], starts[s + 1]):
            out_items[filled] = items[p]
            filled += 1
    out_starts[count] = filled
    return (
        out_uids[:count].copy(),
        out_times[:count].copy(),
        out_starts[: count + 1].copy(),
        out_items,
    )


@njit(cache=True, nogil=True)
def sequences_of(
    rows: Any, keys: Any, items: Any, times: Any, gap_s: int, last_sequence: Any, last_time: Any
) -> Any:
    """Splits a stream of events into sequences: one per person, until a pause of `gap_s`.

    rows int32 [n]; keys uint64 [rows_max], the person's hash; items int32 [n]; times uint32 [n]
    last_sequence int64 [rows_max], all -1; last_time uint32 [rows_max]: working space
    Returns  a History's arrays, sequences in order of their first event.
    """
    n = rows.shape[0]
    sequence_of = np.empty(n, np.int64)
    uids = np.empty(n, np.uint64)
    started = np.empty(n, np.uint32)
    lengths = np.zeros(n + 1, np.int64)
    count = 0
    for i in range(n):
        row = rows[i]
        s = last_sequence[row]
        if s < 0 or times[i] > last_time[row] + gap_s:
            s = count
            count += 1
            last_sequence[row] = s
            started[s] = times[i]
            uids[s] = sequence_uid(keys[row], times[i])
        last_time[row] = times[i]
        sequence_of[i] = s
        lengths[s + 1] += 1
    starts = np.empty(count + 1, np.int64)
    starts[0] = 0
    for s in range(count):
        starts[s + 1] = starts[s] + lengths[s + 1]
        lengths[s] = starts[s]
    out = np.empty(n, np.int32)
    for i in range(n):
        s = sequence_of[i]
        out[lengths[s]] = items[i]
        lengths[s] += 1
    return uids[:count].copy(), started[:count].copy(), starts, out


@njit(cache=True, nogil=True)
def sequence_uid(key: int, time_s: int) -> Any:
    """Names the sequence that the person with hash `key` started at `time_s` (splitmix64)."""
    x = np.uint64(key) ^ (np.uint64(time_s) * np.uint64(0x9E3779B97F4A7C15))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
