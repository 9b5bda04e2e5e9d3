"""What speaks for a candidate: the features that the stacker weighs, by number and name.

The first EVIDENCE are filled by the kernels, the products of them follow from PRODUCTS.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

AFTER = 0  # decayed transitions from the person's recent items, many steps
DIRECT = 1  # transitions from the last item, one step
NEIGHBOURS = 2  # similar sequences, items after the common one
NEIGHBOURS_BEFORE = 3  # likewise, items before it
BEFORE = 4  # transitions backwards
OWN = 5  # how lately the person acted on it
OWN_COUNT = 6  # how often
CURRENT = 7  # it is the last item
PREVIOUS = 8  # it is the one before
POPULAR = 9  # share of all events
POPULAR_NOW = 10  # share of the newest events
LIKED = 11  # shares attributes with the person's recent items
PAIR = 12  # what followed the person's last two items, in this order
EVIDENCE = 13
# Products of two features: evidence that counts less (or more) as it grows, or on what the
# person has already acted on, or on what is popular anyway.
PRODUCTS = (
    (AFTER, AFTER),
    (DIRECT, DIRECT),
    (NEIGHBOURS, NEIGHBOURS),
    (BEFORE, BEFORE),
    (POPULAR, POPULAR),
    (PAIR, PAIR),
    (AFTER, NEIGHBOURS),
    (AFTER, POPULAR),
    (AFTER, OWN_COUNT),
    (NEIGHBOURS, OWN_COUNT),
    (BEFORE, OWN_COUNT),
)
FEATURES = EVIDENCE + len(PRODUCTS)
LOG_MAX = np.float32(7.0)
"""About the largest value of an evidence feature, log(1 + 1 / FLOOR): products are over it."""
POPULAR_MIDDLE = np.float32(8.0)
"""Brings the logarithm of popularity near 0 before it is multiplied."""
_EVIDENCE_NAMES = (
    "transitions",
    "directTransitions",
    "neighbours",
    "neighboursBefore",
    "transitionsBack",
    "ownRecency",
    "ownCount",
    "isCurrent",
    "isPrevious",
    "popularity",
    "recentPopularity",
    "attributes",
    "lastTwo",
)
FEATURE_NAMES = _EVIDENCE_NAMES + tuple(
    f"{_EVIDENCE_NAMES[a]}*{_EVIDENCE_NAMES[b]}" for a, b in PRODUCTS
)
# Where learning starts: rounded means over public sets; see tests/bench/quality.json.
PRIOR = np.zeros(FEATURES)
PRIOR[:EVIDENCE] = 0.4, 0.15, 0.4, 0.1, 0.3, 0.0, 0.5, 0.0, 0.2, -0.4, 0.3, 0.1, 0.2

FLOOR = 1e-3
"""Evidence is log(1 + share / FLOOR): a share well below it says nothing."""


@njit(cache=True, nogil=True, fastmath=True)
def to_features(
    evidence: Any, items: Any, n: Any, counts: Any, recent_counts: Any, sums: Any
) -> None:
    """Turn shares and counts into the features that the stacker weighs, in place.

    sums  float64 [2], all of `counts` and of `recent_counts`
    """
    scale = np.float32(1.0 / FLOOR)
    for feature in (AFTER, DIRECT, NEIGHBOURS, NEIGHBOURS_BEFORE, BEFORE, PAIR):
        for c in range(n):
            if evidence[feature, c] > 0.0:
                evidence[feature, c] = math.log(np.float32(1.0) + evidence[feature, c] * scale)
    inverse = np.float32(1.0 / (sums[0] + 1.0))
    inverse_recent = np.float32(1.0 / (sums[1] + 1.0))
    for c in range(n):
        if evidence[OWN_COUNT, c] > 0.0:
            evidence[OWN_COUNT, c] = math.log(np.float32(1.0) + evidence[OWN_COUNT, c])
        if evidence[LIKED, c] > 0.0:
            evidence[LIKED, c] = math.log(np.float32(1.0) + evidence[LIKED, c])
        item = items[c]
        evidence[POPULAR, c] = math.log((counts[item] + np.float32(0.5)) * inverse)
        evidence[POPULAR_NOW, c] = math.log(
            (recent_counts[item] + np.float32(0.5)) * inverse_recent
        )
    over = np.float32(1.0) / LOG_MAX
    row = EVIDENCE
    for a, b in PRODUCTS:
        for c in range(n):
            x = evidence[a, c]
            y = evidence[b, c]
            if b == OWN_COUNT:
                y = LOG_MAX if y > 0.0 else np.float32(0.0)
            elif b == POPULAR:
                y += POPULAR_MIDDLE
                if a == POPULAR:
                    x = y
            evidence[row, c] = x * y * over
        row += 1
