"""What is derived from a history and read by every decision: counts and indexes. Immutable.

`build` is a pure function of its history, so equal histories give equal bases, and a base can be
built in one process and read in many. Nothing here is ever written after it was built.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.engine.history import History

STEPS = 20
"""How many events apart two items may be and still count as one following the other."""
STEP_DECAY = 0.9
"""What a transition over one more step counts for."""
SUCCESSORS_MAX = 128
"""Successors kept per item, the heaviest."""
PREDECESSOR_STEPS = 8
PREDECESSOR_DECAY = 0.7
PREDECESSORS_MAX = 64
POSTINGS_MAX = 500
"""Sequences kept per item in the neighbour index, the newest."""
POPULAR_MAX = 128
"""Length of the list of most popular items, which are candidates for everyone."""
QUITS = 64
"""Lengths of sequences told apart when it is learned how often they end."""
RECENT_SHARE = 10
"""The newest 1/10 of all events is what `recent` counts."""
NEVER = math.inf
"""The half-life of what does not fade."""
AGE_MIN = 1e-6
"""What the oldest still counts for: twenty half-lives, and no more."""


class Links(NamedTuple):
    """For each of n items, what stands near it in sequences; of many, the heaviest.

    indptr   int64 [n + 1], where each item's entries start
    items    int32 [T]
    weights  float32 [T], decayed counts over up to `steps` steps
    direct   float32 [T], counts over one step
    totals   float32 [n, 2], sums of `weights` and `direct`, entries cut off included
    """

    indptr: NDArray[np.int64]
    items: NDArray[np.int32]
    weights: NDArray[np.float32]
    direct: NDArray[np.float32]
    totals: NDArray[np.float32]


class Base(NamedTuple):
    """The derived state over n items and S sequences.

    history         what it was built from
    after, before   what follows each item, and what stands before it
    postings_at     int64 [n + 1]; postings int32 [P, 2]: sequence and last place in history.items,
                    ascending, so the newest sequences of an item stand last
    counts, recent  float32 [n], events per item: all, faded, and of the newest 1/RECENT_SHARE
    popular         int32 [POPULAR_MAX or fewer], by falling recent count
    quits           float32 [QUITS], share of the sequences with j events that have no more;
                    the last counts all longer ones
    """

    history: History
    after: Links
    before: Links
    postings_at: NDArray[np.int64]
    postings: NDArray[np.int32]
    counts: NDArray[np.float32]
    recent: NDArray[np.float32]
    popular: NDArray[np.int32]
    quits: NDArray[np.float32]

    @property
    def bytes_used(self) -> int:
        links = sum(int(array.nbytes) for array in (*self.after, *self.before))
        return self.history.bytes_used + links + sum(int(array.nbytes) for array in self[3:])


def build(history: History, n: int, half_life_s: float = NEVER) -> Base:
    """The base of `history` over items 0..n-1, or as many as the history names if that is more.

    half_life_s  a sequence counts half as much for each such time that it started before the newest
    """
    starts, items = history.starts, history.items
    if len(items):
        n = max(n, int(items.max()) + 1)
    fresh = freshness(history.times, half_life_s)
    after = Links(*_links(starts, items, fresh, n, STEPS, STEP_DECAY, SUCCESSORS_MAX, 1))
    before = Links(
        *_links(starts, items, fresh, n, PREDECESSOR_STEPS, PREDECESSOR_DECAY, PREDECESSORS_MAX, -1)
    )
    postings_at, postings = _postings(starts, items, n, POSTINGS_MAX)
    weights = np.repeat(fresh, np.diff(starts))
    counts = np.bincount(items, weights, minlength=n).astype(np.float32)
    newest = items[len(items) - len(items) // RECENT_SHARE :]
    recent = np.bincount(newest, minlength=n).astype(np.float32)
    size = min(POPULAR_MAX, int(np.count_nonzero(counts)))
    # Ties in the recent count go to the item with more events in all.
    popular = np.lexsort((-counts, -recent))[:size].astype(np.int32)
    quits = _quits(np.diff(starts))
    return Base(history, after, before, postings_at, postings, counts, recent, popular, quits)


def freshness(times: NDArray[np.uint32], half_life_s: float) -> NDArray[np.float32]:
    """What sequences that started at `times`, in order, count for: float32 [S], the newest 1."""
    if not len(times) or half_life_s == NEVER:
        return np.ones(len(times), np.float32)
    ages = (times[-1] - times) / half_life_s
    fresh: NDArray[np.float32] = np.maximum(np.exp2(-ages), AGE_MIN).astype(np.float32)
    return fresh


def _quits(lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    ended = np.bincount(np.minimum(lengths, QUITS - 1), minlength=QUITS).astype(np.float64)
    reached = np.cumsum(ended[::-1])[::-1].copy()
    # Sequences in the last bucket went on for a while before they ended.
    reached[-1] = max(float(lengths[lengths >= QUITS - 1].sum() - (QUITS - 2) * ended[-1]), 0.0)
    return ((ended + 1.0) / (reached + 2.0)).astype(np.float32)


@njit(cache=True, nogil=True)
def _offsets(items: Any, n: int) -> Any:
    """Where each item's places start if places are grouped by item, int64 [n + 1]."""
    at = np.zeros(n + 1, np.int64)
    for p in range(items.shape[0]):
        at[items[p] + 1] += 1
    for i in range(n):
        at[i + 1] += at[i]
    return at


