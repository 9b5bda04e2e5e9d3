"""Published baselines, plainly written, on the same train stream and cases. Nothing is tuned.

popularity    how often an item was acted on
item-to-item  how often an item came right after the current one
VS-kNN        Ludewig and Jannach 2018, as in session-rec: 100 of the 1,000 newest similar sessions,
              both weights linear in the position
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.bench.quality_data import Case, Data

NEIGHBOURS = 100
SAMPLE = 1000
HISTORY_MAX = 50

Score = Callable[[list[int]], NDArray[np.float64]]


def baselines(data: Data) -> dict[str, Score]:
    """Scores of all items after a history, by baseline."""
    order = np.argsort(data.people, kind="stable")
    # Sessions in order of their first event, as in the stream.
    _, first, lengths = np.unique(data.people, return_index=True, return_counts=True)
    rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")
    order = order[np.argsort(np.repeat(rank, lengths), kind="stable")]
    items = data.items[order]
    starts = np.concatenate([[0], np.cumsum(lengths[np.argsort(first, kind="stable")])])
    counts = np.bincount(items, minlength=data.items_n).astype(np.float64)
    sessions_at, sessions = _sessions_of(starts, items, data.items_n)

    def popularity(history: list[int]) -> NDArray[np.float64]:
        return counts

    next_at, next_items = _followers(starts, items, data.items_n)

    def item_to_item(history: list[int]) -> NDArray[np.float64]:
        last = history[-1]
        followers = next_items[next_at[last] : next_at[last + 1]]
        return np.bincount(followers, minlength=data.items_n).astype(np.float64)

    def vs_knn(history: list[int]) -> NDArray[np.float64]:
        recent = np.array(history[-HISTORY_MAX:], np.int64)
        scores: NDArray[np.float64] = _vs_knn(
            recent, starts, items, sessions_at, sessions, data.items_n
        )
        return scores

    return {"popularity": popularity, "item-to-item": item_to_item, "VS-kNN": vs_knn}


def rank_of(scores: NDArray[np.float64], case: Case, hidden: str) -> float:
    """Rank of the target among all items that may be shown; a tie takes the middle rank."""
    scores = scores.copy()
    if hidden == "current":
        scores[case.history[-1]] = -1.0
    elif hidden == "seen":
        scores[case.history] = -1.0
    wanted = scores[case.target]
    better = int((scores > wanted).sum())
    return 1 + better + (int((scores == wanted).sum()) - 1) / 2


def _followers(
    starts: NDArray[Any], items: NDArray[np.int32], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For each item what came right after it: offsets [n + 1] and items."""
    last = np.zeros(len(items), bool)
    last[starts[1:] - 1] = True
    places = np.flatnonzero(~last)
    order = np.argsort(items[places], kind="stable")
    at = np.concatenate([[0], np.cumsum(np.bincount(items[places], minlength=n))])
    return at, items[places + 1][order]


@njit(cache=True)
def _sessions_of(starts: Any, items: Any, n: int) -> Any:
    """For each item the sessions that it is in: offsets [n + 1] and sessions, ascending."""
    at = np.zeros(n + 1, np.int64)
    last = np.full(n, -1, np.int64)
    for s in range(starts.shape[0] - 1):
        for p in range(starts[s], starts[s + 1]):
            if last[items[p]] != s:
                at[items[p] + 1] += 1
                last[items[p]] = s
    at = np.cumsum(at)
    cursor = at[:-1].copy()
    last[:] = -1
    out = np.empty(at[n], np.int64)
    for s in range(starts.shape[0] - 1):
        for p in range(starts[s], starts[s + 1]):
            if last[items[p]] != s:
                out[cursor[items[p]]] = s
                cursor[items[p]] += 1
                last[items[p]] = s
    return at, out


@njit(cache=True)
def _vs_knn(recent: Any, starts: Any, items: Any, at: Any, sessions: Any, n: int) -> Any:
    """Scores of all n items, float64 [n]."""
    length = recent.shape[0]
    weight_of = {np.int64(-1): 0.0}
    for j in range(length):
        weight_of[recent[j]] = (j + 1) / length
    similarity = {np.int64(-1): 0.0}
    for item in weight_of:
        if item >= 0:
            for o in range(at[item], at[item + 1]):
                s = sessions[o]
                similarity[s] = similarity.get(s, 0.0) + weight_of[item]
    found = np.array([s for s in similarity if s >= 0])
    scores = np.zeros(n)
    if found.shape[0] == 0:
        return scores
    found = np.sort(found)[-SAMPLE:]
    values = np.array([similarity[s] for s in found])
    for k in np.argsort(-values, kind="mergesort")[:NEIGHBOURS]:
        s = found[k]
        weight = 0.0
        for step in range(length):
            inside = False
            for p in range(starts[s], starts[s + 1]):
                inside = inside or items[p] == recent[length - 1 - step]
            if inside:
                weight = max(1.0 - 0.1 * step, 0.0)
                break
        for p in range(starts[s], starts[s + 1]):
            repeated = False
            for q in range(starts[s], p):
                repeated = repeated or items[q] == items[p]
            if not repeated:
                scores[items[p]] += values[k] * weight
    return scores
