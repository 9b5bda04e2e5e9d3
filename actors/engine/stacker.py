"""Weighs the components: an online multinomial logistic regression over candidates.

Each observed action is one lesson: a choice of one candidate among all, explained by features.
The weights are a Gaussian belief, updated by an extended Kalman step (West, Harrison and Migon
1985): precision and information (precision times mean) are sums over lessons, so what several
shards learned adds up. There is no step size to tune, and a thousand lessons are enough.

There is one belief per surface and one over all of them. A surface's is its own lessons and, as
its prior, the belief over all, at the weight of at most SHARED_LESSONS lessons (the power prior
of Ibrahim and Chen 2000): without lessons of its own it weighs as all of them together do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.engine import calibration
from actors.engine.sums import BELIEFS, EVERYWHERE, HALF_LIVES_S, LENGTHS, LIVE, SLICES, Sums

FORGET_AFTER = 50_000.0
"""Lessons after which older ones fade."""
SHARED_LESSONS = 200.0
"""What all surfaces learned together counts for a single one like so many of its own lessons."""
SHARP_LENGTH_MAX = 20
"""Recent items beyond which sharpness no longer changes."""
SHARP_STRENGTH = 20.0
SHARP_MAX = 1.5
"""Bound of the logarithm of sharpness."""
_MISSED = np.array([2.0, 0.5])


class Stacker:
    """The beliefs over `features` weights.

    prior     float64 [features], the weights before anything was seen
    strength  how many times a lesson's worth of information the prior has, per feature
    weights   float32 [BELIEFS, features], of one belief: weights_of[surface]
    """

    def __init__(self, prior: NDArray[np.float64], strength: float = 3.0) -> None:
        features = len(prior)
        # Lessons of a surface start at nothing: its prior is what all surfaces learned.
        self._known = Sums(
            np.zeros((BELIEFS, features, features)),
            np.zeros((BELIEFS, features)),
            np.zeros((BELIEFS, LENGTHS, 2)),
            np.zeros((BELIEFS, 1 + SLICES, 2, 2)),
            np.zeros((BELIEFS, 1 + SLICES, 2)),
            np.zeros(len(HALF_LIVES_S)),
        )
        known = self._known
        known.precision[EVERYWHERE] = np.eye(features) * strength
        known.information[EVERYWHERE] = prior * strength
        known.missed[EVERYWHERE] = _MISSED
        self.weights: NDArray[np.float32] = np.zeros((BELIEFS, features), np.float32)
        self.weights_of = list(self.weights)
        self._sharp: NDArray[np.float64] = np.zeros((BELIEFS, 2))
        self._sharpness: list[list[float]] = [[] for _ in range(BELIEFS)]
        self._missed: list[list[float]] = [[] for _ in range(BELIEFS)]
        self.samples = 0
        self._look_back()
        self._believe()

    def observe(
        self,
        features: NDArray[np.float32],
        n: int,
        chosen: int,
        length: int,
        surface: int = EVERYWHERE,
        part: int = LIVE,
    ) -> None:
        """Learn that candidate `chosen` (-1: none of them) was the next action.

        features  float32 [features, >= n], column c belongs to candidate c
        length    how many recent items the candidates came from
        surface   where the person had been shown the item; EVERYWHERE if on none
        part      LIVE, or 1 + the slice of a tail: heeded for sharpness once it is installed
        """
        for belief in {EVERYWHERE, surface}:
            self._teach(belief, features, n, chosen, length, part)
        if chosen >= 0:
            self.samples += 1
        self._believe()

    def likelihood(self, features: NDArray[np.float32], n: int, chosen: int, length: int) -> float:
        """log P(candidate `chosen` comes next), without learning; -1: none of the n found."""
        missed = self.missed_share(length)
        if chosen < 0 or n == 0:
            return math.log(max(missed, 1e-9))
        scores = self.weights[EVERYWHERE] @ features[:, :n]
        highest = scores.max()
        return float(scores[chosen] - highest - np.log(np.exp(scores - highest).sum())) + math.log(
            1.0 - missed
        )

    def _teach(
        self,
        belief: int,
        features: NDArray[np.float32],
        n: int,
        chosen: int,
        length: int,
        part: int,
    ) -> None:
        known = self._known
        bucket = min(length, LENGTHS - 1)
        share = 1.0 - self.missed_share(length, belief)
        known.missed[belief] *= 1.0 - 1.0 / FORGET_AFTER
        known.missed[belief, bucket] += 1.0, float(chosen < 0)
        if n == 0:
            return
        lesson(
            features,
            n,
            chosen,
            self.weights_of[belief],
            known.precision[belief],
            known.information[belief],
            _sharp_features(length),
            self._sharp[belief],
            share,
            known.sharp_precision[belief, part],
            known.sharp_information[belief, part],
        )

    def _believe(self) -> None:
        """Weights, sharpness and shares of all beliefs, from the sums."""
        known = self._known
        lessons = known.missed[:, :, 0].sum(axis=1)
        shared = min(1.0, SHARED_LESSONS / lessons[EVERYWHERE])
        for belief in range(BELIEFS):
            if belief != EVERYWHERE and lessons[belief] == 0.0:
                self.weights[belief] = self.weights[EVERYWHERE]
                self._sharp[belief] = self._sharp[EVERYWHERE]
                self._sharpness[belief] = self._sharpness[EVERYWHERE]
                self._missed[belief] = self._missed[EVERYWHERE]
                continue
            sums = self._own(belief)
            if belief != EVERYWHERE:
                prior = self._own(EVERYWHERE)
                sums = [own + shared * part for own, part in zip(sums, prior, strict=True)]
            precision, information, missed, sharp_precision, sharp_information = sums
            self.weights[belief] = solved(precision, information)
            self._sharp[belief] = solved(sharp_precision, sharp_information)
            self._sharpness[belief] = _sharpness(self._sharp[belief])
            self._missed[belief] = (missed[:, 1] / missed[:, 0]).tolist()

    def _own(self, belief: int) -> list[Any]:
        """The sums of one belief, its prior for sharpness included."""
        known = self._known
        sharp_precision = known.sharp_precision[belief, LIVE]
        sharp_information = known.sharp_information[belief, LIVE]
        if belief == EVERYWHERE:
            mean, precision = self._past
            sharp_precision = sharp_precision + np.diag(precision)
            sharp_information = sharp_information + precision * mean
        return [
            known.precision[belief],
            known.information[belief],
            known.missed[belief],
            sharp_precision,
            sharp_information,
        ]

    def _look_back(self) -> None:
        """What the tails of imports say of sharpness; too long a thought for every lesson."""
        self._past = calibration.at_distance_zero(
            self._known.sharp_precision[EVERYWHERE, 1:],
            self._known.sharp_information[EVERYWHERE, 1:],
            SHARP_STRENGTH,
        )

    def silence(self, feature: int) -> None:
        """Hold a feature's weight at 0 from now on, to see what it was worth."""
        self.weights[:, feature] = 0.0
        # So sure of it that no lesson moves it.
        known = self._known
        known.precision[EVERYWHERE, feature, feature] = 1e12
        known.information[EVERYWHERE] = known.precision[EVERYWHERE] @ self.weights[EVERYWHERE]

    def missed_share(self, length: int, surface: int = EVERYWHERE) -> float:
        """P(the next action is none of the candidates)."""
        return self._missed[surface][min(length, LENGTHS - 1)]

    def sharpness(self, length: int, surface: int = EVERYWHERE) -> float:
        """What scores are multiplied by before their softmax is a probability."""
        return self._sharpness[surface][min(length, SHARP_LENGTH_MAX)]

    def note_ages(self, gains: NDArray[np.float64]) -> None:
        """What each of HALF_LIVES_S gained over the first on some part of a stream, in nats."""
        self._known.ages[:] += gains

    def sums(self) -> Sums:
        """What was learned, prior included: copies."""
        return Sums(*(part.copy() for part in self._known))

    def install(self, sums: Sums) -> None:
        """Replace what was learned."""
        for part, new in zip(self._known, sums, strict=True):
            part[:] = new
        self._look_back()
        self._believe()


