"""What kinds of events there are, and when an event happened. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from cluster.errors import RequestError

OTHER = 0
VIEWED = 1
CLICKED = 2
ADDED = 3
PURCHASED = 4
IMPRESSION = 5
SEARCHED = 6
SCROLLED = 7
DWELLED = 8
PAGE = 9
LIKED = 10
REMOVED = 11

NAMES = (
    "Other",
    "Item Viewed",
    "Item Clicked",
    "Item Added",
    "Item Purchased",
    "Impression",
    "Searched",
    "Scrolled",
    "Dwelled",
    "Page Viewed",
    "Item Liked",
    "Item Removed",
)

# Names of Segment's e-commerce spec and of common click logs.
ALIASES = {
    "Product Viewed": VIEWED,
    "Product Clicked": CLICKED,
    "Product Added": ADDED,
    "Product Added to Wishlist": LIKED,
    "Product Removed": REMOVED,
    "Order Completed": PURCHASED,
    "Products Searched": SEARCHED,
    "view": VIEWED,
    "click": CLICKED,
    "addtocart": ADDED,
    "purchase": PURCHASED,
    "rating": LIKED,
    "pv": VIEWED,
    "fav": LIKED,
    "cart": ADDED,
    "buy": PURCHASED,
}

TYPES: dict[str, int] = {name: number for number, name in enumerate(NAMES)} | ALIASES

# How much an event says about taste, 0 = nothing; indexed by type, 64 entries. Views are the unit.
WEIGHTS = tuple([1.0, 1.0, 1.0, 3.0, 5.0, 0.0, 0.0, 0.0, 1.0, 1.0, 3.0, 0.0] + [1.0] * 52)

CUSTOM_FIRST = len(NAMES)
TYPES_MAX = 64

TIME_MIN_S = 946_684_800  # 2000-01-01; nothing older comes from a web page
MS_FROM = 100_000_000_000  # a number above is milliseconds: as seconds it would be the year 5138


class EventTypes:
    """Numbers of event names, for one tenant on one shard. Past TYPES_MAX a name is Other."""

    def __init__(self) -> None:
        self._numbers = dict(TYPES)
        self.names = list(NAMES)
        self.on_new: Callable[[str], None] = lambda name: None
        """Told of every name that gets a number."""

    def number(self, name: str) -> int:
        """The number of a name, given when the name is first seen."""
        number = self._numbers.get(name)
        if number is None:
            if len(self.names) == TYPES_MAX:
                return OTHER
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
            self.on_new(name)
        return number

    def find(self, name: str) -> int:
        """The number of a name, -1 if it has none."""
        return self._numbers.get(name, -1)


def enters_ring(event_type: int, item: int) -> bool:
    """Whether an event is one of the person's last events: it has an item that was acted on."""
    return item >= 0 and event_type != IMPRESSION


def to_seconds(stamp: str | float, field: str) -> float:
    """Seconds since 1970 of an ISO 8601 text or a number in milliseconds (or seconds).

    >>> to_seconds("2026-01-01T00:00:00Z", "timestamp")
    1767225600.0
    """
    if not isinstance(stamp, str):
        return stamp / 1000.0 if abs(stamp) >= MS_FROM else float(stamp)
    try:
        parsed = datetime.fromisoformat(stamp)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise RequestError(
            422, "not a time", field, repr(stamp), "ISO 8601 or milliseconds since 1970"
        ) from None


def event_time(
    stamp: str | float | None, sent_at: str | float | None, now_s: float, future_s: int, field: str
) -> int:
    """When an event happened, in whole seconds; `now_s` if it does not say.

    With `sentAt` the client's clock is set right by the difference to ours (Segment's rule).
    Raises RequestError for a time before 2000 or more than `future_s` ahead.
    """
    if stamp is None:
        return int(now_s)
    at = to_seconds(stamp, field)
    if sent_at is not None:
        at += now_s - to_seconds(sent_at, "sentAt")
    if not TIME_MIN_S <= at <= now_s + future_s:
        raise RequestError(
            422,
            "the time is out of bounds",
            field,
            repr(stamp),
            f"2000-01-01 to {future_s} s from now",
        )
    return int(at)
