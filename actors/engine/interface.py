"""The place an engine fills. A `Shard` calls it in its one turn; nothing else does.

An engine reads the person from the `ProfileStore` (the ring of last events, counters,
affinities) and the items from the `Catalogue`; what it learns across people it keeps itself.
Item numbers are dense catalogue indices, times are seconds since 1970.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Ranking(NamedTuple):
    """The best items first, at most k.

    items          int32 [n], catalogue indices
    scores         float32 [n], descending
    probabilities  float32 [n], P(the next action is this item), or empty if the policy has none
    """

    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class Engine(Protocol):
    """Learns one event at a time, ranks for one person at a time. Never blocks, never awaits."""

    policy_id: str

    @property
    def version(self) -> str:
        """Names the learned state that answered, for the decision record."""

    def learn(self, row: int, item: int, event_type: int, value: float, now_s: int) -> None:
        """Learn one event on an item, before it enters the person's ring. item >= 0."""

    def learn_batch(
        self,
        rows: NDArray[np.int32],
        items: NDArray[np.int32],
        event_types: NDArray[np.uint8],
        values: NDArray[np.float32],
        times_s: NDArray[np.uint32],
    ) -> None:
        """As `learn` for each position in order, *and* puts each event into the person's ring.

        The store's `append_batch` and this are one kernel pass, so that transitions see the ring
        as it was at each event. All arrays [n].
        """

    def rank(
        self,
        row: int,
        candidates: NDArray[np.int32] | None,
        k: int,
        now_s: int,
        excluded: NDArray[np.int32],
        exclude_seen: bool,
    ) -> Ranking:
        """The k best of `candidates` (None: the whole catalogue) for the person at `row`.

        row may be -1 for a person without a profile. Never returns an item that is taken down,
        in `excluded`, or (with exclude_seen) in the person's ring.
        """

    def bytes_used(self) -> int:
        """Memory of what was learned, in bytes."""
