"""Learns the stacker's weights from the tail of a stream: predict, then look, event by event.

The base must hold only what came before the tail, or the answers would be known beforehand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.engine import delta, kernels
from actors.engine.base import Base
from actors.engine.candidates import Candidates, Live
from actors.engine.stacker import Stacker

TAIL_SHARE = 10
"""The last 1/10 of a stream is its tail..."""
TAIL_EVENTS_MIN = 2000
"""...or this many events, but at most half of the stream."""
SAMPLES_MAX = 4000
NOTHING = np.zeros(0, np.int32)


class Stream(NamedTuple):
    """Events in the order in which they came. All arrays [n]."""

    rows: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.uint32]

    def head(self, n: int) -> Stream:
        """The first n events."""
        return Stream(self.rows[:n], self.items[:n], self.times[:n])


def tail_start(n: int) -> int:
    """Where the tail of a stream of n events starts."""
    return n - min(max(n // TAIL_SHARE, TAIL_EVENTS_MIN), n // 2)


def tune(
    stacker: Stacker,
    base: Base,
    stream: Stream,
    start: int,
    attributes: NDArray[np.int32],
    items_n: int,
    samples_max: int = SAMPLES_MAX,
) -> None:
    """Let `stacker` learn from up to `samples_max` events at or after `start`, evenly spread."""
    back = _back_links(stream.rows, int(stream.rows.max()) + 1)
    picks = np.flatnonzero(back[start:] >= 0) + start
    if len(picks) > samples_max:
        picks = picks[np.linspace(0, len(picks) - 1, samples_max).astype(np.int64)]
    candidates = Candidates(items_n)
    candidates.prepare(base)
    live = frozen(base, items_n)
    recent = np.zeros(kernels.RECENT_MAX, np.int32)
    for pick in picks.tolist():
        length = _recent_before(back, stream.items, pick, recent)
        found = candidates.collect(
            base, live, base.popular, attributes, items_n, recent, length, -1, NOTHING
        )
        stacker.observe(
            candidates.features, found, candidates.slot(int(stream.items[pick]), found), length
        )


def frozen(base: Base, items_n: int) -> Live:
    """The live part of a base on top of which nothing was learned."""
    return Live(
        delta.new_log(1),
        np.zeros(delta.STATE_SLOTS, np.int64),
        np.zeros(items_n, np.int64),
        base.counts,
        base.recent,
        np.array([base.counts.sum(), base.recent.sum()], np.float64),
    )


@njit(cache=True, nogil=True)
def _back_links(rows: Any, people: int) -> Any:
    """For each event the position of the same person's event before, or -1. int64 [n]."""
    last = np.full(people, -1, np.int64)
    back = np.empty(rows.shape[0], np.int64)
    for e in range(rows.shape[0]):
        back[e] = last[rows[e]]
        last[rows[e]] = e
    return back


@njit(cache=True, nogil=True)
def _recent_before(back: Any, items: Any, event: Any, out: Any) -> Any:
    """The person's items before `event`, newest first, as many as `out` holds. Returns how many."""
    n = 0
    event = back[event]
    while event >= 0 and n < out.shape[0]:
        out[n] = items[event]
        n += 1
        event = back[event]
    return n
