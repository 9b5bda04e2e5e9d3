"""Which arms a slot may take so that the slots behind it can still be filled, each with its own.

Slots exclude arms of their own (`excludedActions`). They are filled one after the other, so an
early one could take the only arm that is left to a later one: what it may take is what leaves a
matching of the others (Hall 1935; augmenting paths: Kuhn 1955). All of it is known before an arm is
drawn, so propensities over what may be taken are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

SLOTS_MAX = 60
"""Slots of one choice."""


@njit(cache=True)
def _augment(start: Any, allowed: Any, left: Any, of_arm: Any, of_slot: Any) -> Any:
    """Give slot `start` an arm, others moving over if need be; returns whether that was possible.

    of_arm int64 [m]: the slot that has it, -1 = none, -2 = not to be had; of_slot int64 [k]
    """
    m = len(of_arm)
    came_from = np.full(m, -1, np.int64)
    queue = np.empty(len(of_slot) + 1, np.int64)
    queue[0] = start
    head, tail = 0, 1
    while head < tail:
        slot = queue[head]
        head += 1
        for arm in range(m):
            if not (left[arm] and allowed[slot, arm]) or came_from[arm] >= 0 or of_arm[arm] == -2:
                continue
            came_from[arm] = slot
            if of_arm[arm] >= 0:
                queue[tail] = of_arm[arm]
                tail += 1
                continue
            while True:
                owner = came_from[arm]
                before = of_slot[owner]
                of_arm[arm] = owner
                of_slot[owner] = arm
                if owner == start:
                    return True
                arm = before
    return False


@njit(cache=True)
def fillable(allowed: Any, pins: Any) -> Any:
    """How many of the first slots can be filled at once.

    allowed  bool [k, m], may arm i stand in slot s; pins int32 [k], >= 0: the slot is taken
    """
    k, m = allowed.shape
    left = np.ones(m, np.bool_)
    of_arm, of_slot = np.full(m, -1, np.int64), np.full(k, -1, np.int64)
    for slot in range(k):
        if pins[slot] < 0 and not _augment(slot, allowed, left, of_arm, of_slot):
            return slot
    return k


@njit(cache=True)
def open_at(place: Any, stop: Any, allowed: Any, left: Any, pins: Any, out: Any) -> Any:
    """Which arms may stand at `place`, into out bool [m]; returns how many.

    stop  slots up to there are to be filled, and can be with the arms left: bool [m]
    """
    k, m = allowed.shape
    behind = 0
    for slot in range(place + 1, stop):
        behind += pins[slot] < 0
    of_arm, of_slot = np.full(m, -1, np.int64), np.full(k, -1, np.int64)
    for slot in range(place + 1, stop):
        choices = 0
        for arm in range(m):
            choices += left[arm] and allowed[slot, arm]
        # With more arms than there are slots to be filled it always finds one, whoever is first.
        if pins[slot] < 0 and choices <= behind:
            _augment(slot, allowed, left, of_arm, of_slot)
    count = 0
    for arm in range(m):
        out[arm] = left[arm] and allowed[place, arm]
        owner = of_arm[arm]
        if out[arm] and owner >= 0:
            of_arm[arm] = -2
            of_slot[owner] = -1
            if _augment(owner, allowed, left, of_arm, of_slot):
                of_arm[arm] = -1
            else:
                of_arm[arm] = owner
                of_slot[owner] = arm
                out[arm] = False
        count += out[arm]
    return count


def open_first(allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which arms may stand in the first slot, bool [m]. allowed bool [k, m]"""
    k, m = allowed.shape
    pins, may, allowed = np.full(k, -1, np.int32), np.zeros(m, np.bool_), allowed.copy()
    stop = fillable(allowed, pins)
    if stop:
        open_at(0, stop, allowed, np.ones(m, np.bool_), pins, may)
    return may
