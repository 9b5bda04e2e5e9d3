"""Which shard owns which range, at which epoch. Pure and immutable.

A map covers the whole hash space without gap or overlap; anything else can't be built.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.keys import HASH_SPACE, KeyRange


class Owner(msgspec.Struct, frozen=True, rename="camel"):
    """One shard and where it listens.

    start, stop   the range as hexadecimal text (JSON has no 64-bit integers)
    """

    shard_id: str
    host: str
    port: Annotated[int, Meta(ge=0, le=65535)]
    start: str
    stop: str
    node_id: str = ""

    @property
    def range(self) -> KeyRange:
        return KeyRange(int(self.start, 16), int(self.stop, 16))

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port


def owner(shard_id: str, key_range: KeyRange, host: str, port: int, node_id: str = "") -> Owner:
    """An `Owner` from a KeyRange."""
    return Owner(shard_id, host, port, f"{key_range.start:x}", f"{key_range.stop:x}", node_id)


class PartitionMap(msgspec.Struct, frozen=True):
    """Owners sorted by range start, and the epoch of this assignment.

    >>> two = [owner("a", KeyRange(0, 8), "h", 1), owner("b", KeyRange(8, HASH_SPACE), "h", 2)]
    >>> PartitionMap(1, tuple(two)).owner_of(8).shard_id
    'b'
    """

    epoch: int
    owners: tuple[Owner, ...]
    _starts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {self.epoch}")
        expected = 0
        for entry in self.owners:
            if entry.range.start != expected:
                raise ValueError(
                    f"ranges must cover the hash space without gap or overlap: "
                    f"{entry.shard_id} starts at {entry.range.start:x}, wanted {expected:x}"
                )
            expected = entry.range.stop
        if expected != HASH_SPACE:
            raise ValueError(f"ranges must end at {HASH_SPACE:x}, got {expected:x}")
        msgspec.structs.force_setattr(
            self, "_starts", tuple(entry.range.start for entry in self.owners)
        )

    def owner_of(self, position: int) -> Owner:
        """The owner of a position, an integer in [0, 2**64)."""
        return self.owners[bisect_right(self._starts, position) - 1]


def encode_map(partition_map: PartitionMap) -> bytes:
    """The map as JSON, for `GET /v1/shards` and the hop."""
    return msgspec.json.encode({"epoch": partition_map.epoch, "owners": partition_map.owners})


def decode_map(data: bytes) -> PartitionMap:
    """The inverse of `encode_map`. Raises ValueError (msgspec's errors are ValueErrors)."""
    return msgspec.json.decode(data, type=PartitionMap)