def _sharp_features(length: int) -> NDArray[np.float64]:
    """What sharpness depends on: the longer a session, the less its model knows of its end."""
    return np.array([1.0, math.log(max(min(length, SHARP_LENGTH_MAX), 1)) - 1.0])


_SHARP_FEATURES = np.array([_sharp_features(length) for length in range(SHARP_LENGTH_MAX + 1)])


def _sharpness(parameters: NDArray[np.float64]) -> list[float]:
    """Sharpness by number of recent items."""
    exponents = (_SHARP_FEATURES @ parameters).clip(-SHARP_MAX, SHARP_MAX)
    return np.exp(exponents).tolist()  # type: ignore[no-any-return]


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
def softmax(scores: Any, n: int, sharpness: Any, out: Any) -> Any:
    """P of each candidate into out[:n], float32; scores float32 [n]. Returns the likeliest."""
    top = 0
    for c in range(n):
        if scores[c] > scores[top]:
            top = c
    total = np.float32(0.0)
    for c in range(n):
        out[c] = math.exp(sharpness * (scores[c] - scores[top]))
        total += out[c]
    for c in range(n):
        out[c] /= total
    return top


@njit(cache=True, nogil=True, fastmath=True)
def lesson(
    features: Any,
    n: int,
    chosen: int,
    weights: Any,
    precision: Any,
    information: Any,
    sharp_features: Any,
    sharp: Any,
    share: Any,
    sharp_precision: Any,
    sharp_information: Any,
) -> None:
    """Add one choice to the sums of a belief whose mean is `weights` and `sharp`.

    share  P(the next action is a candidate)
    """
    scores = np.empty(n, np.float32)
    p = np.empty(n, np.float32)
    logits(features, n, weights, scores)
    exponent = sharp[0] * sharp_features[0] + sharp[1] * sharp_features[1]
    sharpness = np.float32(math.exp(min(max(exponent, -SHARP_MAX), SHARP_MAX)))
    top = softmax(scores, n, sharpness, p)
    _sharpen(
        scores, p, n, top, chosen, sharpness, share, sharp_features, sharp,
        sharp_precision, sharp_information,
    )  # fmt: skip
    if chosen >= 0:
        softmax(scores, n, np.float32(1.0), p)
        _weigh(features, n, chosen, p, weights, precision, information)


