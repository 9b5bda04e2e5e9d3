"""Weighs the components: an online multinomial logistic regression over candidates.

Each observed action is one sample: a choice of one candidate among all, explained by features.
The weights are a Gaussian belief, updated by an extended Kalman step (West, Harrison and Migon
1985): precision and information (precision times mean) are sums over samples, so what several
shards learned adds up. There is no step size to tune, and a thousand samples are enough.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

FORGET_AFTER = 50_000.0
"""Samples after which older ones fade."""
LENGTHS = 8
"""Buckets of the number of recent items, for how often the next item is no candidate."""


class Sums(NamedTuple):
    """What a stacker knows, in a form that adds up.

    precision    float64 [features, features]
    information  float64 [features], precision times weights
    missed       float64 [LENGTHS, 2], per bucket: samples, and those whose item was no candidate
    """

    precision: NDArray[np.float64]
    information: NDArray[np.float64]
    missed: NDArray[np.float64]

    def plus(self, other: Sums) -> Sums:
        """The sum of both."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Sums) -> Sums:
        """What has to be added to `other` to get this."""
        return Sums(*(a - b for a, b in zip(self, other, strict=True)))


class Stacker:
    """The belief over `features` weights.

    prior     float32 [features], the weights before anything was seen
    strength  how many times a sample's worth of information the prior has, per feature
    """

    def __init__(self, prior: NDArray[np.float64], strength: float = 3.0) -> None:
        features = len(prior)
        self.precision: NDArray[np.float64] = np.eye(features) * strength
        self.information: NDArray[np.float64] = self.precision @ prior
        self.weights: NDArray[np.float32] = prior.astype(np.float32)
        self.missed: NDArray[np.float64] = np.tile(np.array([2.0, 0.5]), (LENGTHS, 1))
        self.samples = 0

    def observe(self, features: NDArray[np.float32], n: int, chosen: int, length: int) -> None:
        """Learn that candidate `chosen` (-1: none of them) was the next action.

        features  float32 [features, >= n], column c belongs to candidate c
        length    how many recent items the candidates came from
        """
        bucket = min(length, LENGTHS - 1)
        self.missed[bucket, 0] += 1.0
        if chosen < 0:
            self.missed[bucket, 1] += 1.0
            return
        kalman_step(features, n, chosen, self.precision, self.information, self.weights)
        self.samples += 1

    def silence(self, feature: int) -> None:
        """Hold a feature's weight at 0 from now on, to see what it was worth."""
        self.weights[feature] = 0.0
        # So sure of it that no sample moves it.
        self.precision[feature, feature] = 1e12
        self.information[:] = self.precision @ self.weights

    def missed_share(self, length: int) -> float:
        """P(the next action is none of the candidates)."""
        samples, missed = self.missed[min(length, LENGTHS - 1)]
        return float(missed / samples)

    def sums(self) -> Sums:
        """What was learned, prior included: copies."""
        return Sums(self.precision.copy(), self.information.copy(), self.missed.copy())

    def install(self, sums: Sums) -> None:
        """Replace what was learned."""
        self.precision[:] = sums.precision
        self.information[:] = sums.information
        self.missed[:] = sums.missed
        self.weights[:] = np.linalg.solve(self.precision, self.information)


@njit(cache=True, nogil=True, fastmath=True)
def logits(features: Any, n: int, weights: Any, out: Any) -> None:
    """The weighted sum of each candidate's features into out[:n], float32."""
    for c in range(n):
        out[c] = 0.0
    for f in range(features.shape[0]):
        weight = weights[f]
        for c in range(n):
            out[c] += weight * features[f, c]


@njit(cache=True, nogil=True, fastmath=True)
def softmax(features: Any, n: int, weights: Any, out: Any) -> None:
    """P of each candidate into out[:n], float32."""
    logits(features, n, weights, out)
    highest = np.float32(-1e30)
    for c in range(n):
        highest = max(highest, out[c])
    total = np.float32(0.0)
    for c in range(n):
        out[c] = math.exp(out[c] - highest)
        total += out[c]
    for c in range(n):
        out[c] /= total


@njit(cache=True, nogil=True, fastmath=True)
def kalman_step(
    features: Any, n: int, chosen: int, precision: Any, information: Any, weights: Any
) -> None:
    """Add one choice to the belief: precision += Fisher information, mean moves by its inverse."""
    size = features.shape[0]
    p = np.empty(n, np.float32)
    softmax(features, n, weights, p)
    # Centred features, and the same times p; the gradient is the chosen column of the first.
    centred = np.empty((size, n), np.float32)
    weighted = np.empty((size, n), np.float32)
    for f in range(size):
        mean = np.float32(0.0)
        for c in range(n):
            mean += p[c] * features[f, c]
        for c in range(n):
            centred[f, c] = features[f, c] - mean
            weighted[f, c] = p[c] * centred[f, c]
    keep = 1.0 - 1.0 / FORGET_AFTER
    for f in range(size):
        for g in range(size):
            precision[f, g] *= keep
    for f in range(size):
        for g in range(f + 1):
            total = np.float32(0.0)
            for c in range(n):
                total += weighted[f, c] * centred[g, c]
            precision[f, g] += total
            if g < f:
                precision[g, f] += total
    # The new information is that of a Gaussian at the old mean, moved by the gradient.
    step = np.empty(size)
    for f in range(size):
        step[f] = centred[f, chosen]
    solve(precision, step)
    for f in range(size):
        weights[f] += np.float32(step[f])
    for f in range(size):
        information[f] = 0.0
        for g in range(size):
            information[f] += precision[f, g] * weights[g]


@njit(cache=True, nogil=True)
def solve(matrix: Any, vector: Any) -> None:
    """vector = matrix^-1 vector for a symmetric positive definite matrix, by Cholesky."""
    size = vector.shape[0]
    lower = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            if i == j:
                lower[i, i] = math.sqrt(max(total, 1e-12))
            else:
                lower[i, j] = total / lower[j, j]
    for i in range(size):
        for k in range(i):
            vector[i] -= lower[i, k] * vector[k]
        vector[i] /= lower[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            vector[i] -= lower[k, i] * vector[k]
        vector[i] /= lower[i, i]
