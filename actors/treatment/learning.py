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
    surface: Any,
    ch: Any,
    cx: Any,
    arms: Any,
    starts: Any,
    fh: Any,
    fx: Any,
    memory: Any,
    chosen: Any,
    weight: Any,
) -> None:
    """Of arms shown side by side the person took one: a conditional logit (McFadden 1974).

    The choice of one against all others is one outcome of the difference between its features and
    the others', these weighted by their chances.
    """
    m = len(arms)
    per_arm = 1 + len(ch) + 2 * b.MEMORY
    most = per_arm * m + 2 * len(fh)
    rows, cols = np.empty((most, 2), np.int64), np.empty((most, 2))
    stops = np.empty(m + 1, np.int64)
    stops[0] = 0
    first, second, x = np.empty(m), np.empty(m), np.empty((m, b.TRUST))
    trust = b.trust_of(sums, salt)
    doubt = np.zeros(b.LEVELS)
    for a in range(m):
        own = slice(starts[a], starts[a + 1])
        at = stops[a]
        stops[a + 1] = b.collect_arm(
            salt, ch, cx, arms[a], fh[own], fx[own], memory[a], at, rows, cols
        )
        mean = np.zeros(b.LEVELS)
        b.add_up(sums, rows, cols, at, stops[a + 1], mean, doubt)
        b.inputs(mean, x[a])
        first[a] = mean.sum()
        second[a] = b.dot(trust, x[a])
    p, q = softmax(first), softmax(second)
    difference = x[chosen].copy()
    for a in range(m):
        share_p = p[a] / max(1.0 - p[chosen], 1e-12)
        share_q = q[a] / max(1.0 - q[chosen], 1e-12)
        if a != chosen:
            for i in range(stops[a], stops[a + 1]):
                cols[i, 0] *= -share_p
            for i in range(b.TRUST):
                difference[i] -= share_q * x[a, i]
        b.count(sums, salt, arms[a], 1.0 if a == chosen else 0.0, weight)
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
