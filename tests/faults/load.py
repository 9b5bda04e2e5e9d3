"""Callers that append and read under faults, and write down what they saw.

Every caller repeats what failed with the same messageId until it is answered, gives up after
`PATIENCE_S`, and some give up at the first failure: what became of those is unknown.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec

from cluster.errors import OnehopError
from tests.history import Append, Call, Outcome, Read, Violation, check

LIST_MAX = 40
"""Appends to one list; a profile keeps the last 50 events."""
PATIENCE_S = 60.0
ATTEMPT_S = 10.0
PAUSE_S = 0.05
ITEM = "counted"
FAILED = (aiohttp.ClientError, OSError, TimeoutError, OnehopError)
"""Failures after which nobody knows whether the request was done."""

Body = dict[str, Any]


class Reply(NamedTuple):
    status: int
    body: bytes


class Wire(NamedTuple):
    """A way to the system: append one message, read one person's profile."""

    track: Callable[[Body], Awaitable[Reply]]
    profile: Callable[[str], Awaitable[Reply]]


class Profile(msgspec.Struct, rename="camel"):
    """What a reader looks at: each event's value is an appended number."""

    events_total: int
    events: list[Event]


class Event(msgspec.Struct):
    value: float


_profile = msgspec.json.Decoder(Profile)
_track = msgspec.json.Decoder(Body)


@asynccontextmanager
async def http_wire(url: str, key: str) -> AsyncIterator[Wire]:
    """Over the public API."""
    timeout = aiohttp.ClientTimeout(total=ATTEMPT_S)
    headers = {"X-API-Key": key}
    async with aiohttp.ClientSession(url, timeout=timeout, headers=headers) as session:

        async def ask(method: str, path: str, body: Body | None = None) -> Reply:
            async with session.request(method, path, json=body) as answer:
                return Reply(answer.status, await answer.read())

        yield Wire(
            lambda body: ask("POST", "/v1/track", body),
            lambda person: ask("GET", f"/v1/profiles/{person}"),
        )


