"""What is believed of every weight, as sums that add up; and how one outcome changes it.

The chance of a reward is logistic in a sum of weights: of the surface and the policy, of the
context, of the arm and its features, of context x arm, and of what the person did before. That is
a hierarchy: each level says only how it differs from the one above, and starts at no difference,
the surer the deeper. Each weight is a Gaussian; an outcome moves all that took part, each by its
share of the doubt (assumed density filtering: Graepel et al. 2010; the step is taken to the
posterior mode along its direction, so no learning rate exists). Precision and precision times mean
are what is stored, as differences from the prior: what several shards learned adds up.

A small second model says how far to trust each level: a logistic regression over the levels' sums,
with full covariance, learned from predictions made before the outcome was known. It takes out
what the first one's independence gets wrong, so that chances are calibrated.

One vector holds all sums of a tenant: [SLOTS x (precision, information)], then blocks of trust.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

SLOTS = 1 << 18
LEVELS = 8
SHARED, CONTEXT, ACTION, FEATURE, CONTEXT_ACTION, FEATURE_ACTION, PERSON, PERSON_ACTION = range(8)
PRIORS = np.array([0.25, 64.0, 4.0, 4.0, 512.0, 16.0, 1.0, 4.0])
"""Precision of each level's weights before anything was seen; 64 is a standard deviation of 1/8."""
POLICY_PRIOR = 4.0
"""How far a policy's rate may lie from its surface's."""
SLOT_PRIOR = 4.0
OFFSET = -2.0
"""Log-odds of a reward before anything was seen: 12 %."""
KEEP = 1.0 - 1e-5
"""What an outcome leaves of what was known of the weights it touches: 100,000 outcomes count."""

TRUST = 5
"""Inputs of the second model: 1, what all arms share, the arm, context x arm, the person."""
TRUST_PRIOR = 10.0
TRUST_KEEP = 1.0 - 1e-4
BLOCKS = 1024
"""Policies with a second model of their own; more would share by hash."""
_B = TRUST * TRUST
_TRIALS = _B + TRUST
BLOCK = _TRIALS + 2
SIZE = 2 * SLOTS + BLOCKS * BLOCK
MEMORY = 3
"""What is known of the person and an arm: see `memory.recall`."""


@njit(cache=True, inline="always")
def slot(a: Any, b: Any) -> Any:
    """The slot of a pair of numbers: multiply and fold (Knuth 6.4)."""
    m = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15)
    m ^= np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F)
    m ^= m >> np.uint64(29)
    m *= np.uint64(0xBF58476D1CE4E5B9)
    return np.int64(m >> np.uint64(46))


@njit(cache=True)
def counts_slot(salt: Any, arm: Any) -> Any:
    """Where trials and rewards of an arm are counted, whatever the context."""
    return slot(np.int64(salt) | (np.int64(9) << 32), arm)


@njit(cache=True)
def block(salt: Any) -> Any:
    """Where a policy's second model begins."""
    return 2 * SLOTS + (np.int64(salt) % BLOCKS) * BLOCK


@njit(cache=True)
def trials_of(salt: Any) -> Any:
    """Where a policy's trials are counted; its rewards stand behind."""
    return block(salt) + _TRIALS


@njit(cache=True)
def sigmoid(z: Any) -> Any:
    return 1.0 / (1.0 + math.exp(-max(min(z, 30.0), -30.0)))


@njit(cache=True, inline="always")
def _put(at: Any, index: Any, x: Any, prior: Any, level: Any, rows: Any, cols: Any) -> Any:
    rows[at, 0] = index
    rows[at, 1] = level
    cols[at, 0] = x
    cols[at, 1] = prior
    return at + 1


@njit(cache=True)
def collect_shared(
    salt: Any, surface: Any, ch: Any, cx: Any, place: Any, rows: Any, cols: Any
) -> Any:
    """The weights that all arms share; returns how many.

    ch, cx  the context; place: 0 = the first slot, whose effect is in the policy's rate
    rows int64 [n, 2] (slot, level), cols float64 [n, 2] (value, prior): filled
    """
    k = _put(0, slot(surface, 1), 1.0, PRIORS[SHARED], SHARED, rows, cols)
    k = _put(k, slot(salt, 2), 1.0, POLICY_PRIOR, SHARED, rows, cols)
    if place > 0:
        k = _put(k, slot(salt, 64 + place), 1.0, SLOT_PRIOR, SHARED, rows, cols)
    own = np.int64(salt) | (np.int64(1) << 32)
    for i in range(len(ch)):
        k = _put(k, slot(own, ch[i]), cx[i], PRIORS[CONTEXT], CONTEXT, rows, cols)
    return k


