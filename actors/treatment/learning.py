"""One outcome into the sums: kernels over what a trace holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from actors.treatment import belief as b


@njit(cache=True)
def learn_reward(
    sums: Any,
    salt: Any,
    surface: Any,
    ch: Any,
    cx: Any,
    arm: Any,
    fh: Any,
    fx: Any,
    memory: Any,
    place: Any,
    y: Any,
    weight: Any,
) -> None:
    """An arm was shown at `place` and got the reward y in [0, 1]."""
    most = 4 + 2 * len(ch) + 2 * len(fh) + 2 * b.MEMORY
    rows, cols = np.empty((most, 2), np.int64), np.empty((most, 2))
    n = b.collect_shared(salt, surface, ch, cx, place, rows, cols)
    n = b.collect_arm(salt, ch, cx, arm, fh, fx, memory, n, rows, cols)
    mean, doubt, x = np.zeros(b.LEVELS), np.zeros(b.LEVELS), np.empty(b.TRUST)
    b.add_up(sums, rows, cols, 0, n, mean, doubt)
    b.inputs(mean, x)
    trust = b.trust_of(sums, salt)
    b.step_trust(sums, salt, x, trust, b.dot(trust, x), y, weight)
    b.step(sums, rows, cols, n, b.OFFSET + mean.sum(), y, weight)
    b.count(sums, salt, arm, y, weight)


@njit(cache=True)
def softmax(z: Any) -> Any:
    out = np.exp(z - z.max())
    return out / out.sum()


@njit(cache=True)
def learn_choice(
    sums: Any,
    salt: Any,
    ch: Any,
    cx: Any,
    arms: Any,
    starts: Any,
    fh: Any,
    fx: Any,
    memory: Any,
    shown: Any,
    chosen: Any,
    weight: Any,
) -> None:
    """Of arms shown side by side the person took one: a conditional logit (McFadden 1974).

    The choice of one against all others is one outcome of the difference between its features and
    the others', these weighted by their chances. What all arms share has no say in it.
    """
    m = len(shown)
    most = (1 + len(ch) + 2 * b.MEMORY) * m + 2 * len(fh)
    rows, cols = np.empty((most, 2), np.int64), np.empty((most, 2))
    stops = np.zeros(m + 1, np.int64)
    first, second, x = np.empty(m), np.empty(m), np.empty((m, b.TRUST))
    trust = b.trust_of(sums, salt)
    doubt = np.zeros(b.LEVELS)
    for i in range(m):
        a = shown[i]
        own = slice(starts[a], starts[a + 1])
        at = stops[i]
        stops[i + 1] = b.collect_arm(
            salt, ch, cx, arms[a], fh[own], fx[own], memory[a], at, rows, cols
        )
        mean = np.zeros(b.LEVELS)
        b.add_up(sums, rows, cols, at, stops[i + 1], mean, doubt)
        b.inputs(mean, x[i])
        first[i] = mean.sum()
        second[i] = b.dot(trust, x[i])
    p, q = softmax(first), softmax(second)
    difference = x[chosen].copy()
    for i in range(m):
        share_p = p[i] / max(1.0 - p[chosen], 1e-12)
        share_q = q[i] / max(1.0 - q[chosen], 1e-12)
        if i != chosen:
            for j in range(stops[i], stops[i + 1]):
                cols[j, 0] *= -share_p
            for j in range(b.TRUST):
                difference[j] -= share_q * x[i, j]
        b.count(sums, salt, arms[shown[i]], 1.0 if i == chosen else 0.0, weight)
    difference[0] = 0.0
    b.step_trust(sums, salt, difference, trust, _margin(q[chosen]), 1.0, weight)
    n = _merge(rows, cols, stops[m])
    b.step(sums, rows, cols, n, _margin(p[chosen]), 1.0, weight)


@njit(cache=True)
def _margin(p: Any) -> Any:
    return math.log(max(p, 1e-12) / max(1.0 - p, 1e-12))


@njit(cache=True)
def _merge(rows: Any, cols: Any, n: Any) -> Any:
    """Add up the entries of one slot into one; returns how many are left."""
    order = np.argsort(rows[:n, 0], kind="mergesort")
    sorted_rows, sorted_cols = rows[order].copy(), cols[order].copy()
    kept = -1
    for i in range(n):
        if kept >= 0 and rows[kept, 0] == sorted_rows[i, 0]:
            cols[kept, 0] += sorted_cols[i, 0]
        else:
            kept += 1
            rows[kept] = sorted_rows[i]
            cols[kept] = sorted_cols[i]
    return kept + 1
