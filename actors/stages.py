"""Where time goes in the owner: histograms of queue, update and score, and plain counts."""

from __future__ import annotations

from typing import Any

# A bucket is a quarter of an octave: bounds 2**(i/4) nanoseconds would need a logarithm,
# so the top two bits below the leading one choose the quarter.
BUCKETS = 4 * 40


def bucket_of(ns: int) -> int:
    """Bucket of a duration; negative and zero fall into the first.

    >>> [bucket_of(n) for n in (0, 4, 5, 8, 1000)]
    [0, 8, 9, 12, 39]
    """
    if ns < 4:
        return 0
    octave = ns.bit_length() - 1
    return min((octave << 2) | (ns >> (octave - 2) & 3), BUCKETS - 1)


def upper_bound_ns(bucket: int) -> int:
    """The smallest duration that falls into a later bucket.

    >>> upper_bound_ns(bucket_of(1000)) > 1000
    True
    """
    octave, quarter = divmod(bucket + 1, 4)
    return (4 + quarter) << octave >> 2


class Stages:
    """Counts of one shard since its start. Histograms are lists, as lists count fastest."""

    def __init__(self) -> None:
        self.queue = [0] * BUCKETS
        self.update = [0] * BUCKETS
        self.score = [0] * BUCKETS
        self.queue_ns = 0
        self.update_ns = 0
        self.score_ns = 0
        self.requests = 0
        self.decides = 0
        self.duplicates = 0
        self.refused = 0
        self.degraded = 0
        self.quotes_missing = 0

    def record(self, queue_ns: int, update_ns: int, score_ns: int | None) -> None:
        """Count one request; score_ns is None if nothing was decided."""
        self.queue[bucket_of(queue_ns)] += 1
        self.update[bucket_of(update_ns)] += 1
        self.queue_ns += queue_ns
        self.update_ns += update_ns
        self.requests += 1
        if score_ns is not None:
            self.score[bucket_of(score_ns)] += 1
            self.score_ns += score_ns
            self.decides += 1

    def counters(self) -> dict[str, Any]:
        """All counts; a histogram is {"sumNs", "buckets": [[upper bound in ns, count], ...]}."""
        return {
            "requests": self.requests,
            "decides": self.decides,
            "duplicates": self.duplicates,
            "refused": self.refused,
            "degraded": self.degraded,
            "quotesMissing": self.quotes_missing,
            "stages": {
                "queue": histogram(self.queue, self.queue_ns),
                "update": histogram(self.update, self.update_ns),
                "score": histogram(self.score, self.score_ns),
            },
        }


def histogram(counts: list[int], sum_ns: int) -> dict[str, Any]:
    """{"sumNs", "buckets": [[upper bound in ns, count], ...]} of counts by `bucket_of`.

    Only the buckets that hold something.
    """
    filled = [[upper_bound_ns(i), count] for i, count in enumerate(counts) if count]
    return {"sumNs": sum_ns, "buckets": filled}
