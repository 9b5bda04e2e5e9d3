"""What the peers' arms share: the messages as pydantic models, and the work in numpy and numba."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import BaseModel

from tests.bench.hop_work import (
    EVENT,
    ITEMS,
    PEOPLE,
    RING,
    Vector,
    embeddings,
    histories,
    item_id,
    moved,
    person_id,
    vectors_after,
)


class Properties(BaseModel):
    itemId: str


class Event(BaseModel):
    event: str
    properties: Properties


class DecisionSpec(BaseModel):
    surface: str
    policy: str
    actions: list[str]
    numResults: int


class DecideRequest(BaseModel):
    messageId: str
    userId: str
    events: list[Event]
    decisions: list[DecisionSpec]


class Ranked(BaseModel):
    id: str
    score: float


class Decision(BaseModel):
    surface: str
    ranking: list[Ranked]


class Answer(BaseModel):
    decisions: list[Decision]


def item_numbers() -> dict[str, int]:
    """Item id -> row of the catalogue."""
    return {item_id(i): i for i in range(ITEMS)}


def best(items: Vector, candidates: list[int], vector: Vector, k: int) -> list[tuple[int, float]]:
    """The k candidates with the largest dot product, best first: numpy, as one would write it."""
    rows = np.array(candidates)
    scores = items[rows] @ vector
    top = np.argpartition(-scores, min(k, len(scores) - 1))[:k]
    top = top[np.argsort(-scores[top])]
    return [(int(rows[i]), float(scores[i])) for i in top]


class Profiles:
    """Everybody's state in the memory of one process, columnar: what the Ray actor holds."""

    def __init__(self, seed: int) -> None:
        self.items = embeddings(seed)
        self.item_of = item_numbers()
        self.names = list(self.item_of)
        history = histories(seed)
        self.row_of = {person_id(p): p for p in range(PEOPLE)}
        self.vectors = vectors_after(history, self.items)
        self.ring = np.zeros((PEOPLE, RING), np.int32)
        self.ring[:, : history.shape[1]] = history
        self.seen = np.full(PEOPLE, history.shape[1])
        self.counters: dict[str, NDArray[np.int64]] = {EVENT: self.seen.copy()}

    def decide(
        self, user: str, events: list[tuple[str, str]], decisions: list[tuple[list[str], int]]
    ) -> list[list[tuple[str, float]]]:
        """Apply (event, item id) pairs, then rank each (candidates, k)."""
        row = self.row_of[user]
        for event, item in events:
            number = self.item_of[item]
            self.counters[event][row] += 1
            self.ring[row, self.seen[row] % RING] = number
            self.seen[row] += 1
            self.vectors[row] = moved(self.vectors[row], self.items[number])
        vector = self.vectors[row]
        return [
            [
                (self.names[i], score)
                for i, score in best(self.items, [self.item_of[a] for a in actions], vector, k)
            ]
            for actions, k in decisions
        ]


@njit(cache=True, fastmath=True)
def best_into(items, candidates, vector, out_rows, out_scores):
    """Numba twin of `best`: insertion into the out arrays [k]; returns how many it filled."""
    k, filled = out_rows.shape[0], 0
    for i in range(candidates.shape[0]):
        row = candidates[i]
        score = np.float32(0)
        for j in range(vector.shape[0]):
            score += items[row, j] * vector[j]
        if filled < k or score > out_scores[filled - 1]:
            at = filled if filled < k else k - 1
            while at > 0 and out_scores[at - 1] < score:
                out_scores[at], out_rows[at] = out_scores[at - 1], out_rows[at - 1]
                at -= 1
            out_scores[at], out_rows[at] = score, row
            if filled < k:
                filled += 1
    return filled
