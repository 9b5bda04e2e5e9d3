"""Context and arms as hashed features: names and values in, numbers that all processes share out.

Text and truth values are one feature each ("name=value"). A number is two: its size (signed,
logarithmic, so that a price of 100 is not ten times one of 10) and the bucket it falls in, a
quarter octave wide, since a response is seldom monotone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

BUCKETS_PER_OCTAVE = 4
LOG_2 = math.log(2.0)
FEATURES_MAX = 256
"""Features of one context, and of one arm; further ones are left out."""

Value = str | float | bool | None


class Features(NamedTuple):
    """hashes uint32 [n]; values float32 [n]; names: of each, a line; "" = not known"""

    hashes: NDArray[np.uint32]
    values: NDArray[np.float32]
    names: str = ""


NO_FEATURES = Features(np.zeros(0, np.uint32), np.zeros(0, np.float32))


def features_of(named: Mapping[str, Value]) -> Features:
    """The features of named values; None is left out.

    >>> features_of({"device": "ios", "member": True, "age": None}).values.tolist()
    [1.0, 1.0]
    """
    if not named:
        return NO_FEATURES
    hashes: list[int] = []
    values: list[float] = []
    names: list[str] = []
    for name, value in named.items():
        if value is not None:
            names.append(name)
        if isinstance(value, str):
            hashes.append(crc32(value.encode(), _begun(name, "=")))
            values.append(1.0)
        elif isinstance(value, bool):
            hashes.append(crc32(b"True" if value else b"False", _begun(name, "=")))
            values.append(1.0)
        elif value is not None:
            size = math.copysign(math.log1p(abs(value)), value)
            bucket = round(size / LOG_2 * BUCKETS_PER_OCTAVE)
            hashes += (_begun(name, ""), _bucket(name, bucket))
            values += (size, 1.0)
            names.append(name)
    return Features(
        np.array(hashes[:FEATURES_MAX], np.uint32),
        np.array(values[:FEATURES_MAX], np.float32),
        "\n".join(names[:FEATURES_MAX]),
    )


def without(features: Features, named: Mapping[str, Value], hidden: Collection[str]) -> Features:
    """The features of named values without those of some names.

    >>> known = {"device": "ios", "age": 30, "member": True}
    >>> without(features_of(known), known, ["age"]).values.tolist()
    [1.0, 1.0]
    """
    names = features.names.split("\n")
    if len(names) != len(features.hashes):
        # A name of several lines.
        return features_of({name: value for name, value in named.items() if name not in hidden})
    kept = [at for at, name in enumerate(names) if name not in hidden]
    lines = "\n".join([names[at] for at in kept])
    return Features(features.hashes[kept], features.values[kept], lines)


# The same few names come with every request. Values are not kept: they tell of people.
@lru_cache(maxsize=4096)
def _begun(name: str, sign: str) -> int:
    """The hash of a feature's name, to which the value is added."""
    return crc32(f"{name}{sign}".encode())


# A quarter octave tells no more of anybody than the counts that are kept of it.
@lru_cache(maxsize=1 << 14)
def _bucket(name: str, bucket: int) -> int:
    return crc32(b"%d" % bucket, _begun(name, "~"))


class Arm(msgspec.Struct, frozen=True):
    """One thing that can be chosen.

    features  what it is like; arms that share a feature learn from each other
    value     what a success with it is worth, >= 0: its margin, say
    """

    id: str
    features: Mapping[str, Value] = {}
    value: float = 1.0


class Arms(NamedTuple):
    """Arms as arrays, n of them: made once, used for many choices.

    hashes   uint32 [n], of the ids; values float32 [n], what a success is worth
    starts   int32 [n + 1]; features of arm a are [starts[a], starts[a + 1])
    """

    ids: tuple[str, ...]
    hashes: NDArray[np.uint32]
    values: NDArray[np.float32]
    starts: NDArray[np.int32]
    features: Features


def arms_of(arms: Sequence[Arm]) -> Arms:
    """The arrays of arms. Raises ValueError if an id comes twice or a value is not >= 0.

    >>> arms_of([Arm("a"), Arm("b", {"price": 9.5})]).starts.tolist()
    [0, 0, 2]
    """
    ids = tuple(arm.id for arm in arms)
    if len(set(ids)) < len(ids):
        raise ValueError(f"ids of arms must differ, got {ids}")
    for arm in arms:
        if not 0.0 <= arm.value < math.inf:
            raise ValueError(f"the value of an arm must be >= 0, got {arm.value} for {arm.id!r}")
    parts = [features_of(arm.features) for arm in arms]
    starts = np.cumsum([0] + [len(part.hashes) for part in parts]).astype(np.int32)
    joined = NO_FEATURES
    if starts[-1]:
        joined = Features(
            np.concatenate([part.hashes for part in parts]),
            np.concatenate([part.values for part in parts]),
        )
    return Arms(
        ids,
        np.array([crc32(arm_id.encode()) for arm_id in ids], np.uint32),
        np.array([arm.value for arm in arms], np.float32),
        starts,
        joined,
    )
