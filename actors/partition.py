"""Columns of events cut by owner: contiguous arrays, each row copied once. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Chunk = dict[str, NDArray[Any]]
"""One owner's events: key_hi, key_lo int64, item int32, type uint8, value float32, time uint32."""

_NAMES = ("key_hi", "key_lo", "item", "type", "value", "time")
_TYPES = (np.uint64, np.uint64, np.int32, np.uint8, np.float32, np.uint32)


def split(
    starts: NDArray[np.uint64],
    numbers: NDArray[np.uint8],
    columns: tuple[NDArray[Any], ...],
    faults: NDArray[np.uint8],
) -> list[Chunk]:
    """One chunk per owner of the rows without fault, in their order.

    starts   uint64 [owners], first position of each owner's range, ascending, the first 0
    numbers  uint8 [owners, names], the number that each owner gave an event name
    columns  hi, lo, item, name, value, time; arrays [n] of the types of a chunk, the name int32
    faults   uint8 [n], 0 = none
    """
    out = [np.empty(len(faults), dtype) for dtype in _TYPES]
    arrays: list[Any] = [*columns, faults, *out]
    bounds = _scatter(starts, numbers, *arrays).tolist()
    # Stores keep the halves of a hash as signed numbers.
    views = [out[0].view(np.int64), out[1].view(np.int64), *out[2:]]
    return [
        {name: view[start:stop] for name, view in zip(_NAMES, views, strict=True)}
        for start, stop in pairwise(bounds)
    ]


@njit(cache=True, nogil=True)
def _scatter(
    starts: Any,
    numbers: Any,
    hi: Any,
    lo: Any,
    item: Any,
    kind: Any,
    value: Any,
    time_s: Any,
    faults: Any,
    out_hi: Any,
    out_lo: Any,
    out_item: Any,
    out_kind: Any,
    out_value: Any,
    out_time: Any,
) -> Any:
    """Copy the rows without fault to the out arrays, owner by owner; int64 [owners + 1] bounds."""
    owners = len(starts)
    bounds = np.zeros(owners + 1, np.int64)
    owner_of = np.empty(len(hi), np.uint16)
    for i in range(len(hi)):
        if faults[i] != 0:
            continue
        low, high = 0, owners
        while high - low > 1:
            middle = (low + high) >> 1
            if hi[i] >= starts[middle]:
                low = middle
            else:
                high = middle
        owner_of[i] = low
        bounds[low + 1] += 1
    for owner in range(owners):
        bounds[owner + 1] += bounds[owner]
    cursor = bounds[:-1].copy()
    for i in range(len(hi)):
        if faults[i] != 0:
            continue
        owner = owner_of[i]
        at = cursor[owner]
        cursor[owner] = at + 1
        out_hi[at] = hi[i]
        out_lo[at] = lo[i]
        out_item[at] = item[i]
        out_kind[at] = numbers[owner, kind[i]]
        out_value[at] = value[i]
        out_time[at] = time_s[i]
    return bounds
