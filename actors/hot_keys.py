"""Whose requests a shard gets: a sliding sample of key hashes, for hot keys and for where to cut.

One structure for both. One request in `GAP` on average is drawn, at random distances so that no
rhythm of callers is missed, and the last `KEPT` draws are kept: a key with the share p of all
requests stands there p * KEPT times, give or take sqrt(p * (1 - p) * KEPT), and what is no longer
hot leaves by itself. A sketch of heavy hitters (Metwally et al. 2005, SpaceSaving) would name
rarer keys, which no plan needs, and would have to be aged.
"""

from __future__ import annotations

import random
from collections import Counter
from time import process_time
from typing import Any

GAP = 32
KEPT = 1024
SHARE_MIN = 0.02
"""A key is hot from this share of a shard's requests; below, chance alone names others."""
HOT_MAX = 10
CUTS = 64
"""Positions that tell where the load of a shard lies."""


class KeySample:
    """Draws from the requests of one shard. Memory: KEPT key hashes."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._drawn: list[bytes] = []
        self._at = 0
        self._left = 0

    def see(self, key: bytes) -> None:
        """Take note of a request for a 16-byte key hash."""
        self._left -= 1
        if self._left >= 0:
            return
        self._left = self._rng.randrange(2 * GAP - 1)
        if len(self._drawn) < KEPT:
            self._drawn.append(key)
        else:
            self._drawn[self._at] = key
            self._at = (self._at + 1) % KEPT

    def __len__(self) -> int:
        return len(self._drawn)

    def hot_keys(self) -> list[tuple[str, float]]:
        """(key hash as hexadecimal text, share of the requests), hottest first."""
        total = len(self._drawn)
        if total < KEPT // 4:
            return []
        counts = Counter(self._drawn).most_common(HOT_MAX)
        return [(k.hex(), count / total) for k, count in counts if count >= SHARE_MIN * total]

    def cuts(self) -> list[str]:
        """CUTS positions as hexadecimal text, ascending, with equal load between them."""
        total = len(self._drawn)
        if total < CUTS:
            return []
        ordered = sorted(key[:8] for key in self._drawn)
        return [ordered[(2 * i + 1) * total // (2 * CUTS)].hex() for i in range(CUTS)]

    def report(self) -> dict[str, Any]:
        """What the plan reads of a shard, for its stats. CPU is of the whole process."""
        return {
            "cpuSeconds": process_time(),
            "loadCuts": self.cuts(),
            "hotKeys": [{"keyHash": key, "share": round(s, 4)} for key, s in self.hot_keys()],
        }
