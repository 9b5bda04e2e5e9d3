"""The place an engine fills. A `Shard` calls it in its one turn; nothing else does.

An engine reads the person from the `ProfileStore` (the ring of last events, counters,
affinities) and the items from the `Catalogue`; what it learns across people it keeps itself.
Item numbers are dense catalogue indices, times are seconds since 1970.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Ranking(NamedTuple):
    """The best items first, at most k.

    items          int32 [n], catalogue indices
    scores         float32 [n], descending
    probabilities  float32 [n], P(the next action is this item), given that there is one on an
                   item that may be shown; empty if the policy has none
    no_action      P(the session ends here, and there is no next action); 0 if the policy can't say
    """

    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    no_action: float = 0.0


class People(Protocol):
    """What an engine reads of the `ProfileStore`: arrays in the layout of `store_kernels`.

    rows   structured ROW [profiles_max]
    words  uint32, the arena of the variable parts
    """

    @property
    def rows(self) -> NDArray[Any]: ...
    @property
    def words(self) -> NDArray[np.uint32]: ...


class Items(Protocol):
    """What an engine reads of the `Catalogue`. Arrays are as long as items_max and never move.

    n              items known; an item's number never changes
    alive          uint8, 0 for an item that was taken down
    embeddings     float32 [items_max, d], or None if no item has one
    attribute_ids  int32 [items_max, 4], -1 where there is none
    """

    @property
    def n(self) -> int: ...
    @property
    def alive(self) -> NDArray[np.uint8]: ...
    @property
    def embeddings(self) -> NDArray[np.float32] | None: ...
    @property
    def attribute_ids(self) -> NDArray[np.int32]: ...


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
        """As `learn` for each position in order; what it learned counts after `consolidate`.

        All arrays [n]; events of one person stand in order of time. It does not read the rings,
        so it may come before or after the store's `append_batch`.
        """

    def consolidate(self) -> None:
        """Build the indexes over all that was learned. Takes time; for after a warm start."""

    def tune(self) -> None:
        """Learn from the end of what `learn_batch` brought how much to trust which component.

        To be called after `consolidate`; may run in another thread while the engine answers.
        """

    def rank(
        self,
        row: int,
        candidates: NDArray[np.int32] | None,
        k: int,
        now_s: int,
        excluded: NDArray[np.int32],
        exclude_seen: bool,
        surface: int = 0,
    ) -> Ranking:
        """The k best of `candidates` (None: the whole catalogue) for the person at `row`.

        row may be -1 for a person without a profile; surface is a number of `stacker.SURFACES`
        or 0, which is that of all of them together. Never returns an item that is taken down,
        in `excluded`, or (with exclude_seen) in the person's ring.
        """

    def showed(self, key: bytes, surface: int, items: NDArray[np.int32]) -> None:
        """The person with this key hash is shown `items`: acting on one teaches that surface."""

    def forget(self, row: int) -> None:
        """The person at `row` is gone: what comes next in that row is another's."""

    def bytes_used(self) -> int:
        """Memory of what was learned, in bytes."""
