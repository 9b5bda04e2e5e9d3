"""The components' kernels: who may come next, and what speaks for each.

Candidates live in a sparse set, so that no call clears or scans the catalogue: `of[item]` is the
item's slot if `items[slot] == item`, and may hold anything otherwise. `evidence` has one row per
feature and one column per slot. What a person did themselves is the feature OWN; as evidence of
what others do next it is left out, as far as it is still in the log.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from actors.engine.base import PREDECESSOR_DECAY, PREDECESSOR_STEPS, STEP_DECAY, STEPS
from actors.engine.delta import BACK, FORWARD, INCLUDED, ITEM, NEXT, OLDER, ROW
from actors.engine.features import (
    AFTER,
    CURRENT,
    DIRECT,
    EVIDENCE,
    LIKED,
    NEIGHBOURS,
    NEIGHBOURS_BEFORE,
    OWN,
    OWN_COUNT,
    PAIR,
    PREVIOUS,
)
from actors.store_kernels import ITEM_MASK, NO_ITEM, event_at

CANDIDATES_MAX = 4096
RECENT_MAX = 20
"""The person's last items that are looked at."""
RECENT_DECAY = 0.85
"""Per event, for AFTER."""
SHORT_DECAY = 0.7
"""Per event, for BEFORE and OWN."""
SHORT_MAX = 10
"""The last items from which BEFORE and the neighbours come."""
NEIGHBOURS_MAX = 100
NEIGHBOUR_REACH = 12
"""How far from the common item a neighbour's items count."""
NEIGHBOUR_DECAY = 3.0
"""Events from the common item over which a neighbour's item loses a factor e."""
POSITION_DECAY = 3.0
"""Likewise for the position of the common item among the person's own."""
LOG_WALK_MAX = 32
"""Occurrences of an item looked at in the log, the newest."""
LOG_STEPS_MAX = 256
"""Entries of the log looked at per item."""
FRESH_MAX = 16
"""The newest catalogue entries are candidates, so that they can be found at all."""


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


@njit(cache=True, nogil=True)
def add_candidate(item: Any, of: Any, items: Any, evidence: Any, n: Any) -> Any:
    """The slot of an item, made a candidate if need be; -1 if there are too many."""
    slot = of[item]
    if 0 <= slot < n[0] and items[slot] == item:
        return slot
    slot = n[0]
    if slot == items.shape[0]:
        return -1
    of[item] = slot
    items[slot] = item
    for feature in range(EVIDENCE):
        evidence[feature, slot] = 0.0
    n[0] = slot + 1
    return slot


@njit(cache=True, nogil=True)
def add_links(
    item: Any,
    weight: Any,
    feature: Any,
    direct: Any,
    indptr: Any,
    linked: Any,
    weights: Any,
    directs: Any,
    totals: Any,
    log: Any,
    state: Any,
    newest: Any,
    row: Any,
    walked: Any,
    walked_weights: Any,
    of: Any,
    items: Any,
    evidence: Any,
    n: Any,
) -> None:
    """Spread `weight` over what the base and the log link to `item`, by share of the counts.

    feature  AFTER or BEFORE, which also says the direction in the log
    direct   also fill DIRECT, with weight 1
    """
    total = np.float32(0.0)
    total_direct = np.float32(0.0)
    if item < totals.shape[0]:
        total = totals[item, 0]
        total_direct = totals[item, 1]
    found = _walk(item, feature == AFTER, log, state, newest, row, walked, walked_weights)
    for k in range(found):
        total += abs(walked_weights[k])
        if walked_weights[k] < 0.0:
            total_direct += np.float32(1.0)
    if total == 0.0:
        return
    scale = np.float32(weight / total)
    scale_direct = np.float32(1.0) / max(total_direct, np.float32(1.0))
    if item < totals.shape[0]:
        for k in range(indptr[item], indptr[item + 1]):
            slot = add_candidate(linked[k], of, items, evidence, n)
            if slot >= 0:
                evidence[feature, slot] += scale * weights[k]
                if direct:
                    evidence[DIRECT, slot] += scale_direct * directs[k]
    for k in range(found):
        slot = add_candidate(walked[k], of, items, evidence, n)
        if slot >= 0:
            evidence[feature, slot] += scale * abs(walked_weights[k])
            if direct and walked_weights[k] < 0.0:
                evidence[DIRECT, slot] += scale_direct


