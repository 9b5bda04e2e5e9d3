"""Arrays that are reserved at once, and take memory only as they fill."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Linux's MAP_NORESERVE, which Python 3.11 does not name.
_MAP_NORESERVE = 0x4000


def reserve(dtype: np.dtype[Any] | type, count: int) -> NDArray[Any]:
    """A zeroed array whose memory is only reserved: pages cost nothing until they are written."""
    bytes_wanted = max(np.dtype(dtype).itemsize * count, mmap.PAGESIZE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, bytes_wanted, flags=flags), dtype=dtype, count=count)
