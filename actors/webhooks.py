"""Sends what is in the outbox of a shard: attempts, retries, circuit breakers.

A message is tried only once its record is durable, and what became of it is a record too. Nothing
here is state that must survive: after a restart every pending message is simply due.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections import deque
from errno import EACCES
from ipaddress import ip_address
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from actors.outbox import Message, Step
from actors.webhook_rules import Webhook, is_public, signed_headers

LOG = logging.getLogger("onehop.actors")

IN_FLIGHT_MAX = 64
LANE_MAX = 64
TAKEN_MAX = 256
PUT_OFF_S = (1.0, 5.0)
UNSETTLED_S = 60.0
ANSWER_BYTES_MAX = 4096
LOOK_S = 0.5
RETRY_AFTER_S_MAX = 3600.0
_GONE_STATUS = 410


class Owner(Protocol):
    """What the sender needs of its shard."""

    def now(self) -> float: ...

    def webhook(self, tenant: str, webhook_id: str) -> Webhook | None: ...

    def take_message(self) -> Message | None:
        """The next message to a webhook that is due and not expired."""

    def put_off(self, message_id: str, at_s: float) -> None:
        """A message that was taken is not tried before `at_s`."""

    def settle(self, steps: list[Step]) -> None:
        """Log and apply what became of messages."""

    async def durable(self) -> None:
        """Returns once all that was changed by now is."""


class Outcome(NamedTuple):
    """Of one attempt. status 0: there was no answer. retry_after_s: what the receiver asks for."""

    status: int
    error: str
    retry_after_s: float = 0.0

    @property
    def delivered(self) -> bool:
        return 200 <= self.status < 300


class Breaker:
    """Of one webhook: `open_after` failures in a row stop attempts for `open_s`; then one probe.

    state        attempt?   success    failure
    closed       yes        closed     closed, the last of `open_after` in a row: open
    open         no
    open, later  one        closed     open
    """

    def __init__(self) -> None:
        self.failures = 0
        self.open_until_s = 0.0
        self.probing = False

    def may_try(self, now_s: float) -> bool:
        if not self.open_until_s:
            return True
        return now_s >= self.open_until_s and not self.probing

    def begin(self) -> None:
        """An attempt begins; when open, it is the probe."""
        self.probing = bool(self.open_until_s)

    def succeeded(self) -> None:
        self.failures, self.open_until_s, self.probing = 0, 0.0, False

    def failed(self, webhook: Webhook, now_s: float) -> None:
        self.failures += 1
        # Attempts that began before it opened count no second time.
        if self.probing or (not self.open_until_s and self.failures >= webhook.open_after):
            self.open_until_s = now_s + webhook.open_s
        self.probing = False


class _Lane:
    """One webhook of one tenant: who waits, how many are under way."""

    def __init__(self) -> None:
        self.ready: deque[Message] = deque()
        self.in_flight = 0
        self.breaker = Breaker()


class Sender:
    """Sends a shard's messages until it is cancelled.

    allow_private  whether receivers may have addresses that are not public
    """

    def __init__(self, owner: Owner, allow_private: bool, rng: random.Random | None = None) -> None:
        self._owner = owner
        self._allow_private = allow_private
        self._rng = rng or random.Random()
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self.attempts = 0
        self.failures = 0

    @property
    def open_breakers(self) -> int:
        return sum(lane.breaker.open_until_s > 0 for lane in self._lanes.values())

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    async def run(self) -> None:
        """Send what is due, as it becomes due. Never returns."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(
            limit=IN_FLIGHT_MAX, resolver=_Resolver(self._allow_private), ttl_dns_cache=30
        )
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            try:
                while True:
                    if await self._round(session) == TAKEN_MAX:
                        await asyncio.sleep(0)
                        continue
                    self._wake.clear()
                    try:
                        async with asyncio.timeout(LOOK_S):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
            finally:
                for task in self._tasks:
                    task.cancel()

    async def _round(self, session: aiohttp.ClientSession) -> int:
        """Take what is due, and start what may be started. Returns how many were taken."""
        taken = fresh = 0
        while taken < TAKEN_MAX and (message := self._owner.take_message()) is not None:
            taken += 1
            lane = self._lanes.setdefault((message.tenant, message.webhook), _Lane())
            if len(lane.ready) < LANE_MAX:
                lane.ready.append(message)
                fresh += 1
            else:
                # A slow receiver's messages must not stand in the way of the others'.
                at_s = self._owner.now() + self._rng.uniform(*PUT_OFF_S)
                self._owner.put_off(message.message_id, at_s)
        if fresh:
            # What caused the messages must not be lost after they were sent.
            await self._owner.durable()
        for (tenant, webhook_id), lane in list(self._lanes.items()):
            webhook = self._owner.webhook(tenant, webhook_id)
            if webhook is None:
                self._drop(lane)
            else:
                self._start(session, lane, webhook)
            idle = not (lane.ready or lane.in_flight)
            if idle and (webhook is None or not lane.breaker.failures):
                del self._lanes[tenant, webhook_id]
        return taken

    def _drop(self, lane: _Lane) -> None:
        """The webhook was deleted: what it was to get are dead letters."""
        steps = [Step(m.message_id, "failed", error="there is no such webhook") for m in lane.ready]
        lane.ready.clear()
        if steps:
            self._owner.settle(steps)

    def _start(self, session: aiohttp.ClientSession, lane: _Lane, webhook: Webhook) -> None:
        now_s = self._owner.now()
        while (
            lane.ready and len(self._tasks) < IN_FLIGHT_MAX and lane.in_flight < webhook.concurrency
        ):
            if not lane.breaker.may_try(now_s):
                # They would fill the queue in which others' messages wait.
                until_s = max(lane.breaker.open_until_s, now_s + PUT_OFF_S[0])
                for message in lane.ready:
                    self._owner.put_off(message.message_id, until_s)
                lane.ready.clear()
                return
            message = lane.ready.popleft()
            lane.in_flight += 1
            lane.breaker.begin()
            task = asyncio.create_task(self._attempt(session, lane, webhook, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _attempt(
        self, session: aiohttp.ClientSession, lane: _Lane, webhook: Webhook, message: Message
    ) -> None:
        try:
            outcome = await self._post(session, webhook, message)
            now_s = self._owner.now()
            if outcome.delivered:
                lane.breaker.succeeded()
            else:
                self.failures += 1
                lane.breaker.failed(webhook, now_s)
            self._owner.settle([self._step(webhook, message, outcome, now_s)])
        except Exception:
            LOG.exception("message %s was not settled; it is tried again", message.message_id)
            lane.breaker.failed(webhook, self._owner.now())
            self._owner.put_off(message.message_id, self._owner.now() + UNSETTLED_S)
        finally:
            lane.in_flight -= 1
            self._wake.set()

    def _step(self, webhook: Webhook, message: Message, outcome: Outcome, now_s: float) -> Step:
        if outcome.delivered:
            return Step(message.message_id, "delivered")
        attempts = message.attempts + 1
        if attempts >= webhook.max_attempts or outcome.status == _GONE_STATUS:
            return Step(message.message_id, "failed", error=outcome.error)
        pause_s = backoff_s(webhook, attempts, outcome.retry_after_s, self._rng)
        return Step(message.message_id, "retried", now_s + pause_s, error=outcome.error)

    async def _post(
        self, session: aiohttp.ClientSession, webhook: Webhook, message: Message
    ) -> Outcome:
        self.attempts += 1
        host = urlsplit(webhook.url).hostname or ""
        try:
            # A literal address is never resolved, so the resolver can't refuse it.
            if not self._allow_private and _is_literal(host) and not is_public(host):
                return Outcome(0, f"{host} is not a public address")
            headers = signed_headers(
                webhook.secret, message.message_id, int(self._owner.now()), message.body
            )
            async with (
                asyncio.timeout(webhook.timeout_s),
                session.post(
                    webhook.url, data=message.body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                await answer.content.read(ANSWER_BYTES_MAX)
                if 200 <= answer.status < 300:
                    return Outcome(answer.status, "")
                after_s = _retry_after_s(answer.headers.get("retry-after", ""))
                return Outcome(answer.status, f"the receiver answered {answer.status}", after_s)
        except TimeoutError:
            return Outcome(0, f"no answer within {webhook.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Outcome(0, f"{type(error).__name__}: {error}"[:200])


def backoff_s(webhook: Webhook, attempts: int, wanted_s: float, rng: random.Random) -> float:
    """The pause after `attempts` failed ones: doubling, bounded, and at random the half or more of
    that, so that what failed together does not come together again."""
    pause_s = min(webhook.retry_s * 2.0 ** min(attempts - 1, 40), webhook.retry_max_s)
    return max(pause_s * rng.uniform(0.5, 1.0), min(wanted_s, RETRY_AFTER_S_MAX))


class _Resolver(AbstractResolver):
    """Resolves names, and refuses those of addresses that are not public: checked where the
    connection is made, for a name may point elsewhere a moment later."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not self._allow_private:
            found = [one for one in found if is_public(one["host"])]
            if not found:
                raise OSError(EACCES, f"{host} has no public address")
        return found

    async def close(self) -> None:
        await self._inner.close()


def _is_literal(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _retry_after_s(text: str) -> float:
    return float(text) if text.isdecimal() and len(text) < 8 else 0.0
