"""Scoring kernels. Candidates live in a sparse set, so that no call clears or scans the catalogue.

`candidates[slot_of[item]] == item` says that an item is a candidate; `slot_of` may hold anything
otherwise. Each candidate has one row of `parts`, one column per component.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from actors.engine.base import STEP_DECAY, STEPS
from actors.engine.delta import FORWARD, INCLUDED, ITEM, NEXT, OLDER, ROW
from actors.store_kernels import ITEM_MASK, NO_ITEM, event_at

CANDIDATES_MAX = 4096
RECENT_MAX = 10
"""The person's last items that count for what comes next."""
RECENT_DECAY = 0.6
LOG_WALK_MAX = 64
"""Occurrences of an item looked at in the log, the newest."""

TRANSITIONS = 0
OWN = 1
POPULARITY = 2
PARTS = 3
WEIGHTS = np.array([0.75, 0.10, 0.15], np.float32)


@njit(cache=True)
def recent_items(rows: Any, words: Any, row: Any, limit: Any, out: Any) -> Any:
    """The items of the person's last `limit` events on items, newest first. Returns how many."""
    n = 0
    for j in range(rows[row].ring_n):
        if n == limit:
            break
        item = words[event_at(rows, row, j)] & ITEM_MASK
        if item != NO_ITEM:
            out[n] = item
            n += 1
    return n


@njit(cache=True)
def _slot(item: Any, slot_of: Any, candidates: Any, parts: Any, n: Any) -> Any:
    """The slot of an item, made a candidate if need be; -1 if there are too many."""
    slot = slot_of[item]
    if 0 <= slot < n[0] and candidates[slot] == item:
        return slot
    slot = n[0]
    if slot == candidates.shape[0]:
        return -1
    slot_of[item] = slot
    candidates[slot] = item
    for part in range(parts.shape[1]):
        parts[slot, part] = 0.0
    n[0] = slot + 1
    return slot


@njit(cache=True)
def collect(
    recent: Any,
    length: Any,
    row: Any,
    indptr: Any,
    successors: Any,
    weights: Any,
    totals: Any,
    counts: Any,
    popular: Any,
    log: Any,
    state: Any,
    newest: Any,
    slot_of: Any,
    candidates: Any,
    parts: Any,
    n: Any,
) -> None:
    """Fill the candidates and their parts, each part a distribution over items.

    recent int32, newest first, of which `length` count; n int64 [1], how many candidates
    """
    known = totals.shape[0]
    capacity = log.shape[0]
    horizon = state[NEXT] - capacity
    position_weight = np.float32(1.0)
    mass = np.float32(0.0)
    for _ in range(length):
        mass += position_weight
        position_weight *= np.float32(RECENT_DECAY)
    position_weight = np.float32(1.0) / max(mass, np.float32(1e-9))
    for j in range(length):
        item = recent[j]
        slot = _slot(item, slot_of, candidates, parts, n)
        if slot >= 0:
            parts[slot, OWN] += position_weight
        total = totals[item] if item < known else np.float32(0.0)
        total += _walk(
            item, row, log, state, newest, horizon, np.float32(0.0), slot_of, candidates, parts, n
        )
        if total > 0.0:
            scale = position_weight / total
            if item < known:
                for k in range(indptr[item], indptr[item + 1]):
                    slot = _slot(successors[k], slot_of, candidates, parts, n)
                    if slot >= 0:
                        parts[slot, TRANSITIONS] += scale * weights[k]
            _walk(item, row, log, state, newest, horizon, scale, slot_of, candidates, parts, n)
        position_weight *= np.float32(RECENT_DECAY)
    everything = np.float32(1.0)
    for k in range(popular.shape[0]):
        _slot(popular[k], slot_of, candidates, parts, n)
    for k in range(n[0]):
        item = candidates[k]
        parts[k, POPULARITY] = counts[item]
        everything += counts[item]
    for k in range(n[0]):
        parts[k, POPULARITY] /= everything


@njit(cache=True)
def _walk(
    item: Any,
    row: Any,
    log: Any,
    state: Any,
    newest: Any,
    horizon: Any,
    scale: Any,
    slot_of: Any,
    candidates: Any,
    parts: Any,
    n: Any,
) -> Any:
    """Add what followed `item` in the log and is not in the base, times `scale`. Returns its sum.

    The person's own events don't count: what one did is not evidence of what others do next.
    """
    capacity = log.shape[0]
    included = state[INCLUDED]
    total = np.float32(0.0)
    position = newest[item] - 1
    for _ in range(LOG_WALK_MAX):
        if position < horizon or position < 0:
            break
        entry = log[position % capacity]
        older = entry[OLDER] - 1
        if entry[ROW] != row or row < 0:
            weight = np.float32(1.0)
            for _step in range(STEPS):
                forward = entry[FORWARD] - 1
                if forward < 0:
                    break
                entry = log[forward % capacity]
                if forward >= included:
                    total += weight
                    if scale > 0.0:
                        slot = _slot(np.int64(entry[ITEM]), slot_of, candidates, parts, n)
                        if slot >= 0:
                            parts[slot, TRANSITIONS] += scale * weight
                weight *= np.float32(STEP_DECAY)
        position = older
    return total


@njit(cache=True)
def best(
    candidates: Any,
    parts: Any,
    n: Any,
    mix: Any,
    alive: Any,
    blocked: Any,
    k: Any,
    items: Any,
    scores: Any,
) -> Any:
    """The k candidates with the highest mixture of parts that are alive and not blocked.

    items int32 [>= k], scores float32 [>= k] are filled, best first. Returns how many.
    """
    found = 0
    for slot in range(n):
        item = candidates[slot]
        if alive[item] == 0 or blocked[item] != 0:
            continue
        score = np.float32(0.0)
        for part in range(parts.shape[1]):
            score += mix[part] * parts[slot, part]
        if found == k and score <= scores[k - 1]:
            continue
        at = found if found < k else k - 1
        while at > 0 and scores[at - 1] < score:
            scores[at] = scores[at - 1]
            items[at] = items[at - 1]
            at -= 1
        scores[at] = score
        items[at] = item
        if found < k:
            found += 1
    return found


@njit(cache=True)
def gather(wanted: Any, slot_of: Any, candidates: Any, parts: Any, n: Any, counts: Any) -> Any:
    """The parts of the `wanted` items, float32 [len(wanted), PARTS]; 0 where an item has none."""
    out = np.zeros((wanted.shape[0], parts.shape[1]), np.float32)
    for i in range(wanted.shape[0]):
        slot = slot_of[wanted[i]]
        if 0 <= slot < n and candidates[slot] == wanted[i]:
            for part in range(parts.shape[1]):
                out[i, part] = parts[slot, part]
        else:
            # Keeps unknown candidates in order of how often they were chosen.
            out[i, POPULARITY] = np.float32(1e-9) * counts[wanted[i]]
    return out
