"""People and items for tests of the engine: the store's own kernels on small arrays."""

import numpy as np

from actors import profile_kernels
from actors import store_kernels as k
from actors.engine.engine import NextAction
from actors.engine.history import History


def history_of(engine: NextAction) -> History:
    """All that the engine has learned of sequences, once it is consolidated."""
    engine.consolidate()
    return engine._base.history


class FakePeople:
    """A person at each row from the start; `append` enters events into the ring."""

    def __init__(self, n: int) -> None:
        self.rows = np.zeros(n, k.ROW)
        self.words = np.zeros(1 << 16, np.uint32)
        self.heap = np.zeros(k.HEAP_SLOTS, np.int64)
        self.heap[k.HEAP_NEXT] = 4
        self.heap[k.HEAP_LIMIT] = len(self.words)
        self.heap[k.RING_MAX] = 50
        self.rows["key_hi"] = np.arange(n) * 7919
        self.rows["flags"] = k.LIVE

    def append(self, row: int, item: int, time_s: int) -> None:
        assert k.append_event(self.rows, self.words, self.heap, row, item, 1, 0.0, time_s)

    def set_vector(self, row: int, vector: np.ndarray) -> None:
        assert profile_kernels.set_section(
            self.rows, self.words, self.heap, row, profile_kernels.VECTOR, vector.view(np.uint32)
        )


class FakeItems:
    """n items, all alive, without attributes."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.alive = np.ones(n, np.uint8)
        self.embeddings: np.ndarray | None = None
        self.attribute_ids = np.full((n, 4), -1, np.int32)
