"""What is derived from a history and read by every decision: counts and indexes. Immutable.

`build` is a pure function of its history, so equal histories give equal bases, and a base can be
built in one process and read in many. Nothing here is ever written after it was built.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.engine.history import History

STEPS = 8
"""How many events apart two items may be and still count as one following the other."""
STEP_DECAY = 0.7
"""What a transition over one more step counts for."""
SUCCESSORS_MAX = 128
"""Successors kept per item, the heaviest."""
POPULAR_MAX = 256
"""Length of the list of most popular items, which is a candidate for everyone."""


class Base(NamedTuple):
    """The derived state over n items.

    history     what it was built from
    indptr      int64 [n + 1], where each item's successors start
    successors  int32 [T], by falling weight per item
    weights     float32 [T], decayed counts
    totals      float32 [n], sum of all weights of an item, those cut off included
    counts      float32 [n], events per item
    popular     int32 [POPULAR_MAX or fewer], by falling count
    """

    history: History
    indptr: NDArray[np.int64]
    successors: NDArray[np.int32]
    weights: NDArray[np.float32]
    totals: NDArray[np.float32]
    counts: NDArray[np.float32]
    popular: NDArray[np.int32]

    @property
    def bytes_used(self) -> int:
        return self.history.bytes_used + sum(int(array.nbytes) for array in self[1:])


def build(history: History, n: int) -> Base:
    """The base of `history` over items 0..n-1."""
    indptr, successors, weights, totals, counts = _transitions(
        history.starts, history.items, n, STEPS, STEP_DECAY, SUCCESSORS_MAX
    )
    size = min(POPULAR_MAX, int(np.count_nonzero(counts)))
    popular = np.argsort(-counts, kind="stable")[:size].astype(np.int32)
    return Base(history, indptr, successors, weights, totals, counts, popular)


@njit(cache=True, nogil=True)
def _transitions(
    starts: Any, items: Any, n: int, steps: int, decay: float, successors_max: int
) -> Any:
    """Decayed multi-step transition counts, per item the `successors_max` heaviest."""
    events = items.shape[0]
    at = np.zeros(n + 1, np.int64)
    for p in range(events):
        at[items[p] + 1] += 1
    for i in range(n):
        at[i + 1] += at[i]
    counts = np.diff(at).astype(np.float32)
    # Occurrences of each item, with the end of the sequence that they stand in.
    places = np.empty(events, np.int64)
    ends = np.empty(events, np.int64)
    cursor = at[:-1].copy()
    for s in range(starts.shape[0] - 1):
        for p in range(starts[s], starts[s + 1]):
            item = items[p]
            places[cursor[item]] = p
            ends[cursor[item]] = starts[s + 1]
            cursor[item] += 1
    totals = np.zeros(n, np.float32)
    indptr = np.zeros(n + 1, np.int64)
    weight_of = np.zeros(n, np.float32)
    seen = np.empty(n, np.int32)
    successors = np.empty(1024, np.int32)
    weights = np.empty(1024, np.float32)
    filled = 0
    for item in range(n):
        found = 0
        for o in range(at[item], at[item + 1]):
            weight = np.float32(1.0)
            for q in range(places[o] + 1, min(places[o] + 1 + steps, ends[o])):
                other = items[q]
                if weight_of[other] == 0.0:
                    seen[found] = other
                    found += 1
                weight_of[other] += weight
                totals[item] += weight
                weight *= np.float32(decay)
        order = np.argsort(-weight_of[seen[:found]], kind="mergesort")
        kept = min(found, successors_max)
        while filled + kept > successors.shape[0]:
            successors = np.concatenate((successors, np.empty_like(successors)))
            weights = np.concatenate((weights, np.empty_like(weights)))
        for k in range(kept):
            other = seen[order[k]]
            successors[filled + k] = other
            weights[filled + k] = weight_of[other]
        for k in range(found):
            weight_of[seen[k]] = 0.0
        filled += kept
        indptr[item + 1] = filled
    return indptr, successors[:filled].copy(), weights[:filled].copy(), totals, counts
