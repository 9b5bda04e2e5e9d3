"""The work that every arm of `tests.bench.hop` does, its requests, and a reference to check it.

A request carries one event and 100 candidates. It adds one to the person's counter of that event
type, puts the item into the ring of the last 20, moves the person's vector, v = 0.9 v + 0.1 m in
float32, m being the item's embedding, and answers the ten candidates with the largest m . v.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PEOPLE = 100_000
ITEMS = 5_000
DIMENSIONS = 32
CANDIDATES = 100
RESULTS = 10
RING = 20
HISTORY = 5
"""Events that each person has before the first request, in every arm."""
CHECK_PEOPLE = 50
"""The last people are in no load, so that what they are answered can be foretold."""
POOL = 20_000
"""Distinct requests of the load; each is sent with a new messageId."""
EVENT = "Item Viewed"
KEEP = np.float32(0.9)
TAKE = np.float32(0.1)
TIE = 1e-4
"""Checked scores lie at least this far apart: no order of summation can swap two of them."""
MESSAGE_ID_BYTES = 24

Vector = NDArray[np.float32]


class Request(NamedTuple):
    """One request: person, item of the event and candidates, as numbers."""

    person: int
    item: int
    candidates: NDArray[np.int64]


def person_id(person: int) -> str:
    return f"u{person}"


def item_id(item: int) -> str:
    return f"i{item}"


def embeddings(seed: int) -> Vector:
    """float32 [ITEMS, DIMENSIONS], the catalogue."""
    return np.random.default_rng(seed).standard_normal((ITEMS, DIMENSIONS), dtype=np.float32)


def histories(seed: int) -> NDArray[np.int64]:
    """[PEOPLE, HISTORY], the items each person has viewed, oldest first."""
    return np.random.default_rng(seed + 1).integers(0, ITEMS, (PEOPLE, HISTORY))


def moved(vectors: Vector, towards: Vector) -> Vector:
    """The vectors after an event on items with the embeddings `towards`; shapes agree."""
    return KEEP * vectors + TAKE * towards


def vectors_after(history: NDArray[np.int64], items: Vector) -> Vector:
    """float32 [people, DIMENSIONS], everybody's vector after their history."""
    vectors = np.zeros((len(history), DIMENSIONS), np.float32)
    for step in range(history.shape[1]):
        vectors = moved(vectors, items[history[:, step]])
    return vectors


def drawn(generator: np.random.Generator, person: int) -> Request:
    candidates = generator.choice(ITEMS, CANDIDATES, replace=False)
    return Request(person, int(generator.integers(ITEMS)), candidates)


def tail(request: Request, policy: str) -> bytes:
    """The body after the value of `messageId`, which comes first."""
    decision: dict[str, object] = {"surface": "product", "policy": policy}
    decision["actions"] = [item_id(int(i)) for i in request.candidates]
    decision["numResults"] = RESULTS
    rest = {
        "userId": person_id(request.person),
        "events": [{"event": EVENT, "properties": {"itemId": item_id(request.item)}}],
        "decisions": [decision],
    }
    return b'",' + json.dumps(rest, separators=(",", ":")).encode()[1:]


def body(message_id: str, rest: bytes) -> bytes:
    return b'{"messageId":"' + message_id.encode() + rest


def write_pool(path: Path, seed: int, policy: str) -> None:
    """The pool of load requests, one `tail` a line."""
    generator = np.random.default_rng(seed + 2)
    people = generator.integers(0, PEOPLE - CHECK_PEOPLE, POOL)
    with path.open("wb") as file:
        for person in people:
            file.write(tail(drawn(generator, int(person)), policy) + b"\n")


class Reference:
    """Foretells what one arm's state answers to the check people, in plain numpy."""

    def __init__(self, seed: int) -> None:
        self._items = embeddings(seed)
        self._vectors = vectors_after(histories(seed)[-CHECK_PEOPLE:], self._items)
        self._generator = np.random.default_rng(seed + 3)
        self._asked = 0

    def next(self) -> tuple[bytes, list[str]]:
        """The next checking body, and the ids that must come back, best first."""
        at = self._asked % CHECK_PEOPLE
        while True:
            request = drawn(self._generator, PEOPLE - CHECK_PEOPLE + at)
            vector = moved(self._vectors[at], self._items[request.item])
            scores = self._items[request.candidates] @ vector
            order = np.argsort(-scores)[: RESULTS + 1]
            if np.diff(-scores[order]).min() > TIE:
                break
        self._vectors[at] = vector
        self._asked += 1
        best = [item_id(int(request.candidates[i])) for i in order[:RESULTS]]
        # The generator names the run, so that a second check sends no old messageId.
        name = f"check{id(self) & 0xFFFFFF:07x}{self._asked:012d}"
        return body(name, tail(request, "vector")), best


def ranked_ids(answer: bytes) -> list[str]:
    """The ids of an answer's first decision, best first."""
    return [entry["id"] for entry in json.loads(answer)["decisions"][0]["ranking"]]
