"""Arrays that another process made, mapped from shared memory, as numba likes them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Arrays = TypeVar("Arrays", bound=tuple[Any, ...])


class _Alias:
    """The same memory without the read-only flag; keeps the array that maps it alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def shared(arrays: Arrays) -> Arrays:
    """A (nested) NamedTuple of arrays over the same memory, not copied, not flagged read-only.

    To numba a read-only array is another type, for which it would compile every kernel anew, for
    seconds, in the middle of serving. The memory must not be written all the same.
    """
    return type(arrays)(
        *(shared(part) if isinstance(part, tuple) else np.asarray(_Alias(part)) for part in arrays)
    )
