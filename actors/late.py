"""A message that comes so late that nobody can tell whether it came before.

Ids are remembered for a while. A message can't have come before it was made, so one that was made
within that while is a repeat exactly if its id is known. Of an older one nobody can say: it is
refused, not counted a second time in silence. Without a messageId there is no such promise.
"""

from __future__ import annotations

from typing import Protocol

from actors.events import to_seconds
from actors.recent import DedupeWindow
from actors.state import ShardState
from cluster.errors import RequestError


class Dated(Protocol):
    """What a message says of itself and of its time."""

    @property
    def message_id(self) -> str | None: ...

    @property
    def sent_at(self) -> str | float | None: ...

    @property
    def timestamp(self) -> str | float | None: ...


def check_time(
    state: ShardState,
    key: bytes,
    message: Dated,
    stamps: list[tuple[str | float | None, int]],
    now_s: float,
) -> None:
    """Raises RequestError if a message may be a repeat, or is older than its person's erasure.

    stamps  of its events: (timestamp as it was given, seconds)
    """
    if message.message_id is not None:
        times_s = [time_s for _, time_s in stamps]
        check_age(state.dedupe, message.sent_at, message.timestamp, times_s, now_s)
    if state.tombstones.get(key) is not None:
        stamp = message.timestamp
        own = () if stamp is None else ((stamp, int(to_seconds(stamp, "timestamp"))),)
        state.tombstones.check(key, message.sent_at, [*stamps, *own])


def check_age(
    dedupe: DedupeWindow,
    sent_at: str | float | None,
    stamp: str | float | None,
    times_s: list[int],
    now_s: float,
) -> None:
    """Raises RequestError (422) if a message with an id was made before ids are known.

    sent_at, stamp  `sentAt` and `timestamp` of the message
    times_s         when its events happened; without any of the three it is made now
    """
    if sent_at is not None:
        # It goes before the times of events, which it sets right.
        made_s, field = to_seconds(sent_at, "sentAt"), "sentAt"
    else:
        named = [*times_s, *([] if stamp is None else [to_seconds(stamp, "timestamp")])]
        made_s, field = max(named, default=now_s), "timestamp"
    floor_s = dedupe.floor_s(int(now_s))
    if made_s <= floor_s:
        raise RequestError(
            422,
            "the message is so old that its messageId may be forgotten, so it may be a repeat",
            field,
            f"{now_s - made_s:.0f} s ago",
            f"less than {now_s - floor_s:.0f} s ago, or no messageId",
        )
