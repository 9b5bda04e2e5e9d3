"""Which surface last showed an item to a person, so that an event teaches that surface's weights.

A table of fixed size in which a newer entry takes the place of an older one: what was overwritten
counts as not shown, and its event teaches the belief over all surfaces only. It is not logged:
after a restart it is empty, and of replayed events nothing is left of where they came from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.arena import reserve

SLOTS = 1 << 20
"""8 MB once all are in use; ten results a decision, that is the last 100,000 decisions."""
_SLOT_BITS = 20
_SURFACE_BITS = 3


class Shown:
    """The table of one tenant on one shard. Surfaces are numbers from 1 to 7."""

    def __init__(self) -> None:
        self._table: NDArray[np.uint64] = reserve(np.uint64, SLOTS)

    def note(self, key: int, surface: int, items: NDArray[np.int32]) -> None:
        """The person with this key is shown `items` on a surface."""
        _note(self._table, key, surface, items)

    def surface(self, key: int, item: int) -> int:
        """Where the person was last shown the item; 0 if nowhere that is remembered."""
        return int(_surface(self._table, key, item))


@njit(cache=True)
def _signature(key: Any, item: Any) -> Any:
    # splitmix64's mixer: all bits of key and item reach the slot, which is taken from the top.
    x = np.uint64(key) ^ (np.uint64(item + 1) * np.uint64(0x9E3779B97F4A7C15))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def _note(table: Any, key: Any, surface: Any, items: Any) -> None:
    for i in range(items.shape[0]):
        x = _signature(key, np.int64(items[i]))
        kept = (x >> np.uint64(_SURFACE_BITS)) << np.uint64(_SURFACE_BITS)
        table[np.int64(x >> np.uint64(64 - _SLOT_BITS))] = kept | np.uint64(surface)


@njit(cache=True)
def _surface(table: Any, key: Any, item: Any) -> Any:
    x = _signature(key, np.int64(item))
    entry = table[np.int64(x >> np.uint64(64 - _SLOT_BITS))]
    mask = np.uint64((1 << _SURFACE_BITS) - 1)
    same = entry >> np.uint64(_SURFACE_BITS) == x >> np.uint64(_SURFACE_BITS)
    return np.int64(entry & mask) if same else np.int64(0)