@njit(cache=True, nogil=True)
def _walk(
    item: Any,
    forward: Any,
    log: Any,
    state: Any,
    newest: Any,
    row: Any,
    walked: Any,
    walked_weights: Any,
) -> Any:
    """What came after (or before) `item` in the log and is in no base. Returns how many.

    A pair belongs to its later event. Direct neighbours are marked by a negative weight.
    """
    capacity = log.shape[0]
    horizon = max(state[NEXT] - capacity, 0)
    included = state[INCLUDED]
    link = FORWARD if forward else BACK
    steps = STEPS if forward else PREDECESSOR_STEPS
    decay = np.float32(STEP_DECAY if forward else PREDECESSOR_DECAY)
    found = 0
    position = newest[item] - 1
    for _ in range(LOG_WALK_MAX):
        if position < horizon or found == walked.shape[0]:
            break
        # Backwards, a pair is new if this event is; older occurrences then can't be.
        if not forward and position < included:
            break
        entry = log[position % capacity]
        older = entry[OLDER] - 1
        if row < 0 or entry[ROW] != row:
            weight = np.float32(1.0)
            for step in range(steps):
                other = entry[link] - 1
                if other < horizon or found == walked.shape[0]:
                    break
                entry = log[other % capacity]
                if not forward or other >= included:
                    walked[found] = entry[ITEM]
                    walked_weights[found] = -weight if step == 0 else weight
                    found += 1
                weight *= decay
        position = older
    return found


@njit(cache=True, nogil=True)
def add_neighbours(
    recent: Any,
    length: Any,
    starts: Any,
    history: Any,
    postings_at: Any,
    postings: Any,
    similarity: Any,
    common: Any,
    near: Any,
    of: Any,
    items: Any,
    evidence: Any,
    n: Any,
) -> None:
    """Items of the sequences most similar to the person's (VS-kNN with STAN's weights).

    Similarity: position-weighted, IDF-weighted overlap over the root of the neighbour's length
    (Ludewig and Jannach 2018; Garg et al. 2019). An item counts by its distance to the common one.
    similarity float32 [>= S], all 0 before and after; common int64 [>= S]; near int64: space
    """
    sequences = starts.shape[0] - 1
    known = postings_at.shape[0] - 1
    found = 0
    for j in range(min(length, SHORT_MAX)):
        item = recent[j]
        repeated = item >= known
        for earlier in range(j):
            repeated = repeated or recent[earlier] == item
        if repeated or postings_at[item + 1] == postings_at[item]:
            continue
        first, stop = postings_at[item], postings_at[item + 1]
        rarity = math.log(1.0 + sequences / (stop - first))
        weight = np.float32(math.exp(-j / POSITION_DECAY) * rarity)
        for o in range(first, stop):
            s = postings[o, 0]
            if similarity[s] == 0.0:
                if found == near.shape[0]:
                    continue
                near[found] = s
                found += 1
                common[s] = postings[o, 1]
            similarity[s] += weight
    if found == 0:
        return
    for a in range(found):
        s = near[a]
        similarity[s] /= np.float32(math.sqrt(starts[s + 1] - starts[s]))
    floor = np.float32(0.0)
    if found > NEIGHBOURS_MAX:
        values = np.empty(found, np.float32)
        for a in range(found):
            values[a] = similarity[near[a]]
        floor = np.partition(values, found - NEIGHBOURS_MAX)[found - NEIGHBOURS_MAX]
    total = np.float32(0.0)
    for a in range(found):
        if similarity[near[a]] >= floor:
            total += similarity[near[a]]
    fade = np.float32(math.exp(-1.0 / NEIGHBOUR_DECAY))
    for a in range(found):
        s = near[a]
        if similarity[s] >= floor:
            share = similarity[s] / total
            weight = share
            for p in range(common[s] + 1, min(common[s] + 1 + NEIGHBOUR_REACH, starts[s + 1])):
                slot = add_candidate(history[p], of, items, evidence, n)
                if slot >= 0:
                    evidence[NEIGHBOURS, slot] += weight
                weight *= fade
            weight = share
            for p in range(common[s] - 1, max(common[s] - 1 - NEIGHBOUR_REACH, starts[s] - 1), -1):
                slot = add_candidate(history[p], of, items, evidence, n)
                if slot >= 0:
                    evidence[NEIGHBOURS_BEFORE, slot] += weight
                weight *= fade
        similarity[s] = 0.0


