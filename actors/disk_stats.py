"""How the disk under a log behaves: counted as its batches become durable."""

from __future__ import annotations

from typing import Any

from actors.stages import BUCKETS, bucket_of, histogram


class DiskStats:
    """Counts of one log since its start."""

    def __init__(self) -> None:
        self.batches = 0
        self.records = 0
        self.bytes = 0
        self.sync_ns = 0
        self.sync_max_ns = 0
        self._syncs = [0] * BUCKETS

    def wrote(self, records: int, size: int, sync_ns: int) -> None:
        """One batch is durable."""
        self.batches += 1
        self.records += records
        self.bytes += size
        self.sync_ns += sync_ns
        self.sync_max_ns = max(self.sync_max_ns, sync_ns)
        self._syncs[bucket_of(sync_ns)] += 1

    def report(self) -> dict[str, Any]:
        """All counts by name; the histogram as in `stages`."""
        return {
            "batches": self.batches,
            "records": self.records,
            "bytes": self.bytes,
            "syncMaxMs": self.sync_max_ns / 1e6,
            "sync": histogram(self._syncs, self.sync_ns),
        }