@njit(cache=True)
def collect_arm(
    salt: Any,
    ch: Any,
    cx: Any,
    arm: Any,
    fh: Any,
    fx: Any,
    memory: Any,
    start: Any,
    rows: Any,
    cols: Any,
) -> Any:
    """The weights of one arm, put behind `start`; returns where they end."""
    key = np.int64(salt)
    crossed = slot(salt, arm)
    k = _put(start, slot(key | (2 << 32), arm), 1.0, PRIORS[ACTION], ACTION, rows, cols)
    for i in range(len(fh)):
        k = _put(k, slot(key | (3 << 32), fh[i]), fx[i], PRIORS[FEATURE], FEATURE, rows, cols)
        to = slot(crossed | (5 << 32), fh[i])
        k = _put(k, to, fx[i], PRIORS[FEATURE_ACTION], FEATURE_ACTION, rows, cols)
    for i in range(len(ch)):
        to = slot(crossed | (4 << 32), ch[i])
        k = _put(k, to, cx[i], PRIORS[CONTEXT_ACTION], CONTEXT_ACTION, rows, cols)
    for i in range(len(memory)):
        if memory[i] != 0.0:
            k = _put(k, slot(key | (6 << 32), i), memory[i], PRIORS[PERSON], PERSON, rows, cols)
            to = slot(crossed | (7 << 32), i)
            k = _put(k, to, memory[i], PRIORS[PERSON_ACTION], PERSON_ACTION, rows, cols)
    return k


@njit(cache=True)
def add_up(sums: Any, rows: Any, cols: Any, start: Any, stop: Any, mean: Any, doubt: Any) -> None:
    """Add mean and variance of weights [start, stop) to their levels': float64 [LEVELS] each."""
    for i in range(start, stop):
        at = 2 * rows[i, 0]
        x = cols[i, 0]
        precision = cols[i, 1] + max(sums[at], 0.0)
        mean[rows[i, 1]] += x * sums[at + 1] / precision
        doubt[rows[i, 1]] += x * x / precision


@njit(cache=True)
def inputs(mean: Any, out: Any) -> None:
    """The second model's inputs of the levels' sums, float64 [TRUST]."""
    out[0] = 1.0
    out[1] = OFFSET + mean[SHARED] + mean[CONTEXT]
    out[2] = mean[ACTION] + mean[FEATURE] + mean[FEATURE_ACTION]
    out[3] = mean[CONTEXT_ACTION]
    out[4] = mean[PERSON] + mean[PERSON_ACTION]


@njit(cache=True)
def combine(doubt: Any, trust: Any) -> Any:
    """Variance of an arm's log-odds against other arms', and of all of it."""
    own = trust[2] ** 2 * (doubt[ACTION] + doubt[FEATURE] + doubt[FEATURE_ACTION])
    own += trust[3] ** 2 * doubt[CONTEXT_ACTION]
    own += trust[4] ** 2 * (doubt[PERSON] + doubt[PERSON_ACTION])
    return own, own + trust[1] ** 2 * (doubt[SHARED] + doubt[CONTEXT])


@njit(cache=True)
def dot(a: Any, b: Any) -> Any:
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(cache=True)
def moderated(z: Any, variance: Any) -> Any:
    """E[sigmoid] over a Gaussian: MacKay 1992."""
    return sigmoid(z / math.sqrt(1.0 + math.pi * variance / 8.0))


@njit(cache=True)
def _precision(sums: Any, at: Any) -> Any:
    out = np.empty((TRUST, TRUST))
    for i in range(TRUST):
        for j in range(TRUST):
            out[i, j] = sums[at + i * TRUST + j]
        out[i, i] += TRUST_PRIOR
    return out


