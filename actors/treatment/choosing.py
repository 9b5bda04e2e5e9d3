"""From beliefs to a draw: the probability of each arm is computed first, then one is drawn by it.

So propensities are exact, whatever the rule: nothing is drawn from anything but what is recorded.
Several slots are filled one after the other, each from what is left; a slot's propensity is that
of its arm given the slots before, and their product is that of the whole order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from actors.treatment import belief as b
from actors.treatment import slots
from actors.treatment.policy import FIXED, GREEDY, LINUCB, THOMPSON, UNIFORM

CELLS = 48
"""Cells of the grid over which P(an arm's draw is the highest) is summed up."""
TAIL = 5.0
"""Standard deviations that the grid reaches out."""


@njit(cache=True)
def believe(
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
    eligible: Any,
) -> Any:
    """float64 [m, 4] of the eligible arms: log-odds, their standard deviation against the other
    arms, all of their variance, and the average reward whatever the context.
    """
    trust = b.trust_of(sums, salt)
    most = 3 + 2 * len(ch) + 1 + 2 * len(fh) + 2 * b.MEMORY
    rows, cols = np.empty((most, 2), np.int64), np.empty((most, 2))
    shared, shared_doubt = np.zeros(b.LEVELS), np.zeros(b.LEVELS)
    mean, doubt, x = np.empty(b.LEVELS), np.empty(b.LEVELS), np.empty(b.TRUST)
    n = b.collect_shared(salt, surface, ch, cx, 0, rows, cols)
    b.add_up(sums, rows, cols, 0, n, shared, shared_doubt)
    out = np.empty((len(eligible), 4))
    for i in range(len(eligible)):
        a = eligible[i]
        own = slice(starts[a], starts[a + 1])
        stop = b.collect_arm(salt, ch, cx, arms[a], fh[own], fx[own], memory[a], 0, rows, cols)
        mean[:] = shared
        doubt[:] = shared_doubt
        b.add_up(sums, rows, cols, 0, stop, mean, doubt)
        b.inputs(mean, x)
        variance, total = b.combine(doubt, trust)
        out[i, 0] = b.dot(trust, x)
        out[i, 1] = math.sqrt(variance)
        out[i, 2] = total
        out[i, 3] = b.average(sums, salt, arms[a])
    return out


@njit(cache=True)
def place_effect(sums: Any, salt: Any, place: Any) -> Any:
    """What a slot adds to the log-odds of whatever stands there; 0 for the first."""
    if place == 0:
        return 0.0
    at = 2 * b.slot(salt, 64 + place)
    return sums[at + 1] / (b.SLOT_PRIOR + max(sums[at], 0.0))


@njit(cache=True, inline="always")
def _below(x: Any) -> Any:
    """P(a standard normal < x), within 2e-4 (Page 1977)."""
    if x > 6.0:
        return 1.0
    if x < -6.0:
        return 0.0
    return 1.0 / (1.0 + math.exp(-1.5976 * x - 0.07056 * x * x * x))


@njit(cache=True)
def _worth(z: Any, value: Any) -> Any:
    """log(value * sigmoid(z))"""
    return math.log(value) - math.log1p(math.exp(-max(min(z, 30.0), -30.0)))


@njit(cache=True)
def distribute(beliefs: Any, values: Any, alpha: Any, cdf: Any) -> None:
    """P(what an arm is worth < t) on a grid of t, into cdf float64 [CELLS + 1, m].

    An arm is worth its value times its chance, which is uncertain by alpha times its standard
    deviation: below 1 explores less (posterior reshaping, Chapelle and Li 2011). The grid reaches
    from where one arm surely is better to where none can be.
    """
    m = len(values)
    alike = True
    for i in range(m):
        if values[i] != values[0]:
            alike = False
    low, high = -1e300, -1e300
    for i in range(m):
        if values[i] <= 0.0:
            continue
        z, sd = beliefs[i, 0], max(alpha * beliefs[i, 1], 1e-6)
        first, last = z - TAIL * sd, z + TAIL * sd
        if not alike:
            first, last = _worth(first, values[i]), _worth(last, values[i])
        low, high = max(low, first), max(high, last)
    for g in range(CELLS + 1):
        t = low + (high - low) * g / CELLS
        for i in range(m):
            if values[i] <= 0.0:
                cdf[g, i] = 1.0
                continue
            z = t
            if not alike:
                chance = math.exp(min(t - math.log(values[i]), 0.0))
                z = 30.0 if chance > 1.0 - 1e-13 else math.log(chance / (1.0 - chance) + 1e-300)
            cdf[g, i] = _below((z - beliefs[i, 0]) / max(alpha * beliefs[i, 1], 1e-6))


@njit(cache=True)
def highest(cdf: Any, left: Any, out: Any) -> None:
    """P(arm i's draw is the highest) among the arms with left[i], into out float64 [m]."""
    m = len(left)
    for i in range(m):
        out[i] = 0.0
    total = 0.0
    for g in range(CELLS):
        all_below = 1.0
        for i in range(m):
            if left[i]:
                all_below *= max(0.5 * (cdf[g, i] + cdf[g + 1, i]), 1e-9)
        if all_below < 1e-12:
            continue
        for i in range(m):
            if left[i]:
                here = max(0.5 * (cdf[g, i] + cdf[g + 1, i]), 1e-9)
                out[i] += (cdf[g + 1, i] - cdf[g, i]) * all_below / here
    for i in range(m):
        total += out[i]
    if total > 0.0:
        for i in range(m):
            out[i] /= total


@njit(cache=True)
def merits(beliefs: Any, values: Any, rule: Any, alpha: Any, out: Any) -> None:
    """What a rule that takes the best goes by, into out float64 [m]."""
    for i in range(len(values)):
        if rule == FIXED:
            out[i] = values[i] * beliefs[i, 3]
        elif rule == LINUCB:
            out[i] = values[i] * b.sigmoid(beliefs[i, 0] + alpha * beliefs[i, 1])
        else:
            out[i] = values[i] * b.moderated(beliefs[i, 0], beliefs[i, 2])


@njit(cache=True)
def probabilities(
    rule: Any, floor: Any, cdf: Any, merit: Any, left: Any, count: Any, out: Any
) -> None:
    """P(arm i is drawn) among the `count` arms with left[i], floor included, into out [m]."""
    m = len(left)
    if rule == THOMPSON:
        highest(cdf, left, out)
    else:
        best = -1
        for i in range(m):
            out[i] = 0.0
            if left[i] and rule != UNIFORM and (best < 0 or merit[i] > merit[best]):
                best = i
        if best >= 0:
            out[best] = 1.0
    total = 0.0
    for i in range(m):
        total += out[i]
    # No rule has an opinion: uniform over what is left.
    share = floor if total > 0.0 else 1.0
    for i in range(m):
        out[i] = ((1.0 - share) * out[i] + share / count) if left[i] else 0.0


@njit(cache=True)
def draw(
    beliefs: Any,
    values: Any,
    rule: Any,
    alpha: Any,
    floor: Any,
    pins: Any,
    allowed: Any,
    uniforms: Any,
    order: Any,
    propensities: Any,
) -> Any:
    """Fill slots; returns how many were filled, and whether some slot has not the best of its own.

    beliefs float64 [>= m, 4], of which the first m may be drawn; values float32 [m]
    pins int32 [k], the row that stands there, -1 = free; uniforms float64 [k]
    allowed bool [k, m], which rows may stand in a slot; [0, m] = all in all
    order int32 [k] and propensities float64 [k] are filled with rows of beliefs
    """
    m = len(values)
    left = np.ones(m, np.bool_)
    may = left if len(allowed) == 0 else np.empty(m, np.bool_)
    stop = len(pins) if len(allowed) == 0 else slots.fillable(allowed, pins)
    out, merit, best_merit = np.empty(m), np.empty(m), np.empty(m)
    cdf = np.empty((CELLS + 1, m) if rule == THOMPSON else (1, 1))
    if rule == THOMPSON and m > 0:
        distribute(beliefs, values, alpha, cdf)
    merits(beliefs, values, rule, alpha, merit)
    merits(beliefs, values, GREEDY, alpha, best_merit)
    count, filled, explored = m, 0, False
    for place in range(stop):
        if pins[place] >= 0:
            order[filled] = pins[place]
            propensities[filled] = 1.0
            filled += 1
            continue
        if len(allowed):
            count = slots.open_at(place, stop, allowed, left, pins, may)
        if count == 0:
            break
        probabilities(rule, floor, cdf, merit, may, count, out)
        chosen, cumulated, best = -1, 0.0, -1
        for i in range(m):
            if not may[i]:
                continue
            if best < 0 or best_merit[i] > best_merit[best]:
                best = i
            # The last with a chance takes what rounding left of it.
            if cumulated <= uniforms[place] and out[i] > 0.0:
                chosen = i
            cumulated += out[i]
        explored = explored or chosen != best
        order[filled] = chosen
        propensities[filled] = out[chosen]
        left[chosen] = False
        count -= 1
        filled += 1
    return filled, explored


@njit(cache=True)
def along(
    beliefs: Any,
    values: Any,
    rule: Any,
    alpha: Any,
    floor: Any,
    allowed: Any,
    order: Any,
    chance: Any,
    odds: Any,
) -> None:
    """How likely slots that were filled by somebody else would have been filled alike.

    order   int32 [k], rows of beliefs; one of m and more was pinned, with probability 1
    chance  float64 [k], P(this row | the slots before) is written there
    odds    float64 [k, m], of all rows; [0, m]: nobody asks
    """
    m, k = len(values), len(order)
    left = np.ones(m, np.bool_)
    may = left if len(allowed) == 0 else np.empty(m, np.bool_)
    pins = np.full(k, -1, np.int32)
    merit, out = np.empty(m), np.empty(m)
    cdf = np.empty((CELLS + 1, m) if rule == THOMPSON else (1, 1))
    if rule == THOMPSON and m > 0:
        distribute(beliefs, values, alpha, cdf)
    merits(beliefs, values, rule, alpha, merit)
    count = m
    for place in range(k):
        if order[place] >= m:
            pins[place] = order[place]
    for place in range(k):
        chance[place] = 1.0
        if pins[place] >= 0:
            continue
        if len(allowed):
            count = slots.open_at(place, k, allowed, left, pins, may)
        probabilities(rule, floor, cdf, merit, may, count, out)
        chance[place] = out[order[place]]
        if len(odds):
            odds[place] = out
        left[order[place]] = False
        count -= 1


@njit(cache=True)
def chances(sums: Any, salt: Any, beliefs: Any, order: Any, choice: Any, out: Any) -> None:
    """P(reward) of what stands in each slot, or of being the one that is picked; float32 [k]."""
    if choice:
        total, most = 0.0, -1e300
        for i in range(len(order)):
            most = max(most, beliefs[order[i], 0])
        for i in range(len(order)):
            total += math.exp(beliefs[order[i], 0] - most)
        for i in range(len(order)):
            out[i] = math.exp(beliefs[order[i], 0] - most) / total
        return
    trust = b.trust_of(sums, salt)
    for i in range(len(order)):
        z = beliefs[order[i], 0] + trust[1] * place_effect(sums, salt, i)
        out[i] = b.moderated(z, beliefs[order[i], 2])


@njit(cache=True)
def first_slot(beliefs: Any, values: Any, rule: Any, alpha: Any, floor: Any) -> Any:
    """P(each arm is drawn for the first slot), float64 [m]."""
    m = len(values)
    left, merit, out = np.ones(m, np.bool_), np.empty(m), np.empty(m)
    cdf = np.empty((CELLS + 1, m) if rule == THOMPSON else (1, 1))
    if rule == THOMPSON and m > 0:
        distribute(beliefs, values, alpha, cdf)
    merits(beliefs, values, rule, alpha, merit)
    probabilities(rule, floor, cdf, merit, left, m, out)
    return out


@njit(cache=True)
def by_feature(sums: Any, salt: Any, ch: Any, cx: Any, arm: Any) -> Any:
    """What each feature of the context adds to an arm's log-odds, float64 [n, 2]: to those of all
    arms alike, and to this one's alone.
    """
    trust = b.trust_of(sums, salt)
    out = np.empty((len(ch), 2))
    own, crossed = np.int64(salt) | (np.int64(1) << 32), b.slot(salt, arm) | (4 << 32)
    for i in range(len(ch)):
        at = 2 * b.slot(own, ch[i])
        mean = sums[at + 1] / (b.PRIORS[b.CONTEXT] + max(sums[at], 0.0))
        out[i, 0] = trust[1] * cx[i] * mean
        at = 2 * b.slot(crossed, ch[i])
        mean = sums[at + 1] / (b.PRIORS[b.CONTEXT_ACTION] + max(sums[at], 0.0))
        out[i, 1] = trust[3] * cx[i] * mean
    return out


@njit(cache=True)
def parts(
    sums: Any,
    salt: Any,
    surface: Any,
    ch: Any,
    cx: Any,
    arm: Any,
    fh: Any,
    fx: Any,
    memory: Any,
) -> Any:
    """What an arm's log-odds are the sum of, and their standard deviation; float64 [5].

    The policy, surface and context; the arm and its features; context x arm; the person.
    """
    most = 4 + 2 * len(ch) + 2 * len(fh) + 2 * b.MEMORY
    rows, cols = np.empty((most, 2), np.int64), np.empty((most, 2))
    n = b.collect_shared(salt, surface, ch, cx, 0, rows, cols)
    n = b.collect_arm(salt, ch, cx, arm, fh, fx, memory, n, rows, cols)
    mean, doubt, x = np.zeros(b.LEVELS), np.zeros(b.LEVELS), np.empty(b.TRUST)
    b.add_up(sums, rows, cols, 0, n, mean, doubt)
    b.inputs(mean, x)
    trust = b.trust_of(sums, salt)
    out = np.empty(5)
    out[0] = trust[0] + trust[1] * x[1]
    for i in range(2, b.TRUST):
        out[i - 1] = trust[i] * x[i]
    out[4] = math.sqrt(b.combine(doubt, trust)[1])
    return out