class Load:
    """Callers in a thread of their own, until `stop`; a context manager that stops.

    callers     at work at once; two of them share each list
    rate        calls per second of all callers together, at most
    durability  asked for with every append; "" = what the server does by itself
    """

    def __init__(
        self,
        wire: Callable[[], Any],
        seed: int = 1,
        callers: int = 8,
        rate: float = 120.0,
        first_number: int = 0,
    ) -> None:
        self.history: list[Call] = []
        self.wrong: list[Violation] = []
        """What single answers already prove."""
        self.name = secrets.token_hex(4)
        self._wire = wire
        self._seed = seed
        self._callers = callers
        self._pause_s = callers / rate
        self._number = first_number
        self._lists: dict[int, list[Any]] = {}
        self._stopping = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        print(f"load {self.name}, seed {self._seed}")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let every caller finish its call; raises what went wrong with the load itself."""
        self._stopping.set()
        self._thread.join(PATIENCE_S + ATTEMPT_S)
        assert not self._thread.is_alive(), "callers do not end"
        if self._failed is not None:
            raise self._failed

    def answered(self, at: int = 0, began_ns: int = 0) -> int:
        """How many calls from the `at`th on, that began later than `began_ns`, were answered."""
        return sum(
            1
            for call in self.history[at:]
            if call.invoked_ns > began_ns and getattr(call, "outcome", "ok") == "ok"
        )

    def wait_answers(self, count: int, timeout_s: float = PATIENCE_S) -> float:
        """Wait for `count` answers to calls that begin from now on; returns seconds till then."""
        began_s, began_ns, at = time.monotonic(), time.monotonic_ns(), len(self.history)
        while True:
            fresh = self.answered(at, began_ns)
            if fresh >= count:
                return time.monotonic() - began_s
            if time.monotonic() > began_s + timeout_s or not self._thread.is_alive():
                raise TimeoutError(f"{fresh} of {count} answers after {timeout_s} s")
            time.sleep(0.02)

    def longest_s(self, since_ns: int) -> float:
        """The longest call that returned after `since_ns`."""
        took = [c.returned_ns - c.invoked_ns for c in self.history if c.returned_ns > since_ns]
        return max(took, default=0) / 1e9

    def acknowledged(self) -> int:
        return sum(1 for c in self.history if isinstance(c, Append) and c.outcome == "ok")

    def final(self) -> dict[str, list[int]]:
        """All lists as they are now."""
        return asyncio.run(self._read_all())

    def check(self) -> list[Violation]:
        """Every contradiction between what was seen and what is there now."""
        return self.wrong + check(self.history, self.final())

    def _run(self) -> None:
        try:
            asyncio.run(self._call_all())
        except BaseException as error:
            self._failed = error

    async def _call_all(self) -> None:
        async with self._wire() as wire:
            await asyncio.gather(*(self._caller(wire, n) for n in range(self._callers)))

    async def _caller(self, wire: Wire, client: int) -> None:
        generator = random.Random(f"{self._seed}/{client}")
        while not self._stopping.is_set():
            key = self._list(client // 2)
            if generator.random() < 0.2:
                await self._read(wire, client, key)
            else:
                await self._append(wire, client, key, generator)
            await asyncio.sleep(self._pause_s * 2 * generator.random())

    def _list(self, pair: int) -> str:
        """The list that a pair of callers writes to at this moment."""
        name, left = self._lists.get(pair, ("", 0))
        if not left:
            name, left = f"{self.name}-{pair}-{self._number}", LIST_MAX
        self._lists[pair] = [name, left]
        return str(name)

    async def _append(self, wire: Wire, client: int, key: str, generator: random.Random) -> None:
        self._lists[client // 2][1] -= 1
        self._number += 1
        number = self._number
        properties = {"itemId": ITEM, "value": number}
        body: Body = {"userId": key, "messageId": f"{self.name}-{number}", "event": "Item Viewed"}
        body |= {"properties": properties}
        patience_s = 0.0 if generator.random() < 0.1 else PATIENCE_S
        invoked_ns = time.monotonic_ns()
        outcome, answer = await self._until_done(wire, body, invoked_ns, patience_s)
        position = 0 if answer is None else answer["profileVersion"]
        returned_ns = time.monotonic_ns()
        self.history.append(Append(client, key, number, invoked_ns, returned_ns, outcome, position))
        if answer is not None and generator.random() < 0.05:
            await self._repeat(wire, key, body, answer)

    async def _until_done(
        self, wire: Wire, body: Body, invoked_ns: int, patience_s: float
    ) -> tuple[Outcome, Any]:
        """What became of an append, and the answer if there was one."""
        maybe_done = False
        while True:
            try:
                status, answer = await wire.track(body)
            except FAILED:
                maybe_done = True
            else:
                if status == 200:
                    return "ok", _track.decode(answer)
                if status not in (429, 500, 502, 503, 504):
                    detail = f"{body} got {status} {answer!r}"
                    self.wrong.append(Violation("refused", body["userId"], detail))
                    return ("unknown" if maybe_done else "fail"), None
                maybe_done = maybe_done or status != 429
            if time.monotonic_ns() - invoked_ns > patience_s * 1e9:
                return ("unknown" if maybe_done else "fail"), None
            await asyncio.sleep(PAUSE_S)

    async def _repeat(self, wire: Wire, key: str, body: Body, first: Any) -> None:
        """A repeat must get the first answer, whatever happened in between."""
        _, again = await self._until_done(wire, body, time.monotonic_ns(), PATIENCE_S)
        if again is not None and again != first | {"duplicate": True}:
            self.wrong.append(Violation("answer", key, f"{body}: first {first}, then {again}"))

    async def _read(self, wire: Wire, client: int, key: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            invoked_ns = time.monotonic_ns()
            numbers = await self._numbers(wire, key)
            if numbers is not None:
                read = Read(client, key, invoked_ns, time.monotonic_ns(), numbers)
                self.history.append(read)
                return
            await asyncio.sleep(PAUSE_S)

    async def _numbers(self, wire: Wire, key: str) -> list[int] | None:
        """The list as it is read now; None if nobody answered."""
        try:
            status, answer = await wire.profile(key)
        except FAILED:
            return None
        if status == 404:
            return []
        if status != 200:
            return None
        profile = _profile.decode(answer)
        # A profile tells the latest first.
        numbers = [int(event.value) for event in reversed(profile.events)]
        if profile.events_total != len(numbers):
            detail = f"{profile.events_total} events are counted, {numbers} are there"
            self.wrong.append(Violation("count", key, detail))
        return numbers

    async def _read_all(self) -> dict[str, list[int]]:
        keys = iter(sorted({call.key for call in self.history}))
        found: dict[str, list[int]] = {}

        async def reader(wire: Wire) -> None:
            for key in keys:
                deadline = time.monotonic() + PATIENCE_S
                while (numbers := await self._numbers(wire, key)) is None:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{key} can't be read")
                    await asyncio.sleep(PAUSE_S)
                found[key] = numbers

        async with self._wire() as wire:
            await asyncio.gather(*(reader(wire) for _ in range(self._callers)))
        return found
