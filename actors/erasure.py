"""Who was erased: what is older than an erasure never comes back, whichever way it comes.

A tombstone is the key hash of a person and a time, and nothing else. It lasts KEEP_S, longer than
late events travel and files of an import lie about; the settings bound how many there may be.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.events import to_seconds
from cluster.errors import RequestError

KEEP_S = 30 * 86400
_HALVES = Struct(">qq").unpack
Chunk = dict[str, NDArray[Any]]


class Tombstones:
    """Erased persons by key hash, oldest first. Time comes with what is logged, so replay is exact.

    count_max  tombstones at once
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._erased: dict[bytes, int] = {}
        self.unpurged_s = 0
        """When the first person was erased of whom files may still tell; 0 = nobody."""
        self.blocked = 0
        """Late events and imported rows that were kept out since the start."""

    def __len__(self) -> int:
        return len(self._erased)

    def check_room(self, key: bytes, now_s: int) -> None:
        """Raises RequestError (503) if no further person can be erased now."""
        if len(self._erased) < self._count_max or key in self._erased:
            return
        oldest_s = next(iter(self._erased.values()))
        if oldest_s >= now_s - KEEP_S:
            raise RequestError(
                503,
                "too many persons were erased in the last 30 days",
                "",
                str(len(self._erased)),
                f"erasures_max, which is {self._count_max}",
            )

    def add(self, key: bytes, now_s: int) -> None:
        """A person is erased. Two that lasted long enough leave for one that comes."""
        self._erased.pop(key, None)
        for old in list(islice(self._erased, 2)):
            if self._erased[old] < now_s - KEEP_S:
                del self._erased[old]
        self._erased[key] = now_s
        if self.unpurged_s == 0:
            self.unpurged_s = now_s

    @property
    def latest_s(self) -> int:
        """When the last person was erased; 0 = nobody was."""
        return next(reversed(self._erased.values()), 0)

    def get(self, key: bytes) -> int | None:
        """When a person was erased, None: not lately."""
        return self._erased.get(key)

    def entries(self) -> list[tuple[bytes, int]]:
        """All tombstones, oldest first."""
        return list(self._erased.items())

    def restore(self, entries: Iterable[tuple[bytes, int]]) -> None:
        """Take over what a snapshot holds; whoever stands in one is gone from the files before."""
        self._erased = dict(entries)
        self.unpurged_s = 0

    def check(
        self,
        key: bytes,
        sent_at: str | float | None,
        stamps: Iterable[tuple[str | float | None, int]],
    ) -> None:
        """Raises RequestError (410) if a message says that it is older than the erasure.

        stamps  (timestamp as it was given, seconds) of the message and of its events
        """
        erased_s = self._erased.get(key)
        if erased_s is None:
            return
        named = [time_s for stamp, time_s in stamps if stamp is not None]
        if sent_at is not None:
            named.append(int(to_seconds(sent_at, "sentAt")))
        if named and min(named) <= erased_s:
            self.blocked += 1
            raise RequestError(
                410,
                "the person was erased after this happened",
                "timestamp",
                str(min(named)),
                f"a time after {erased_s}",
            )

    def kept(self, chunk: Chunk) -> Chunk:
        """The rows of a warm start's chunk that are not of an erased person's time before.

        chunk  columns with key_hi, key_lo; with `time`, later rows of the person stay
        """
        if not self._erased:
            return chunk
        erased_hi = np.array([_HALVES(key)[0] for key in self._erased], np.int64)
        keep = np.ones(len(chunk["key_hi"]), np.bool_)
        for at in np.flatnonzero(np.isin(chunk["key_hi"], erased_hi)).tolist():
            halves = (int(chunk["key_hi"][at]), int(chunk["key_lo"][at]))
            key = b"".join(half.to_bytes(8, "big", signed=True) for half in halves)
            erased_s = self._erased.get(key)
            late = "time" not in chunk or int(chunk["time"][at]) <= (erased_s or 0)
            keep[at] = erased_s is None or not late
        if keep.all():
            return chunk
        self.blocked += int((~keep).sum())
        return {name: column[keep] for name, column in chunk.items()}

    def due(self, now_s: int, within_s: int) -> bool:
        """Whether files must be written anew now, so that the erased are gone from them in time.

        At half the time: the other half is for what may fail.
        """
        return 0 < self.unpurged_s <= now_s - within_s // 2
