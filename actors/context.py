"""What the context of a request (device, hour, referrer, page, ...) says about the next action.

Counts of how often an item, or an item with an attribute, was acted on under each context value,
against how often it is acted on at all: the logarithm of that ratio, shrunk towards 0 while there
is little to go by, is added to a candidate's score (naive Bayes over the context's values). The
counts live in one hashed table of sums, so what several shards counted adds up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.arena import reserve

SLOTS = 1 << 17
VALUES_MAX = 8
"""Context values of one request that count; further ones are left out."""
SHRINK = 5.0
"""Events, expected and seen alike, that are added before the ratio is taken: the Gamma-Poisson
shrinkage of DuMouchel 1999, by which a rare item needs more than one coincidence."""
ALWAYS = 0  # the code of "whatever the context"
_TOTAL = -1
_ATTRIBUTES = 1 << 32  # attribute ids are put behind item numbers

Codes = NDArray[np.int64]
NO_CODES: Codes = np.zeros(0, np.int64)


def codes_of(context: Mapping[str, str | float | bool | None]) -> Codes:
    """Numbers of a context's values, the same in every process; names in order, null left out.

    >>> len(codes_of({"device": "ios", "hour": 13, "referrer": None}))
    2
    """
    if not context:
        return NO_CODES
    named = [f"{k}={v}" for k, v in sorted(context.items()) if v is not None]
    return np.array([crc32(text.encode()) | 1 << 40 for text in named[:VALUES_MAX]], np.int64)


class ContextCounts:
    """The table of one tenant."""

    def __init__(self) -> None:
        self._table: NDArray[np.float32] = reserve(np.float32, SLOTS)
        self._taken: NDArray[np.float32] = reserve(np.float32, SLOTS)
        self.learned = 0

    def learn(self, codes: Codes, item: int, attributes: NDArray[np.int32]) -> None:
        """Count one event on an item. attributes int32 [a], -1 = none."""
        _learn(self._table, codes, item, attributes)
        self.learned += 1

    def lift(
        self, codes: Codes, items: NDArray[np.int32], attributes: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """What to add to the scores of `items`; float32 [n], 0 where nothing is known.

        attributes  int32 [items_max, a], of the whole catalogue
        """
        out = np.zeros(len(items), np.float32)
        _lift(self._table, codes, items, attributes, out)
        return out

    def take(self) -> NDArray[np.float32] | None:
        """What was counted since the last `take`, float32 [SLOTS]; None if nothing."""
        if not self.learned:
            return None
        self.learned = 0
        change = self._table - self._taken
        np.copyto(self._taken, self._table)
        return change

    def install(self, total: NDArray[np.float32]) -> None:
        """Go on from what all shards counted; what was not taken yet stays on top of it."""
        own = self._table - self._taken
        np.copyto(self._taken, total)
        np.add(total, own, out=self._table)


@njit(cache=True)
def _slot(code: Any, key: Any) -> Any:
    # Multiply and fold (Knuth 6.4): spreads neighbouring items and codes over the table.
    mixed = np.uint64(code) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.uint64(key + 2) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.int64(mixed >> np.uint64(47))


@njit(cache=True)
def _learn(table: Any, codes: Any, item: Any, attributes: Any) -> None:
    for i in range(-1, len(codes)):
        code = np.int64(ALWAYS) if i < 0 else codes[i]
        table[_slot(code, np.int64(_TOTAL))] += 1
        table[_slot(code, np.int64(item))] += 1
        for a in range(len(attributes)):
            if attributes[a] >= 0:
                table[_slot(code, np.int64(attributes[a] + _ATTRIBUTES))] += 1


@njit(cache=True)
def _ratio(table: Any, code: Any, key: Any) -> Any:
    """log of how much likelier `key` is under `code` than at all, shrunk."""
    always = np.int64(ALWAYS)
    share = table[_slot(always, key)] / table[_slot(always, np.int64(_TOTAL))]
    expected = table[_slot(code, np.int64(_TOTAL))] * share
    return math.log((table[_slot(code, key)] + SHRINK) / (expected + SHRINK))


@njit(cache=True)
def _lift(table: Any, codes: Any, items: Any, attributes: Any, out: Any) -> None:
    if table[_slot(np.int64(ALWAYS), np.int64(_TOTAL))] <= 0.0:
        return
    for c in range(len(codes)):
        for i in range(len(items)):
            best = _ratio(table, codes[c], np.int64(items[i]))
            for a in range(attributes.shape[1]):
                if attributes[items[i], a] >= 0:
                    key = np.int64(attributes[items[i], a] + _ATTRIBUTES)
                    found = _ratio(table, codes[c], key)
                    # Item and attributes tell of the same thing: the clearest counts, once.
                    if abs(found) > abs(best):
                        best = found
            out[i] += best
