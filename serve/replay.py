"""Sends messages at a rate and measures what comes back. Knows nothing of HTTP or files.

Its one rule: a person's messages go one after another, those of different people side by side,
and a message's latency counts from when it was due, so that falling behind shows.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

Message = dict[str, Any]

LANES = 64
LANE_QUEUE_MAX = 64
# Buckets grow by 2 %: a percentile is off by at most that much.
BUCKET_RATIO = 1.02
BUCKETS = 1100
_LOG_RATIO = math.log(BUCKET_RATIO)


class Histogram:
    """Latencies in microseconds, in BUCKETS logarithmic buckets from 1 us to 45 minutes.

    >>> h = Histogram()
    >>> for us in range(1, 1001): h.add(us)
    >>> abs(h.percentile(0.5) - 500) < 15
    True
    """

    def __init__(self) -> None:
        self.count = 0
        self._buckets = [0] * BUCKETS

    def add(self, latency_us: float) -> None:
        place = int(math.log(max(latency_us, 1.0)) / _LOG_RATIO)
        self._buckets[min(place, BUCKETS - 1)] += 1
        self.count += 1

    def percentile(self, share: float) -> float:
        """The latency in microseconds that `share` (0 to 1) of all stayed below; 0 if none."""
        left = share * self.count
        for place, count in enumerate(self._buckets):
            left -= count
            if count and left <= 0:
                return math.exp((place + 0.5) * _LOG_RATIO)
        return 0.0


@dataclass
class Tally:
    """What a replay has seen so far."""

    sent: int = 0
    duplicates: int = 0
    errors: int = 0
    started_s: float = 0.0
    stopped_s: float = 0.0
    latencies: Histogram = field(default_factory=Histogram)
    recent: Histogram = field(default_factory=Histogram)
    first_error: str = ""

    @property
    def per_second(self) -> float:
        return self.sent / max(self.stopped_s - self.started_s, 1e-9)


async def replay(
    messages: Iterable[Message],
    send: Callable[[Message], Awaitable[bool]],
    rate: float,
    tally: Tally,
    failures: tuple[type[Exception], ...],
) -> None:
    """Send `messages` at `rate` a second (0: as fast as answers come), counting into `tally`.

    send      answers whether the message was a duplicate; raises one of `failures` if it failed
    failures  are counted; any other exception ends the replay and is raised
    """
    queues: list[asyncio.Queue[tuple[float, Message] | None]] = [
        asyncio.Queue(LANE_QUEUE_MAX) for _ in range(LANES)
    ]
    tally.started_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for queue in queues:
            group.create_task(_lane(queue, send, tally, failures))
        for number, message in enumerate(messages):
            due = tally.started_s + number / rate if rate else 0.0
            wait = due - time.perf_counter()
            # Sleeping is coarse: what is due within a millisecond goes now.
            if wait > 0.001:
                await asyncio.sleep(wait)
            await queues[lane_of(message)].put((due, message))
        for queue in queues:
            await queue.put(None)
    tally.stopped_s = time.perf_counter()


def lane_of(message: Message) -> int:
    """The lane of a message: the same for all messages of one person."""
    person = message.get("userId") or message.get("anonymousId") or ""
    return crc32(str(person).encode()) % LANES


async def _lane(
    queue: asyncio.Queue[tuple[float, Message] | None],
    send: Callable[[Message], Awaitable[bool]],
    tally: Tally,
    failures: tuple[type[Exception], ...],
) -> None:
    while (entry := await queue.get()) is not None:
        due, message = entry
        begun = due or time.perf_counter()
        try:
            tally.duplicates += await send(message)
        except failures as error:
            tally.errors += 1
            tally.first_error = tally.first_error or str(error)
        now = time.perf_counter()
        tally.sent += 1
        tally.stopped_s = now
        tally.latencies.add((now - begun) * 1e6)
        tally.recent.add((now - begun) * 1e6)
