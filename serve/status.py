"""What shards, plan, nodes and reshapes are, as tables and lines for people. Pure."""

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
    profiles = sum(o["stats"]["profiles"] for o in answer["owners"] if o["stats"])
    down = sum(owner["stats"] is None for owner in answer["owners"])
    total = f"epoch {answer['epoch']}, {profiles:,} profiles, {len(rows) - 1} shards"
    return "\n".join([_table(rows), total + (f", {down} of them not answering" if down else "")])


def plan_text(answer: Mapping[str, Any]) -> str:
    """The answer of `GET /v1/plan`: a line per shard, then what to change and what can't be."""
    if not answer["shards"]:
        return "nothing is measured yet; ask again in ten seconds"
    header = ("shard", "node", "load", "CPU", "requests/s", "queue p99 us", "hottest person")
    rows = [header, *(_plan_row(shard) for shard in answer["shards"])]
    lines = [_table(rows)]
    for reshape in answer["reshapes"]:
        into = len(reshape["targets"])
        what = f"shard {', '.join(reshape['sources'])} -> {into} on "
        nodes = ", ".join(target["nodeId"][:8] for target in reshape["targets"])
        lines.append(f"{reshape['kind']}: {what}{nodes}: {reshape['why']}")
    lines += [f"can't be helped: {text}" for text in answer["blocked"]]
    if not answer["reshapes"]:
        lines.append("nothing is to be split, merged or moved")
    return "\n".join([*lines, f"CPUs wanted: {answer['cpusWanted']}"])


def _plan_row(shard: Mapping[str, Any]) -> tuple[str, ...]:
    hot = shard["hotKeys"]
    return (
        shard["shardId"],
        shard["nodeId"][:8],
        f"{shard['load']:.2f}",
        f"{shard['cpu']:.2f}",
        f"{shard['requestsPerSecond']:,.0f}",
        f"{shard['queueP99Us']:,.0f}",
        f"{hot[0]['share']:.0%} {hot[0]['keyHash'][:12]}" if hot else "",
    )


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


def nodes_text(nodes: Sequence[Mapping[str, Any]]) -> str:
    """One line per node: its size, and the shards and copies on it."""
    rows = [("node", "address", "CPUs", "memory", "shards", "copies", "")]
    for node in nodes:
        left = f"draining: {node['shardsLeft']} shards and {node['copiesLeft']} copies are left"
        rows.append(
            (
                node["nodeId"][:12],
                node["address"],
                f"{node['cpus']:g}",
                size_text(node["memoryBytes"]),
                ", ".join(node["shards"]) or "-",
                ", ".join(node["copies"]) or "-",
                left if node["draining"] else "",
            )
        )
    return _table(rows)


def reshape_text(reshape: Mapping[str, Any]) -> str:
    """A reshape in one line: what became of which shards, where, and how long that took.

    >>> target = {"shardId": "2", "start": "0", "stop": "8", "nodeId": "ab12cd34"}
    >>> reshape_text({"id": "r1", "kind": "move", "sources": ["0"], "targets": [target],
    ...     "step": "done", "reason": "", "startedAt": 0, "seconds": 2, "frozenSeconds": 0.04})
    'move r1: shard 0 -> 2 on ab12cd34: done in 2.0 s, requests held for 40 ms'
    """
    targets = ", ".join(
        f"{target['shardId']} on {target['nodeId'][:8]}" for target in reshape["targets"]
    )
    text = f"{reshape['kind']} {reshape['id']}: shard {', '.join(reshape['sources'])} -> {targets}"
    if reshape["step"] == "done":
        held_ms = reshape["frozenSeconds"] * 1000
        return f"{text}: done in {reshape['seconds']:.1f} s, requests held for {held_ms:.0f} ms"
    reason = f": {reshape['reason']}" if reshape["reason"] else ""
    return f"{text}: {reshape['step']}{reason}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns as wide as their widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