@njit(cache=True, nogil=True)
def add_pair(
    recent: Any,
    length: Any,
    starts: Any,
    history: Any,
    postings_at: Any,
    postings: Any,
    of: Any,
    items: Any,
    evidence: Any,
    n: Any,
) -> None:
    """What came next where the person's last two items stood side by side, in this order."""
    if length < 2 or recent[0] >= postings_at.shape[0] - 1:
        return
    # One event's worth of doubt: what followed a pair once is not certain to follow it again.
    total = np.float32(1.0)
    first, stop = postings_at[recent[0]], postings_at[recent[0] + 1]
    for turn in range(2):
        for o in range(first, stop):
            s, p = postings[o, 0], postings[o, 1]
            if p > starts[s] and p + 1 < starts[s + 1] and history[p - 1] == recent[1]:
                if turn == 0:
                    total += np.float32(1.0)
                else:
                    slot = add_candidate(history[p + 1], of, items, evidence, n)
                    if slot >= 0:
                        evidence[PAIR, slot] += np.float32(1.0) / total
        if total == 1.0:
            break


@njit(cache=True, nogil=True)
def add_own(recent: Any, length: Any, of: Any, items: Any, evidence: Any, n: Any) -> None:
    """The person's own recent items: how lately, how often, and which are the last two."""
    weight = np.float32(1.0)
    for j in range(length):
        slot = add_candidate(recent[j], of, items, evidence, n)
        if slot >= 0:
            evidence[OWN, slot] = max(evidence[OWN, slot], weight)
            evidence[OWN_COUNT, slot] += np.float32(1.0)
            if j == 0:
                evidence[CURRENT, slot] = np.float32(1.0)
            elif j == 1:
                evidence[PREVIOUS, slot] = np.float32(1.0)
        weight *= np.float32(SHORT_DECAY)


@njit(cache=True, nogil=True)
def add_liked(recent: Any, length: Any, attributes: Any, items: Any, evidence: Any, n: Any) -> None:
    """How many of the person's recent items share an attribute with each candidate, weighted.

    attributes  int32 [items_max, 4], -1 = none
    """
    liked = np.empty(SHORT_MAX * attributes.shape[1], np.int64)
    weights = np.empty(liked.shape[0], np.float32)
    found = 0
    weight = np.float32(1.0)
    for j in range(min(length, SHORT_MAX)):
        for a in range(attributes.shape[1]):
            attribute = attributes[recent[j], a]
            if attribute < 0:
                continue
            k = 0
            while k < found and liked[k] != attribute:
                k += 1
            if k == found:
                liked[k] = attribute
                weights[k] = 0.0
                found += 1
            weights[k] += weight
        weight *= np.float32(SHORT_DECAY)
    if found == 0:
        return
    for c in range(n[0]):
        for a in range(attributes.shape[1]):
            attribute = attributes[items[c], a]
            if attribute >= 0:
                for k in range(found):
                    if liked[k] == attribute:
                        evidence[LIKED, c] += weights[k]
                        break


@njit(cache=True, nogil=True)
def best(
    among: Any, scores: Any, n: Any, alive: Any, blocked: Any, k: Any, out: Any, out_scores: Any
) -> Any:
    """The k of `among` with the highest scores that are alive and not blocked.

    among int32 [n], scores float32 [n]; out, out_scores [>= k] are filled, best first.
    Returns how many.
    """
    found = 0
    for slot in range(n):
        item = among[slot]
        score = scores[slot]
        if found == k and score <= out_scores[k - 1]:
            continue
        if alive[item] == 0 or blocked[item] != 0:
            continue
        found = insert(item, score, found, k, out, out_scores)
    return found


@njit(cache=True, nogil=True)
def insert(item: Any, score: Any, found: Any, k: Any, out: Any, out_scores: Any) -> Any:
    """Put an item among the `found` best, of which at most k stay; equal scores stay in order.

    If there are k already, `score` is above the last. Returns how many there are.
    """
    at = found if found < k else k - 1
    while at > 0 and out_scores[at - 1] < score:
        out_scores[at] = out_scores[at - 1]
        out[at] = out[at - 1]
        at -= 1
    out_scores[at] = score
    out[at] = item
    return min(found + 1, k)
