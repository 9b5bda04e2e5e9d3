"""How sharp probabilities should be, from how sharp they should have been in slices of the past.

The tail of an import is predicted from a base that ends where the tail begins, so its slices lie
further and further from what was known, while decisions are made from what is known now. Each slice
tells the same two parameters with an error; what they have in common is their value at distance
0, by a random-effects regression over distance (DerSimonian and Laird 1986). Trend and value are
both shrunk towards nothing by as much as chance alone could have made of them (James and Stein
1961): a correction that differs from slice to slice as much as it differs from 0 is not made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SLICE_STRENGTH = 2.0
"""Prior precision of a slice's parameters at 0, so that a slice of few lessons has an answer."""
SLICES_MIN = 3
"""With fewer slices nothing can be said about how they differ."""


class Belief(NamedTuple):
    """The parameters, independent of each other: float64 [p] each."""

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]


def at_distance_zero(
    precision: NDArray[np.float64], information: NDArray[np.float64], strength: float
) -> Belief:
    """What slices at growing distance say of the parameters at none.

    precision    float64 [slices, p, p], sums of a slice's Fisher information; 0 if it is empty
    information  float64 [slices, p], precision times the slice's parameters
    strength     the precision around 0 if nothing is known, and the least there ever is
    """
    size = information.shape[1]
    taught = np.flatnonzero(precision[:, 0, 0] > 0.0)
    if len(taught) < SLICES_MIN:
        return Belief(np.zeros(size), np.full(size, strength))
    total = precision[taught] + np.eye(size) * SLICE_STRENGTH
    covariance = np.linalg.inv(total).astype(np.float64)
    found = np.einsum("sij,sj->si", covariance, information[taught])
    distance = (taught + 0.5) / len(precision)
    ends = [_parameter(found[:, i], covariance[:, i, i], distance) for i in range(size)]
    mean, variance = np.array(ends).T
    return Belief(mean, np.maximum(1.0 / variance, strength))


def _parameter(
    found: NDArray[np.float64], variance: NDArray[np.float64], distance: NDArray[np.float64]
) -> tuple[float, float]:
    """One parameter at distance 0, and the variance of a new slice there; arrays [slices]."""
    # How much slices differ beyond their own errors and a straight line (method of moments).
    weight = 1.0 / variance
    line = _line(found, weight, distance)
    rest = found - line.middle - line.slope * (distance - line.at)
    excess = float(weight @ rest**2) - (len(found) - 2)
    between = max(0.0, excess / float(weight.sum() - weight @ weight / weight.sum()))
    line = _line(found, 1.0 / (variance + between), distance)
    slope = line.slope * _trust(line.slope, line.slope_variance)
    value = line.middle - slope * line.at
    noise = line.middle_variance + (line.slope_variance * line.at**2 if slope else 0.0)
    return value * _trust(value, noise), noise + between


class _Line(NamedTuple):
    """A weighted straight line: its value at the centre `at`, its slope, and their variances."""

    at: float
    middle: float
    middle_variance: float
    slope: float
    slope_variance: float


def _line(
    found: NDArray[np.float64], weight: NDArray[np.float64], distance: NDArray[np.float64]
) -> _Line:
    total = float(weight.sum())
    at = float(weight @ distance) / total
    spread = float(weight @ (distance - at) ** 2)
    slope = float(weight @ ((distance - at) * found)) / spread
    return _Line(at, float(weight @ found) / total, 1.0 / total, slope, 1.0 / spread)


def _trust(value: float, variance: float) -> float:
    """The share of an estimate that is kept if 0 is as likely as anything (James-Stein)."""
    return max(0.0, 1.0 - variance / value**2) if value else 0.0
