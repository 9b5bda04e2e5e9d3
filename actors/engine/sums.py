"""What the stacker learned, in a form that adds up over shards and survives its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LENGTHS = 8
"""Buckets of the number of recent items, for how often the next item is no candidate."""
EVERYWHERE = 0
"""The belief over all surfaces."""
SURFACES = {"content": 1, "product": 2}
BELIEFS = 1 + len(SURFACES)
LIVE = 0
SLICES = 8
"""Parts of the tail of an import, in order of time, of which sharpness is learned one by one."""
DAY_S = 86400.0
HALF_LIVES_S = (math.inf, 90 * DAY_S, 30 * DAY_S, 10 * DAY_S, 3 * DAY_S)
"""Half-lives of counts that are tried, the first none at all..."""
AGE_EVIDENCE = 5.0
"""...of which the longest is taken that is so many nats near the best: chance is no reason."""

FIRST_RELEASE = ("precision", "information", "missed")


class Sums(NamedTuple):
    """What a stacker knows, in a form that adds up. The first axis is the belief.

    precision          float64 [BELIEFS, features, features]
    information        float64 [BELIEFS, features], precision times weights
    missed             float64 [BELIEFS, LENGTHS, 2], per bucket: lessons, and those whose item was
                       no candidate
    sharp_precision    float64 [BELIEFS, 1 + SLICES, 2, 2], of the two parameters of sharpness: what
                       live lessons say, and each slice of a tail, the further from its base
    sharp_information  float64 [BELIEFS, 1 + SLICES, 2]
    ages               float64 [len(HALF_LIVES_S)], no belief: log-likelihood of what came next
                       with each half-life of the counts, above that with the first
    """

    precision: NDArray[np.float64]
    information: NDArray[np.float64]
    missed: NDArray[np.float64]
    sharp_precision: NDArray[np.float64]
    sharp_information: NDArray[np.float64]
    ages: NDArray[np.float64]

    def plus(self, other: Sums) -> Sums:
        """The sum of both."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Sums) -> Sums:
        """What has to be added to `other` to get this."""
        return Sums(*(a - b for a, b in zip(self, other, strict=True)))

    @property
    def half_life_s(self) -> float:
        """After which time counts should count half, as far as is known."""
        near_best = self.ages >= self.ages.max() - AGE_EVIDENCE
        return HALF_LIVES_S[int(np.argmax(near_best))]


def read(arrays: Mapping[str, NDArray[np.float64]], start: Sums) -> Sums:
    """Sums out of a file's named arrays.

    The first release wrote but one belief, over all surfaces: then the others, and what is
    learned since, are as in `start`.
    Raises KeyError if an array is missing, ValueError if it has a shape that no release wrote.
    """
    first_release = arrays["precision"].ndim == start.precision.ndim - 1
    found = {}
    for name, default in start._asdict().items():
        part = arrays[name] if not first_release or name in FIRST_RELEASE else default
        if first_release and name in FIRST_RELEASE:
            part = np.concatenate([part[None], default[1:]])
        if part.shape != default.shape:
            raise ValueError(f"{name} has shape {part.shape}, wanted {default.shape}")
        found[name] = part
    return Sums(**found)
