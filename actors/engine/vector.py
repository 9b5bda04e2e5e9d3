"""The `vector` policy: a person is the decayed mean of the embeddings of what they acted on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.engine.interface import Items, People, Ranking
from actors.engine.kernels import insert

RESULTS_MAX = 1024
EMPTY = np.zeros(0, np.float32)


class VectorPolicy:
    """Ranks by the dot product of the person's vector and each item's embedding.

    The vector lies in the person's blob and is updated by the store (`blend`), so there is
    nothing to learn here. An item without an embedding has the zero vector and scores 0.
    """

    policy_id = "vector"
    version = "vector"

    def __init__(self, people: People, items: Items, items_max: int) -> None:
        self._people = people
        self._items = items
        self._blocked = np.zeros(items_max, np.uint8)
        self._found_items = np.zeros(RESULTS_MAX, np.int32)
        self._found_scores = np.zeros(RESULTS_MAX, np.float32)

    def rank(
        self,
        row: int,
        candidates: NDArray[np.int32] | None,
        k: int,
        excluded: NDArray[np.int32],
    ) -> Ranking:
        """The k best of `candidates` (None: all items), best first; no probabilities.

        A person without a vector gets the candidates in their order, all with score 0.
        """
        items, people = self._items, self._people
        embeddings = items.embeddings
        if candidates is None:
            candidates = np.arange(items.n, dtype=np.int32)
        if len(excluded):
            self._blocked[excluded] = 1
        found = top(
            people.rows,
            people.words.view(np.float32),
            row,
            EMPTY.reshape(0, 0) if embeddings is None else embeddings,
            candidates,
            items.alive,
            self._blocked,
            min(k, RESULTS_MAX),
            self._found_items,
            self._found_scores,
        )
        if len(excluded):
            self._blocked[excluded] = 0
        return Ranking(self._found_items[:found].copy(), self._found_scores[:found].copy(), EMPTY)


@njit(cache=True, fastmath=True)
def top(
    rows: Any,
    floats: Any,
    row: int,
    embeddings: Any,
    candidates: Any,
    alive: Any,
    blocked: Any,
    k: int,
    items: Any,
    scores: Any,
) -> int:
    """Fill `items` and `scores` with the k best candidates, best first. Returns how many.

    floats  float32, the store's words; the person's vector is the first vector_d of the blob
    """
    d: Any = 0
    at: Any = 0
    if row >= 0:
        d = min(np.int64(rows[row].vector_d), embeddings.shape[1])
        at = np.int64(rows[row].blob_at)
    vector = floats[at : at + d]
    found = 0
    for i in range(candidates.shape[0]):
        item = candidates[i]
        if alive[item] == 0 or blocked[item] != 0:
            continue
        score = np.float32(0.0)
        for j in range(d):
            score += embeddings[item, j] * vector[j]
        if found == k and score <= scores[k - 1]:
            continue
        found = insert(item, score, found, k, items, scores)
    return found
