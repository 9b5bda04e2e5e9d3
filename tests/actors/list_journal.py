"""A journal that keeps its records in memory, for a shard without a disk."""

from __future__ import annotations

from typing import Any


class ListJournal:
    """What a shard asks of a `Journal`; whatever is appended is at once durable."""

    has_room = True
    behind = False
    read_level = "disk"
    levels = ("memory", "disk")

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def append(self, record: bytes) -> int:
        self.records.append(record)
        return len(self.records)

    def rouse(self) -> None:
        pass

    def report(self) -> dict[str, Any]:
        return {}
