"""What a choice is, and what is told of it later. Types only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.treatment.features import Features


class Choice(NamedTuple):
    """What was chosen, k slots.

    order         int32 [k], indices into the arms
    propensities  float64 [k], P(this arm in this slot | the slots before), as it was drawn
    chances       float32 [k], predicted P(reward), or P(choice) among those shown
    scores        float32 [k], chances times what a success is worth
    explored      some slot's arm is not the one thought best
    acted         False: the baseline did
    shadow        int32 [k], what the policy would have shown where the baseline acted; else empty
    trace         what learning needs later
    """

    order: NDArray[np.int32]
    propensities: NDArray[np.float64]
    chances: NDArray[np.float32]
    scores: NDArray[np.float32]
    explored: bool
    acted: bool
    shadow: NDArray[np.int32]
    trace: bytes


class Watched(NamedTuple):
    """A draw that nobody sees: what the policy knew, and which rows it took."""

    context: Features
    like: NDArray[np.uint32]
    own: NDArray[np.float32]
    rows: NDArray[np.int32]
    free: int
    order: NDArray[np.int32]
    allowed: NDArray[np.bool_]


class Retold(NamedTuple):
    """Log-odds of what stood in a slot: by PARTS, and what each named feature of the context added.

    features  {} if their names were not kept
    """

    parts: dict[str, float]
    features: dict[str, float]
