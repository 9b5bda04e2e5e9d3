"""Who may come next, for one person: runs all components over a base and a log.

Owns the working space that the kernels fill, so that a decision allocates next to nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.engine import kernels as k
from actors.engine.base import POPULAR_MAX, Base
from actors.engine.features import AFTER, BEFORE, FEATURES, to_features
from actors.engine.kernels import FRESH_MAX, RECENT_DECAY, RECENT_MAX, SHORT_DECAY, SHORT_MAX

NEAR_MAX = 8192
"""Similar sequences looked at before the nearest are chosen."""


class Live(NamedTuple):
    """What is learned in the call itself, on top of a base.

    log, state, newest     see `delta.append`
    counts, recent         float32 [items_max], events per item: base and log together
    sums                   float64 [2], their sums
    """

    log: NDArray[np.int64]
    state: NDArray[np.int64]
    newest: NDArray[np.int64]
    counts: NDArray[np.float32]
    recent: NDArray[np.float32]
    sums: NDArray[np.float64]


class Candidates:
    """The candidates of the last `collect`.

    items     int32 [CANDIDATES_MAX], of which the first n are candidates
    features  float32 [FEATURES, CANDIDATES_MAX], a column per candidate
    of        int32 [items_max], slot of an item if `items[slot]` is that item and slot < n
    """

    def __init__(self, items_max: int) -> None:
        self.items = np.zeros(k.CANDIDATES_MAX, np.int32)
        self.features = np.zeros((FEATURES, k.CANDIDATES_MAX), np.float32)
        self.of = np.zeros(items_max, np.int32)
        self._n = np.zeros(1, np.int64)
        self._similarity = np.zeros(0, np.float32)
        self._common = np.zeros(0, np.int64)
        self._near = np.zeros(NEAR_MAX, np.int64)
        self._walked = np.zeros(k.LOG_STEPS_MAX, np.int32)
        self._walked_weights = np.zeros(k.LOG_STEPS_MAX, np.float32)

    @property
    def n(self) -> int:
        """How many candidates there are."""
        return int(self._n[0])

    def slot(self, item: int, found: int) -> int:
        """The slot of an item among the first `found` candidates, or -1."""
        slot = int(self.of[item])
        return slot if slot < found and self.items[slot] == item else -1

    def prepare(self, base: Base) -> None:
        """Make room for the sequences of `base`; to be called when the base changes."""
        sequences = len(base.history.uids)
        if len(self._similarity) < sequences:
            self._similarity = np.zeros(sequences * 2, np.float32)
            self._common = np.zeros(sequences * 2, np.int64)

    def collect(
        self,
        base: Base,
        live: Live,
        popular: NDArray[np.int32],
        attributes: NDArray[np.int32],
        items_n: int,
        recent: NDArray[np.int32],
        length: int,
        row: int,
        wanted: NDArray[np.int32],
    ) -> int:
        """Fill candidates and features for a person; `wanted` items are added in any case.

        recent   int32, the person's last items, newest first, of which `length` count
        Returns  how many candidates were found before the wanted ones were added.
        """
        return int(
            _collect(
                recent,
                min(length, RECENT_MAX),
                row,
                base.after.indptr,
                base.after.items,
                base.after.weights,
                base.after.direct,
                base.after.totals,
                base.before.indptr,
                base.before.items,
                base.before.weights,
                base.before.direct,
                base.before.totals,
                base.history.starts,
                base.history.items,
                base.postings_at,
                base.postings,
                popular,
                wanted,
                attributes,
                items_n,
                live.log,
                live.state,
                live.newest,
                live.counts,
                live.recent,
                live.sums,
                self._similarity,
                self._common,
                self._near,
                self._walked,
                self._walked_weights,
                self.of,
                self.items,
                self.features,
                self._n,
            )
        )


@njit(cache=True, nogil=True)
def _collect(
    recent: Any,
    length: Any,
    row: Any,
    after_at: Any,
    after_items: Any,
    after_weights: Any,
    after_direct: Any,
    after_totals: Any,
    before_at: Any,
    before_items: Any,
    before_weights: Any,
    before_direct: Any,
    before_totals: Any,
    starts: Any,
    history: Any,
    postings_at: Any,
    postings: Any,
    popular: Any,
    wanted: Any,
    attributes: Any,
    items_n: Any,
    log: Any,
    state: Any,
    newest: Any,
    counts: Any,
    recent_counts: Any,
    sums: Any,
    similarity: Any,
    common: Any,
    near: Any,
    walked: Any,
    walked_weights: Any,
    of: Any,
    items: Any,
    evidence: Any,
    n: Any,
) -> Any:
    n[0] = 0
    k.add_own(recent, length, of, items, evidence, n)
    add_transitions(
        recent,
        length,
        row,
        after_at,
        after_items,
        after_weights,
        after_direct,
        after_totals,
        before_at,
        before_items,
        before_weights,
        before_direct,
        before_totals,
        log,
        state,
        newest,
        walked,
        walked_weights,
        of,
        items,
        evidence,
        n,
    )
    k.add_neighbours(
        recent,
        length,
        starts,
        history,
        postings_at,
        postings,
        similarity,
        common,
        near,
        of,
        items,
        evidence,
        n,
    )
    k.add_pair(
        recent,
        length,
        starts,
        history,
        postings_at,
        postings,
        of,
        items,
        evidence,
        n,
    )
    add_anyones(popular, items_n, of, items, evidence, n)
    found = n[0]
    for a in range(wanted.shape[0]):
        k.add_candidate(wanted[a], of, items, evidence, n)
    k.add_liked(recent, length, attributes, items, evidence, n)
    to_features(evidence, items, n[0], counts, recent_counts, sums)
    return found


@njit(cache=True, nogil=True)
def add_transitions(
    recent: Any,
    length: Any,
    row: Any,
    after_at: Any,
    after_items: Any,
    after_weights: Any,
    after_direct: Any,
    after_totals: Any,
    before_at: Any,
    before_items: Any,
    before_weights: Any,
    before_direct: Any,
    before_totals: Any,
    log: Any,
    state: Any,
    newest: Any,
    walked: Any,
    walked_weights: Any,
    of: Any,
    items: Any,
    evidence: Any,
    n: Any,
) -> None:
    """What followed the person's recent items, and what stood before the last of them."""
    mass = np.float32(0.0)
    mass_short = np.float32(0.0)
    for j in range(length):
        mass += np.float32(RECENT_DECAY**j)
        if j < SHORT_MAX:
            mass_short += np.float32(SHORT_DECAY**j)
    for j in range(length):
        k.add_links(
            recent[j],
            np.float32(RECENT_DECAY**j) / mass,
            AFTER,
            j == 0,
            after_at,
            after_items,
            after_weights,
            after_direct,
            after_totals,
            log,
            state,
            newest,
            row,
            walked,
            walked_weights,
            of,
            items,
            evidence,
            n,
        )
        if j < SHORT_MAX:
            k.add_links(
                recent[j],
                np.float32(SHORT_DECAY**j) / mass_short,
                BEFORE,
                False,
                before_at,
                before_items,
                before_weights,
                before_direct,
                before_totals,
                log,
                state,
                newest,
                row,
                walked,
                walked_weights,
                of,
                items,
                evidence,
                n,
            )


@njit(cache=True, nogil=True)
def add_anyones(popular: Any, items_n: Any, of: Any, items: Any, evidence: Any, n: Any) -> None:
    """Candidates for everybody: the popular items and the newest of the catalogue."""
    for a in range(popular.shape[0]):
        k.add_candidate(popular[a], of, items, evidence, n)
    for item in range(max(items_n - FRESH_MAX, 0), items_n):
        k.add_candidate(item, of, items, evidence, n)
    # An empty model still has an answer.
    for item in range(items_n):
        if n[0] >= POPULAR_MAX:
            break
        k.add_candidate(item, of, items, evidence, n)