@njit(cache=True, nogil=True, fastmath=True)
def _weigh(
    features: Any, n: int, chosen: int, p: Any, weights: Any, precision: Any, information: Any
) -> None:
    """precision += Fisher information; information += that times the mean, and the gradient."""
    size = features.shape[0]
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
        information[f] = information[f] * keep + centred[f, chosen]
        for g in range(size):
            precision[f, g] *= keep
    for f in range(size):
        for g in range(f + 1):
            total = np.float32(0.0)
            for c in range(n):
                total += weighted[f, c] * centred[g, c]
            precision[f, g] += total
            information[f] += total * weights[g]
            if g < f:
                precision[g, f] += total
                information[g] += total * weights[f]


@njit(cache=True, nogil=True)
def _sharpen(
    scores: Any,
    p: Any,
    n: int,
    top: int,
    chosen: int,
    sharpness: Any,
    share: Any,
    x: Any,
    sharp: Any,
    precision: Any,
    information: Any,
) -> None:
    """One logistic step on whether the likeliest candidate was it, in the log of sharpness.

    Temperature scaling (Guo et al. 2017), fitted to the answer that is shown first instead of to
    the likelihood of all, which is made by those far behind.
    """
    mean = 0.0
    for c in range(n):
        mean += p[c] * scores[c]
    said = min(max(share * p[top], 1e-4), 1.0 - 1e-4)
    slope = said * sharpness * (scores[top] - mean)
    noise = said * (1.0 - said)
    came = 1.0 if chosen == top else 0.0
    linear = sharp[0] * x[0] + sharp[1] * x[1]
    keep = 1.0 - 1.0 / FORGET_AFTER
    for f in range(2):
        gradient = x[f] * ((came - said) * slope + slope * slope * linear) / noise
        information[f] = information[f] * keep + gradient
        for g in range(2):
            precision[f, g] = precision[f, g] * keep + x[f] * x[g] * slope * slope / noise


@njit(cache=True, nogil=True)
def solved(matrix: Any, vector: Any) -> Any:
    """matrix^-1 vector for a symmetric positive definite matrix, by Cholesky; float64."""
    size = vector.shape[0]
    out = vector.copy()
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
            out[i] -= lower[i, k] * out[k]
        out[i] /= lower[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            out[i] -= lower[k, i] * out[k]
        out[i] /= lower[i, i]
    return out
