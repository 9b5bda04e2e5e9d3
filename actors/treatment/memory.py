"""What one person did with the arms of one policy, in a few bytes.

Per arm: how much oftener it succeeded than everybody's model had expected (`surprise`), how much
there was to learn from that (`weight`), successes, and whether it was the last success of all.
surprise / (weight + 1) is one Newton step to the mode of the person's own effect, with a standard
normal prior: a random effect, without a weight of the person in the model.

Bytes: uint32 [n] hashes of arms, the one last tried at the end; then float32 [n, 4].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.treatment.belief import MEMORY

ARMS_MAX = 16
"""Arms that are remembered of a person and policy; the one longest without a trial leaves."""
ENTRY_WORDS = 5
ENTRY_BYTES = 4 * ENTRY_WORDS
BYTES_MAX = ARMS_MAX * ENTRY_BYTES
SURPRISE, WEIGHT, SUCCESSES, LAST = range(4)
# Of bytes, as every other memory: kernels are compiled for arrays that can't be written to.
NO_WORDS: NDArray[np.uint32] = np.frombuffer(b"", np.uint32)


def recall(memory: bytes, arms: NDArray[np.uint32]) -> NDArray[np.float32]:
    """What the model is told of a person, float32 [n, MEMORY] for the arms with these hashes.

    Columns: the person's own effect; 1 if this was the last success; its share of successes, above
    that of an equal split. All 0 for who has no memory.
    """
    out = np.empty((len(arms), MEMORY), np.float32)
    recall_into(words_of(memory), arms, out)
    return out


def words_of(memory: bytes) -> NDArray[np.uint32]:
    """A memory as kernels take it, uint32 [5 n]."""
    return np.frombuffer(memory, np.uint32) if memory else NO_WORDS


def remember(
    memory: bytes,
    arms: NDArray[np.uint32],
    expected: NDArray[np.float32],
    rewards: NDArray[np.float32],
) -> bytes:
    """The memory after one outcome of arms that were shown.

    expected  the chances that were predicted; rewards in [0, 1]; float32 [n] each
    """
    known, entries = _read(memory)
    rows: dict[int, Any] = dict(zip(known.tolist(), entries.tolist(), strict=True))
    for arm, chance, reward in zip(arms.tolist(), expected.tolist(), rewards.tolist(), strict=True):
        row = rows.pop(arm, [0.0, 0.0, 0.0, 0.0])
        row[SURPRISE] += reward - chance
        row[WEIGHT] += chance * (1.0 - chance)
        row[SUCCESSES] += reward
        rows[arm] = row
    best = int(rewards.argmax()) if len(rewards) else -1
    if best >= 0 and rewards[best] > 0.0:
        for arm, row in rows.items():
            row[LAST] = float(arm == int(arms[best]))
    kept = list(rows.items())[-ARMS_MAX:]
    hashes = np.array([arm for arm, _ in kept], np.uint32)
    return hashes.tobytes() + np.array([row for _, row in kept], np.float32).tobytes()


def _read(memory: bytes) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    n = len(memory) // ENTRY_BYTES
    known = np.frombuffer(memory, np.uint32, n)
    return known, np.frombuffer(memory, np.float32, offset=4 * n).reshape(n, 4)


@njit(cache=True)
def recall_into(words: Any, arms: Any, out: Any) -> None:
    """`recall` of a memory's words, into out float32 [n, MEMORY]."""
    out[:] = 0.0
    if len(words) == 0:
        return
    total, n = 0.0, len(words) // ENTRY_WORDS
    known = words[:n]
    entries = words[n:].view(np.float32).reshape(n, ENTRY_WORDS - 1)
    for i in range(n):
        total += entries[i, SUCCESSES]
    even = 1.0 / len(arms)
    for a in range(len(arms)):
        successes = 0.0
        for i in range(n):
            if known[i] == arms[a]:
                out[a, 0] = entries[i, SURPRISE] / (entries[i, WEIGHT] + 1.0)
                out[a, 1] = entries[i, LAST]
                successes = entries[i, SUCCESSES]
        out[a, 2] = (successes + even) / (total + 1.0) - even
