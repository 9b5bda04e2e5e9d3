"""From features to the answer: scores, the k best that may be shown, and their probabilities."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.engine.kernels import best
from actors.engine.stacker import logits

SMOOTHING = 0.5
"""Events that every item is credited with, so that what was never seen is not impossible."""


class Results(NamedTuple):
    """Working space for the answer. All arrays [results_max]."""

    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]


def new_results(results_max: int) -> Results:
    """Space for up to `results_max` items."""
    return Results(
        np.zeros(results_max, np.int32),
        np.zeros(results_max, np.float32),
        np.zeros(results_max, np.float32),
    )


@njit(cache=True, nogil=True)
def select(
    features: Any,
    items: Any,
    of: Any,
    found: Any,
    n: Any,
    wanted: Any,
    everything: Any,
    weights: Any,
    scores: Any,
    alive: Any,
    blocked: Any,
    excluded: Any,
    seen: Any,
    k: Any,
    sharpness: Any,
    missed: Any,
    counts: Any,
    count_sum: Any,
    out: Any,
    out_scores: Any,
    out_probabilities: Any,
) -> Any:
    """Fill `out` with the k best of `wanted` (or of all candidates), best first.

    found      of the n candidates the first so many were found, the others only asked for
    sharpness  what scores are multiplied by before their softmax is a probability
    missed     P(the next action is on none of those found)
    count_sum  sum of counts + SMOOTHING over all items
    A probability is given that the next action is on an item that is alive and not blocked.
    Returns how many there are.
    """
    logits(features, n, weights, scores)
    for a in range(excluded.shape[0]):
        blocked[excluded[a]] = 1
    for a in range(seen.shape[0]):
        blocked[seen[a]] = 1
    if everything:
        chosen = best(items, scores, n, alive, blocked, k, out, out_scores)
    else:
        asked = np.empty(wanted.shape[0], np.float32)
        for a in range(wanted.shape[0]):
            asked[a] = scores[of[wanted[a]]]
        chosen = best(wanted, asked, wanted.shape[0], alive, blocked, k, out, out_scores)
    _probabilities(
        items, of, found, scores, alive, blocked, sharpness, missed, counts, count_sum, chosen,
        out, out_probabilities,
    )  # fmt: skip
    for a in range(excluded.shape[0]):
        blocked[excluded[a]] = 0
    for a in range(seen.shape[0]):
        blocked[seen[a]] = 0
    return chosen


@njit(cache=True, nogil=True, fastmath=True)
def _probabilities(
    items: Any,
    of: Any,
    found: Any,
    scores: Any,
    alive: Any,
    blocked: Any,
    sharpness: Any,
    missed: Any,
    counts: Any,
    count_sum: Any,
    chosen: Any,
    out: Any,
    out_probabilities: Any,
) -> None:
    """P of each chosen item: a softmax over those found; the rest share `missed` by count."""
    sharp = np.float32(sharpness)
    highest = np.float32(-1e30)
    for c in range(found):
        if alive[items[c]] != 0 and blocked[items[c]] == 0:
            highest = max(highest, scores[c])
    total = np.float32(0.0)
    outside = np.float64(count_sum)
    for c in range(found):
        outside -= counts[items[c]] + SMOOTHING
        if alive[items[c]] != 0 and blocked[items[c]] == 0:
            total += math.exp(sharp * (scores[c] - highest))
    share = np.float32(1.0 - missed) if outside >= SMOOTHING else np.float32(1.0)
    for a in range(chosen):
        slot = of[out[a]]
        if slot < found:
            out_probabilities[a] = share * math.exp(sharp * (scores[slot] - highest)) / total
        else:
            out_probabilities[a] = missed * (counts[out[a]] + SMOOTHING) / max(outside, SMOOTHING)
