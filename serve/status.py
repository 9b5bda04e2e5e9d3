"""The answer of `GET /v1/shards` as a table for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.keys import HASH_SPACE

STAGES = ("queue", "update", "score")
HEADER = (
    "shard",
    "address",
    "keys",
    "profiles",
    "items",
    "memory",
    "events",
    "decisions",
    *(f"{stage} p50/p99" for stage in STAGES),
)


def shards_table(answer: Mapping[str, Any]) -> str:
    """One line per shard: its share of the keys, what it holds, microseconds by stage."""
    rows = [HEADER, *(_row(owner) for owner in answer["owners"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    profiles = sum(o["stats"]["profiles"] for o in answer["owners"] if o["stats"])
    down = sum(owner["stats"] is None for owner in answer["owners"])
    total = f"epoch {answer['epoch']}, {profiles:,} profiles, {len(rows) - 1} shards"
    return "\n".join([*lines, total + (f", {down} of them not answering" if down else "")])


def _row(owner: Mapping[str, Any]) -> tuple[str, ...]:
    share = (int(owner["stop"], 16) - int(owner["start"], 16)) / HASH_SPACE
    known = (owner["shardId"], f"{owner['host']}:{owner['port']}", f"{share:.0%}")
    stats = owner["stats"]
    if stats is None:
        return (*known, "down", *[""] * (len(HEADER) - 4))
    return (
        *known,
        f"{stats['profiles']:,}",
        f"{stats['items']:,}",
        size_text(stats["profileBytes"] + stats["modelBytes"]),
        f"{stats['events']:,}",
        f"{stats['decides']:,}",
        *(_latency(stats["stages"][stage]["buckets"]) for stage in STAGES),
    )


def _latency(buckets: Sequence[tuple[int, int]]) -> str:
    if not buckets:
        return "-"
    return "/".join(f"{percentile_ns(buckets, share) / 1e3:.0f}" for share in (0.5, 0.99)) + " us"


def percentile_ns(buckets: Sequence[tuple[int, int]], share: float) -> int:
    """The upper bound of the bucket in which `share` (0 to 1) of the observations are reached.

    buckets  pairs of upper bound in ns and count, ascending

    >>> percentile_ns([(10, 5), (100, 4), (400, 1)], 0.9)
    100
    """
    left = share * sum(count for _, count in buckets)
    for bound, count in buckets:
        left -= count
        if left <= 0:
            return bound
    return buckets[-1][0]


def size_text(size: float) -> str:
    """
    >>> size_text(512), size_text(5 << 20)
    ('512 B', '5.0 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"