@njit(cache=True)
def solve(a: Any, b: Any) -> Any:
    """x of a x = b for a symmetric positive definite, by Cholesky; a is overwritten."""
    n = len(b)
    x = b.copy()
    for j in range(n):
        for i in range(j, n):
            total = a[i, j]
            for k in range(j):
                total -= a[i, k] * a[j, k]
            a[i, j] = math.sqrt(max(total, 1e-12)) if i == j else total / a[j, j]
    for i in range(n):
        for k in range(i):
            x[i] -= a[i, k] * x[k]
        x[i] /= a[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            x[i] -= a[k, i] * x[k]
        x[i] /= a[i, i]
    return x


@njit(cache=True)
def trust_of(sums: Any, salt: Any) -> Any:
    """How far each input is trusted, float64 [TRUST]; 0, 1, 1, 1, 1 before anything was seen."""
    at = block(salt)
    information = np.empty(TRUST)
    for i in range(TRUST):
        information[i] = sums[at + _B + i] + (TRUST_PRIOR if i > 0 else 0.0)
    return solve(_precision(sums, at), information)


@njit(cache=True)
def mode_along(z: Any, variance: Any, y: Any, weight: Any) -> Any:
    """g with g = weight * (y - sigmoid(z + variance g)): where the posterior's mode lies.

    By Newton's method, kept between the two ends where g can lie at all.
    """
    low, high = weight * (y - 1.0), weight * y
    g = weight * (y - sigmoid(z))
    for _ in range(20):
        p = sigmoid(z + variance * g)
        off = g - weight * (y - p)
        if abs(off) < 1e-9:
            break
        if off > 0.0:
            high = g
        else:
            low = g
        g -= off / (1.0 + weight * variance * p * (1.0 - p))
        if g <= low or g >= high:
            g = 0.5 * (low + high)
    return g


@njit(cache=True)
def step(sums: Any, rows: Any, cols: Any, n: Any, z: Any, y: Any, weight: Any) -> None:
    """Move n weights after an outcome y in [0, 1] that was expected with log-odds z."""
    variance = 0.0
    for i in range(n):
        variance += cols[i, 0] ** 2 / (cols[i, 1] + max(sums[2 * rows[i, 0]], 0.0))
    g = mode_along(z, variance, y, weight)
    p = sigmoid(z + variance * g)
    h = weight * p * (1.0 - p)
    for i in range(n):
        at = 2 * rows[i, 0]
        x, prior = cols[i, 0], cols[i, 1]
        precision = prior + max(sums[at], 0.0)
        mean = (sums[at + 1] + x * g) / precision
        rest = variance - x * x / precision
        gained = max(sums[at], 0.0) + x * x * h / (1.0 + h * max(rest, 0.0))
        sums[at] = gained * KEEP
        sums[at + 1] = mean * (prior + sums[at])


@njit(cache=True)
def step_trust(sums: Any, salt: Any, x: Any, trust: Any, z: Any, y: Any, weight: Any) -> None:
    """Teach the second model: an extended Kalman step (West, Harrison and Migon 1985)."""
    at = block(salt)
    direction = solve(_precision(sums, at), x)
    variance = dot(x, direction)
    g = mode_along(z, variance, y, weight)
    p = sigmoid(z + variance * g)
    h = weight * p * (1.0 - p)
    for i in range(TRUST):
        for j in range(TRUST):
            entry = at + i * TRUST + j
            sums[entry] = (sums[entry] + h * x[i] * x[j]) * TRUST_KEEP
    for i in range(TRUST):
        total = TRUST_PRIOR * (trust[i] + direction[i] * g) - (TRUST_PRIOR if i > 0 else 0.0)
        for j in range(TRUST):
            total += sums[at + i * TRUST + j] * (trust[j] + direction[j] * g)
        sums[at + _B + i] = total


@njit(cache=True)
def count(sums: Any, salt: Any, arm: Any, y: Any, weight: Any) -> None:
    """Count a trial, of the arm and of the policy."""
    at = 2 * counts_slot(salt, arm)
    sums[at] += weight
    sums[at + 1] += weight * y
    at = trials_of(salt)
    sums[at] += weight
    sums[at + 1] += weight * y


@njit(cache=True)
def average(sums: Any, salt: Any, arm: Any) -> Any:
    """An arm's average reward, shrunk towards the policy's by ten trials."""
    at = trials_of(salt)
    overall = (sums[at + 1] + 0.12) / (sums[at] + 1.0)
    at = 2 * counts_slot(salt, arm)
    return (sums[at + 1] + 10.0 * overall) / (sums[at] + 10.0)
