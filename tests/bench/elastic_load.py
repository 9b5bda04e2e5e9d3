"""Steady load with a memory: what failed, how long it took, and what became of every event.

Half of the callers go through HTTP and count each answer that is no success, as clients without
retries see them; the other half use the SDK and count what failed after its retries. Both write
lists that the history checker reads at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from serve.client import Client
from tests.bench.harness import Row, percentile
from tests.faults.load import FAILED, ITEM, Body, Load, Reply, Wire, http_wire

CALLERS = 8
"""Of each kind."""
QUIET_S = 8.0
"""After which what came before is over."""
AFTER_S = 18.0
"""What follows from a change: sources tell for some seconds where their range went, then go; ten
seconds after a spare process was used the next is started, and loads what it needs."""


class Seen:
    """Answers as they came: (when it was sent, seconds it took), and failures by what they were."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self.failed: Counter[str] = Counter()

    def watching(self, wire: Wire) -> Wire:
        """The same wire, with its calls counted."""
        return Wire(
            lambda body: self._call(wire.track(body)), lambda p: self._call(wire.profile(p))
        )

    async def _call(self, call: Awaitable[Reply]) -> Reply:
        started_s = time.perf_counter()
        try:
            reply = await call
        except FAILED as error:
            self.failed[type(error).__name__] += 1
            raise
        finally:
            self.times.append((started_s, time.perf_counter() - started_s))
        # Nobody has written to a list that is not there.
        if reply.status not in (200, 404):
            self.failed[str(reply.status)] += 1
        return reply

    def p99_ms(self, start_s: float, stop_s: float) -> float:
        found = self._between(start_s, stop_s)
        return percentile(found, 0.99) * 1000 if found else 0.0

    def longest_ms(self, start_s: float, stop_s: float) -> float:
        """A caller waits for its answer before it sends more: of a stop of everything, however
        long, percentiles see no more than one call of each."""
        return max(self._between(start_s, stop_s), default=0.0) * 1000

    def _between(self, start_s: float, stop_s: float) -> list[float]:
        return sorted(took for at, took in self.times if start_s <= at < stop_s)


@asynccontextmanager
async def sdk_wire(url: str, key: str) -> AsyncIterator[Wire]:
    """Through the SDK, retries included; straight to the owners if they can be reached."""
    async with Client(url, key) as client, http_wire(url, key) as plain:

        async def track(body: Body) -> Reply:
            answer = await client.track(
                body["event"],
                user_id=body["userId"],
                properties=body["properties"],
                message_id=body["messageId"],
            )
            return Reply(200, msgspec.json.encode(answer))

        yield Wire(track, plain.profile)


class Steady:
    """Both loads, between `start` and `stop`."""

    def __init__(self, url: str, key: str, rate: float, seed: int = 1) -> None:
        self.raw, self.sdk = Seen(), Seen()
        self._loads = [
            Load(self._wire(http_wire, self.raw, url, key), seed, CALLERS, rate / 2),
            Load(self._wire(sdk_wire, self.sdk, url, key), seed + 1, CALLERS, rate / 2, 10_000_000),
        ]

    @staticmethod
    def _wire(kind: Callable[[str, str], Any], seen: Seen, url: str, key: str) -> Callable[[], Any]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Wire]:
            async with kind(url, key) as wire:
                yield seen.watching(wire)

        return opened

    def start(self) -> None:
        for load in self._loads:
            load.__enter__()

    def stop(self) -> Row:
        """What came of everything."""
        for load in self._loads:
            load.stop()
        wrong = [violation.rule for load in self._loads for violation in load.check()]
        found = Counter(wrong)
        return {
            "requests": len(self.raw.times) + len(self.sdk.times),
            "failed": sum(self.sdk.failed.values()),
            "failed_first": sum(self.raw.failed.values()),
            "why": ",".join(sorted({*self.raw.failed, *self.sdk.failed})),
            "lost": found.pop("lost", 0),
            "doubled": found.pop("doubled", 0),
            "wrong": ",".join(sorted(found)),
        }

    def seen(self) -> Seen:
        """The answers of both."""
        both = Seen()
        both.times = self.raw.times + self.sdk.times
        return both


Change = Callable[[], Awaitable[Row]]


async def changed(
    name: str, url: str, key: str, rate: float, seconds: float, change: Change
) -> Row:
    """A row: steady load for `seconds`, the change, and load for AFTER_S after it.

    change     what it returns goes into the row; where the load itself is what leads to a change,
               `steady` tells when (perf_counter) there was that load and no change yet
    p99_ratio  p99 from its begin until what follows from it is over, over the p99 before;
               p99_ratio_change: until the change itself is over
    longest_ms the longest call from the change's begin until what follows from it is over
    """
    async with Client(url, key) as client:
        await client.put_items([{"id": ITEM}])
    # What the change before left behind is cleaned up: it is no part of what is steady.
    await asyncio.sleep(QUIET_S)
    load = Steady(url, key, rate)
    load.start()
    # Connections are made, and the first lists are there.
    await asyncio.sleep(1.0)
    began_s = time.perf_counter()
    await asyncio.sleep(seconds)
    changed_s = time.perf_counter()
    found = await change()
    settled_s = time.perf_counter()
    await asyncio.sleep(AFTER_S)
    told = await asyncio.to_thread(load.stop)
    if "steady" in found:
        began_s, changed_s = found.pop("steady")
    seen = load.seen()
    steady = seen.p99_ms(began_s, changed_s)
    during, after = (seen.p99_ms(changed_s, settled_s + more_s) for more_s in (0.0, AFTER_S))
    row: Row = {
        "arm": name,
        "connections": 2 * CALLERS,
        **told,
        "change_s": round(settled_s - changed_s, 2),
        "rps": round(rate),
        "p99_ms": round(steady, 1),
        "p99_ratio": round(after / steady, 2) if steady else 0.0,
        "p99_ratio_change": round(during / steady, 2) if steady else 0.0,
        "longest_ms": round(seen.longest_ms(changed_s, settled_s + AFTER_S)),
        **found,
    }
    print(row, flush=True)
    return row
