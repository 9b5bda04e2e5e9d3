"""What documents of several surfaces have in common: caps, targets, shares of people by hash."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated

from msgspec import Meta

from actors.ledger import Count, Ledger, OpenLedger
from actors.messages import Strict

Text = Annotated[str, Meta(max_length=1024)]
Seconds = Annotated[int, Meta(ge=1, le=366 * 86_400)]
Traits = Mapping[str, str | float | bool | None]


class Cap(Strict):
    """At most `count` times per person within `window_s`, from the first time on."""

    count: Annotated[int, Meta(ge=0, le=1_000_000)]
    window_s: Seconds


def capped(cap: Cap, ledger: Ledger, name: str, now_s: int) -> bool:
    """Whether the person has had as many as the cap allows."""
    counted = ledger.caps.get(name)
    if counted is None or counted.since_s + cap.window_s <= now_s:
        return cap.count == 0
    return counted.count >= cap.count


def count_up(cap: Cap, ledger: OpenLedger, name: str, now_s: int) -> None:
    """Count one more towards a cap."""
    caps = ledger.change().caps
    counted = caps.get(name)
    if counted is None or counted.since_s + cap.window_s <= now_s:
        caps[name] = Count(now_s, cap.window_s, 1)
    else:
        counted.count += 1


def share_of(salt: str, key: bytes) -> float:
    """A number in [0, 1) that stays the same for a person and a salt, and tells nothing of others.

    >>> share_of("a", b"k" * 16) == share_of("a", b"k" * 16) != share_of("b", b"k" * 16)
    True
    """
    digest = blake2b(salt.encode() + b"\x00" + key, digest_size=8).digest()
    # 53 bits: all that a float can tell apart.
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
