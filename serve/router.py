"""Finds the owner of a key and asks it. The gateway's router is the SDK's.

Its one rule: a request is sent again only if it was not applied (moved, never sent) or the
caller says that a repeat is harmless (`retry_safe`: the owner knows the messageId).
Belongs to one event loop; nothing here is thread-safe.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import Awaitable, Callable

import msgspec

from cluster.errors import AuthError, Overloaded, Unavailable
from cluster.partition_map import Owner, PartitionMap
from serve.connection import LOST, Connection, OnPush, Reply, ignore_push
from serve.link import BACKOFF_MAX_S, BACKOFF_MIN_S, Link, OnLost

STATUS_MIN = 100
STATUS_MOVED = 421
MOVED_MAX = 8
# A request that kills its owner must not kill every successor.
RESENT_MAX = 3
SWEEPS_PER_TIMEOUT = 20
SWEEP_MAX_S = 0.1

CLOSED = "the router was closed"

FetchMap = Callable[[int], Awaitable[PartitionMap]]


class Moved(msgspec.Struct, frozen=True):
    """Body of the reply "not mine; I know epoch E"."""

    epoch: int


class Router:
    """Owners by key, one connection each.

    fetch_map   fetch_map(epoch) returns a map with a newer epoch, waiting for it at its own
                discretion, or the newest; unless it is to `watch`, the router asks only while
                something is amiss
    principal   "gateway" or a key's id; `secret` proves it
    inflight_max       requests held open per owner, and waiting for one: more raise Overloaded
    request_timeout_s  how long one attempt may take
    map_wait_s         how long a request waits for an owner that can be reached
    on_push            told of what owners send unasked
    """

    def __init__(
        self,
        fetch_map: FetchMap,
        principal: str,
        secret: bytes,
        *,
        inflight_max: int,
        request_timeout_s: float,
        map_wait_s: float,
        rng: random.Random | None = None,
        on_push: OnPush = ignore_push,
    ) -> None:
        self.on_push = on_push
        self.changes = 0
        """Counts changes of the map and of the connections."""
        self._request_timeout_s = request_timeout_s
        self._rng = rng or random.Random()
        self.refreshes = 0
        """How often the map was asked for."""
        self._fetch_map = fetch_map
        self._principal = principal
        self._secret = secret
        self._inflight_max = inflight_max
        self._map_wait_s = map_wait_s
        self._map: PartitionMap | None = None
        self._starts: tuple[int, ...] = ()
        self._route: list[Link] = []
        self._links: dict[tuple[str, int], Link] = {}
        self._retired: list[Connection] = []
        self._waiting = 0
        self._changed: asyncio.Future[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._healing: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def map(self) -> PartitionMap:
        """The newest map this router has seen. Raises Unavailable before `start`."""
        if self._map is None:
            raise Unavailable("the router has no partition map yet")
        return self._map

    @property
    def reachable(self) -> bool:
        """Whether every owner of the map can be asked at this moment."""
        return bool(self._route) and all(link.connection is not None for link in self._route)

    async def start(self) -> None:
        """Get the map and try each owner once. Owners that can't be reached are tried again later.

        Raises whatever `fetch_map` raises, and AuthError if an owner refuses the secret.
        """
        self._adopt(await self._fetch_map(-1))
        self._sweeping = asyncio.create_task(self._sweep())
        await asyncio.gather(*(link.tried.wait() for link in self._links.values()))
        for link in self._links.values():
            if isinstance(link.error, AuthError):
                error = link.error
                await self.close()
                raise error
        self._heal()

    def watch(self) -> None:
        """Follow the map from now on, for a `fetch_map` that waits for a newer epoch.

        An owner whose machine is gone closes no connection: without this, each request to it
        would have to be late before anybody asked."""
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End all connections; requests in flight raise Unavailable."""
        self._closed = True
        started = (self._sweeping, self._watching, self._healing, self._refreshing)
        tasks = [task for task in started if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        links, self._links, self._route = self._links, {}, []
        await asyncio.gather(*(link.close(CLOSED) for link in links.values()))
        for connection in self._retired:
            connection.abort(CLOSED)
        self._retired = []
        self._wake()

    async def call(
        self, op: int, position: int, body: bytes, meta: bytes = b"", retry_safe: bool = False
    ) -> Reply:
        """Ask the owner of `position`; its status and body as it wrote them.

        Raises Unavailable if no owner answers in time, Overloaded if too much is in flight,
        FrameError if the request is too large for a frame.
        """
        route = self._route
        if route:
            connection = route[bisect_right(self._starts, position) - 1].connection
            if connection is not None:
                epoch = self.map.epoch
                reply = await connection.submit(op, body, meta)
                if reply[0] >= STATUS_MIN and reply[0] != STATUS_MOVED:
                    return reply
                return await self._again(reply, epoch, op, position, body, meta, retry_safe)
        return await self._again(None, -1, op, position, body, meta, retry_safe)

    async def call_shard(
        self, shard_id: str, op: int, body: bytes = b"", meta: bytes = b""
    ) -> Reply:
        """Ask one shard by name, once. Raises Unavailable also if the map has no such shard."""
        for entry in self.map.owners:
            if entry.shard_id == shard_id:
                link = self._links.get(entry.address)
                if link is None or link.connection is None:
                    raise self._unreachable_owner(entry)
                reply = await link.connection.submit(op, body, meta)
                if reply[0] < STATUS_MIN:
                    raise _unknown_outcome(reply)
                if reply[0] == STATUS_MOVED:
                    raise Unavailable(f"the range of shard {shard_id} has moved; retry")
                return reply
        raise Unavailable(f"there is no shard {shard_id!r} in the map of epoch {self.map.epoch}")

    async def refresh(self, epoch: int, wait_s: float) -> None:
        """Ask for a map newer than `epoch`, unless this one is; wait for it at most `wait_s`."""
        if self.map.epoch <= epoch and not self._closed:
            await asyncio.wait([self._refresh()], timeout=wait_s)

    async def _again(
        self,
        reply: Reply | None,
        epoch: int,
        op: int,
        position: int,
        body: bytes,
        meta: bytes,
        retry_safe: bool,
    ) -> Reply:
        """Go on after a first attempt that found no owner (None), was moved or got no reply.

        epoch  of the map by which the last attempt was sent
        """
        if self._waiting >= self._inflight_max:
            raise Overloaded(f"{self._waiting} requests wait for an owner to be found")
        self._waiting += 1
        deadline_s = asyncio.get_running_loop().time() + self._map_wait_s
        moved = resent = 0
        try:
            while reply is None or reply[0] < STATUS_MIN or reply[0] == STATUS_MOVED:
                if reply is not None and reply[0] == STATUS_MOVED:
                    moved += 1
                    if moved > MOVED_MAX or self._remaining_s(deadline_s) <= 0:
                        raise Unavailable(f"the key moved {moved} times in a row; retry later")
                    await self._follow(reply[1], epoch, moved, deadline_s)
                elif reply is not None:
                    resent += 1
                    late = reply[0] != LOST or self._remaining_s(deadline_s) <= 0
                    if late or resent > RESENT_MAX or not retry_safe:
                        raise _unknown_outcome(reply)
                connection = await self._owner_connection(position, deadline_s)
                epoch = self.map.epoch
                reply = await connection.submit(op, body, meta)
            return reply
        finally:
            self._waiting -= 1

    async def _follow(self, body: bytes, epoch: int, moved: int, deadline_s: float) -> None:
        """After a moved reply to a request sent by the map of `epoch`: wait for a newer map, or
        give an owner that is behind the map time to learn of its range."""
        try:
            known = msgspec.json.decode(body, type=Moved).epoch
        except (msgspec.ValidationError, msgspec.DecodeError):
            known = epoch
        if known > epoch:
            while self.map.epoch <= epoch and self._remaining_s(deadline_s) > 0:
                if self._closed:
                    raise Unavailable(CLOSED)
                await self._wait_for(self._refresh(), deadline_s)
                if self.map.epoch <= epoch:
                    await self._pause(moved)
        elif self.map.epoch <= epoch:
            if known == epoch:
                self._refresh()
            await self._pause(moved)

    async def _owner_connection(self, position: int, deadline_s: float) -> Connection:
        """The connection to the owner of `position`, as soon as there is one."""
        while not self._closed:
            at = bisect_right(self._starts, position) - 1
            connection = self._route[at].connection if self._route else None
            if connection is not None:
                return connection
            if self._remaining_s(deadline_s) <= 0:
                raise self._unreachable_owner(self.map.owners[at])
            self._heal()
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await self._wait_for(self._changed, deadline_s)
        raise Unavailable(CLOSED)

    def _new_connection(self, on_lost: OnLost) -> Connection:
        return Connection(
            self._principal,
            self._secret,
            self._inflight_max,
            self._request_timeout_s,
            on_lost,
            lambda token, body: self.on_push(token, body),
        )

    def _on_link_change(self) -> None:
        self._wake()
        self._heal()

    def _wake(self) -> None:
        """Let all requests that wait for an owner look again."""
        self.changes += 1
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)

    @property
    def _ailing(self) -> bool:
        """Whether an owner can't be reached; one that is being tried for the first time may be."""
        return any(link.connection is None and link.tried.is_set() for link in self._route)

    def _heal(self) -> None:
        """See to it that the map is asked for until every owner in it can be reached."""
        if not self._closed and self._healing is None and self._ailing:
            self._healing = asyncio.create_task(self._heal_all())

    async def _heal_all(self) -> None:
        attempt = 0
        try:
            while self._ailing:
                await asyncio.shield(self._refresh())
                await self._pause(attempt)
                attempt += 1
        finally:
            self._healing = None

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            epoch, asked_s = self.map.epoch, loop.time()
            await asyncio.shield(self._refresh())
            # Nothing new and not waited for it: the coordinator is away.
            if self.map.epoch == epoch and loop.time() - asked_s < BACKOFF_MAX_S:
                await asyncio.sleep(BACKOFF_MAX_S)

    def _refresh(self) -> asyncio.Task[None]:
        """The one running request for a newer map; all that need one share it."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh_once())
        return self._refreshing

    async def _refresh_once(self) -> None:
        self.refreshes += 1
        try:
            async with asyncio.timeout(self._map_wait_s):
                fetched = await self._fetch_map(self.map.epoch)
            if fetched.epoch > self.map.epoch:
                self._adopt(fetched)
        except Exception as error:
            # Whatever the failure was, the answer is to ask again; who waits is told of it.
            reason = str(error) or type(error).__name__
            for link in self._links.values():
                if link.connection is None:
                    link.error = Unavailable(f"the partition map can't be fetched: {reason}")
        finally:
            self._refreshing = None

    def _adopt(self, newer: PartitionMap) -> None:
        """Route by `newer` from now on; links that it still names stay as they are."""
        addresses = {entry.address for entry in newer.owners}
        for address in self._links.keys() - addresses:
            retired = self._links.pop(address).retire()
            if retired is not None:
                self._retired.append(retired)
        for address in addresses - self._links.keys():
            self._links[address] = Link(
                address,
                self._new_connection,
                self._on_link_change,
                self._request_timeout_s,
                self._rng,
            )
        self._map = newer
        self._starts = tuple(entry.range.start for entry in newer.owners)
        self._route = [self._links[entry.address] for entry in newer.owners]
        self._wake()

    async def _sweep(self) -> None:
        """Let connections give up what is late; forget retired ones that are done."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(SWEEP_MAX_S, self._request_timeout_s / SWEEPS_PER_TIMEOUT))
            now_s = loop.time()
            for link in self._links.values():
                if link.connection is not None:
                    link.connection.sweep(now_s)
            for connection in self._retired:
                connection.sweep(now_s)
            self._retired = [connection for connection in self._retired if len(connection)]

    async def _wait_for(self, future: asyncio.Future[None], deadline_s: float) -> None:
        """Wait for a shared future, at most until the deadline, and never cancel it."""
        await asyncio.wait([future], timeout=max(0.0, self._remaining_s(deadline_s)))

    async def _pause(self, attempt: int) -> None:
        pause_s = min(BACKOFF_MIN_S * 2 ** min(attempt, 16), BACKOFF_MAX_S)
        await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))

    def _remaining_s(self, deadline_s: float) -> float:
        return deadline_s - asyncio.get_running_loop().time()

    def _unreachable_owner(self, entry: Owner) -> Unavailable:
        link = self._links.get(entry.address)
        reason = link.error if link is not None and link.error is not None else "no connection"
        return Unavailable(f"shard {entry.shard_id} can't be reached: {reason}; retry later")


def _unknown_outcome(reply: Reply) -> Unavailable:
    reason = reply[1].decode(errors="replace") if reply[0] < 0 else f"reply status {reply[0]}"
    return Unavailable(f"unknown outcome, retry with the same messageId: {reason}")