@njit(cache=True, nogil=True)
def _places(starts: Any, items: Any, n: int) -> Any:
    """Where each item occurs: offsets [n + 1], places [E] and their sequences [E]."""
    events = items.shape[0]
    at = _offsets(items, n)
    places = np.empty(events, np.int64)
    sequences = np.empty(events, np.int64)
    cursor = at[:-1].copy()
    for s in range(starts.shape[0] - 1):
        for p in range(starts[s], starts[s + 1]):
            item = items[p]
            places[cursor[item]] = p
            sequences[cursor[item]] = s
            cursor[item] += 1
    return at, places, sequences


@njit(cache=True, nogil=True)
def _bounded_places(starts: Any, items: Any, fresh: Any, n: int, direction: int) -> Any:
    """Where each item occurs: offsets [n + 1], places [E], where its sequence stops and what that
    sequence counts for, [E] each.

    In a kernel that walks from every place this saves it far reads of `starts` and `fresh`.
    """
    events = items.shape[0]
    at = _offsets(items, n)
    places = np.empty(events, np.int64)
    stops = np.empty(events, np.int64)
    counts_for = np.empty(events, np.float32)
    cursor = at[:-1].copy()
    for s in range(starts.shape[0] - 1):
        stop = starts[s + 1] if direction > 0 else starts[s] - 1
        for p in range(starts[s], starts[s + 1]):
            o = cursor[items[p]]
            places[o] = p
            stops[o] = stop
            counts_for[o] = fresh[s]
            cursor[items[p]] = o + 1
    return at, places, stops, counts_for


@njit(cache=True, nogil=True)
def _links(
    starts: Any,
    items: Any,
    fresh: Any,
    n: int,
    steps: int,
    decay: float,
    kept_max: int,
    direction: int,
) -> Any:
    """The arrays of Links: what comes after each item (direction 1) or before it (-1)."""
    at, places, stops, counts_for = _bounded_places(starts, items, fresh, n, direction)
    totals = np.zeros((n, 2), np.float32)
    indptr = np.zeros(n + 1, np.int64)
    weight_of = np.zeros(n, np.float32)
    direct_of = np.zeros(n, np.float32)
    seen = np.empty(n, np.int32)
    out_items = np.empty(1024, np.int32)
    out_weights = np.empty(1024, np.float32)
    out_direct = np.empty(1024, np.float32)
    weights = np.float32(decay) ** np.arange(steps).astype(np.float32)
    filled = 0
    for item in range(n):
        found = 0
        total = np.float32(0.0)
        direct = np.float32(0.0)
        for o in range(at[item], at[item + 1]):
            p = places[o] + direction
            near = min(steps, (stops[o] - p) * direction)
            if near <= 0:
                continue
            counts = counts_for[o]
            direct_of[items[p]] += counts
            direct += counts
            for step in range(near):
                other = items[p]
                if weight_of[other] == 0.0:
                    seen[found] = other
                    found += 1
                weight_of[other] += counts * weights[step]
                total += counts * weights[step]
                p += direction
        totals[item, 0] = total
        totals[item, 1] = direct
        # What weighs as much as the lightest kept entry is kept in order of first appearance.
        kept = min(found, kept_max)
        lightest = np.float32(0.0)
        room = 0
        if found > kept_max:
            values = np.sort(weight_of[seen[:found]])
            lightest = values[found - kept_max]
            room = kept_max - np.sum(values > lightest)
        while filled + kept > out_items.shape[0]:
            out_items = np.concatenate((out_items, np.empty_like(out_items)))
            out_weights = np.concatenate((out_weights, np.empty_like(out_weights)))
            out_direct = np.concatenate((out_direct, np.empty_like(out_direct)))
        for k in range(found):
            other = seen[k]
            keep = weight_of[other] > lightest
            if weight_of[other] == lightest and room > 0:
                room -= 1
                keep = True
            if keep:
                out_items[filled] = other
                out_weights[filled] = weight_of[other]
                out_direct[filled] = direct_of[other]
                filled += 1
            weight_of[other] = 0.0
            direct_of[other] = 0.0
        indptr[item + 1] = filled
    return (
        indptr,
        out_items[:filled].copy(),
        out_weights[:filled].copy(),
        out_direct[:filled].copy(),
        totals,
    )


@njit(cache=True, nogil=True)
def _postings(starts: Any, items: Any, n: int, postings_max: int) -> Any:
    """For each item its newest sequences and the last place in each, oldest first."""
    at, places, sequences = _places(starts, items, n)
    offsets = np.zeros(n + 1, np.int64)
    out = np.empty((items.shape[0], 2), np.int32)
    filled = 0
    for item in range(n):
        first = filled
        distinct = 0
        for o in range(at[item], at[item + 1]):
            if o == at[item] or sequences[o] != sequences[o - 1]:
                distinct += 1
        skipped = distinct - postings_max
        for o in range(at[item], at[item + 1]):
            if o > at[item] and sequences[o] == sequences[o - 1]:
                if filled > first:
                    out[filled - 1, 1] = places[o]
                continue
            skipped -= 1
            if skipped >= 0:
                continue
            out[filled, 0] = sequences[o]
            out[filled, 1] = places[o]
            filled += 1
        offsets[item + 1] = filled
    return offsets, out[:filled].copy()
