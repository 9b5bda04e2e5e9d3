"""Where a key lives: the 128-bit hash of a person and the ranges of its top 64 bits.

The hash is BLAKE2b (RFC 7693): a visitor chooses their own id, so an id that lands
on another person's profile must be infeasible to find, which fast non-cryptographic
hashes do not promise.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from cluster.errors import RequestError

HASH_SPACE = 1 << 64
ID_BYTES_MAX = 256

USER = "u"
ANONYMOUS = "a"


def key_bytes(tenant: str, id_type: str, person_id: str) -> bytes:
    """The bytes that are hashed: tenant, id type and id, parted by NUL.

    Raises RequestError if the id is empty, longer than ID_BYTES_MAX, or holds a NUL or half a
    surrogate pair, which has no UTF-8.
    """
    try:
        raw = person_id.encode()
    except UnicodeEncodeError:
        raw = b""
    if not raw or len(raw) > ID_BYTES_MAX or 0 in raw:
        field = "userId" if id_type == USER else "anonymousId"
        raise RequestError(
            422,
            "the id is not usable",
            field,
            repr(person_id),
            f"1 to {ID_BYTES_MAX} bytes of UTF-8 without NUL",
        )
    return b"%b\0%b\0%b" % (tenant.encode(), id_type.encode(), raw)


def key_hash(tenant: str, id_type: str, person_id: str) -> bytes:
    """128-bit BLAKE2b of a person's key, 16 bytes.

    >>> key_hash("default", "u", "ada").hex()
    '22258285cc49efa5af30b211fcbdb74e'
    """
    return blake2b(key_bytes(tenant, id_type, person_id), digest_size=16).digest()


def place(hashed: bytes) -> int:
    """The top 64 bits of a key hash, which decide the owner.

    >>> place(bytes(7) + b"\\x01" + bytes(8))
    1
    """
    return int.from_bytes(hashed[:8], "big")


class KeyRange(msgspec.Struct, frozen=True, order=True):
    """Half-open range [start, stop) of the 64-bit hash space; stop may be HASH_SPACE.

    `start` and `stop` travel as hexadecimal text, since JSON has no 64-bit integers.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= HASH_SPACE:
            raise ValueError(
                f"range must satisfy 0 <= start < stop <= 2**64, got [{self.start}, {self.stop})"
            )

    def __contains__(self, position: int) -> bool:
        return self.start <= position < self.stop


def split_evenly(count: int) -> list[KeyRange]:
    """`count` ranges of equal size that cover the whole hash space.

    >>> [r.start >> 62 for r in split_evenly(4)]
    [0, 1, 2, 3]
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    edges = [HASH_SPACE * i // count for i in range(count + 1)]
    return [KeyRange(edges[i], edges[i + 1]) for i in range(count)]
