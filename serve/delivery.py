"""Delivers the client's requests: straight to the owner or through HTTP, again if it failed.

Its one rule: every attempt of a request carries the same bytes, so that what has a messageId
counts once however often it is sent.
"""

from __future__ import annotations

import asyncio
import random
from hashlib import sha256

import msgspec

from cluster.access import key_id
from cluster.errors import ConfigError, OnehopError, Overloaded, Unavailable
from cluster.frames import Op
from cluster.partition_map import PartitionMap, decode_map
from serve.client_http import SUCCESS, Http, failure
from serve.router import Router

PROBE_TIMEOUT_S = 1.0
PROBE_AGAIN_S = 30.0
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 2.0


class _Shards(msgspec.Struct):
    """What is read of GET /v1/shards beside the map."""

    tenant: str = "default"


class Delivery:
    """See `Client` for the settings. Belongs to the event loop in which it is started."""

    def __init__(
        self,
        url: str,
        api_key: str,
        direct: bool | None,
        inflight_max: int,
        timeout_s: float,
        attempts_max: int,
        rng: random.Random,
    ) -> None:
        if inflight_max < 1 or attempts_max < 1 or timeout_s <= 0:
            raise ConfigError(
                f"inflight_max, attempts_max and timeout_s must be > 0, "
                f"got {inflight_max}, {attempts_max} and {timeout_s}"
            )
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url must start with http:// or https://, got {url!r}")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("api_key must be printable ASCII, without a newline")
        if direct and not api_key.startswith("sk_"):
            raise ConfigError("direct needs an sk_ key")
        self.attempts_max = attempts_max
        self.tenant = "default"
        self.router: Router | None = None
        """The way to the owners, if it is used."""
        self._url = url
        self._api_key = api_key
        self._only_direct = direct is True
        self._probes = direct is not False and api_key.startswith("sk_")
        self._inflight_max = inflight_max
        self._timeout_s = timeout_s
        self._rng = rng
        self._http: Http | None = None
        self._slots = asyncio.Semaphore(inflight_max)
        self._probe_again_s = float("inf")
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect. Raises an OnehopError only if HTTP is not to be used instead."""
        self._http = Http(self._url, self._api_key, self._inflight_max, self._timeout_s)
        if not self._probes:
            return
        try:
            await self._probe()
        except OnehopError:
            if self._only_direct:
                await self.close()
                raise

    async def close(self) -> None:
        """End all connections; open requests fail."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        if self.router is not None:
            await self.router.close()
        if self._http is not None:
            await self._http.close()

    async def ask(self, op: Op | None, position: int, method: str, path: str, body: bytes) -> bytes:
        """Body of the successful answer; op None goes through HTTP in any case.

        Raises Unavailable or Overloaded after the last attempt, and at once what a retry does
        not help: AuthError, ApiError, FrameError.
        """
        async with self._slots:
            attempt = 0
            router = self.router if op is not None else None
            while True:
                attempt += 1
                wait_s = 0.0
                try:
                    if router is not None and op is not None:
                        status, reply = await router.call(op, position, body, b"", True)
                    else:
                        status, reply, wait_s = await self._through_http(method, path, body)
                    if status in SUCCESS:
                        return reply
                    error = failure(status, reply)
                except (Unavailable, Overloaded) as failed:
                    error = failed
                if attempt == self.attempts_max or not isinstance(error, Unavailable | Overloaded):
                    raise error
                if isinstance(error, Unavailable) and not self._only_direct:
                    # An owner out of this client's reach may be in the gateway's.
                    router = None
                await asyncio.sleep(self.pause_s(attempt, wait_s))

    def pause_s(self, attempt: int, asked_s: float = 0.0) -> float:
        """The pause after a failed attempt (1, 2, ...): what was asked for, or ever longer."""
        backoff_s: float = min(BACKOFF_MIN_S * 2 ** (attempt - 1), BACKOFF_MAX_S)
        return max(asked_s, backoff_s) * self._rng.uniform(1.0, 1.5)

    async def _through_http(self, method: str, path: str, body: bytes) -> tuple[int, bytes, float]:
        assert self._http is not None, "not started"
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._probe_again_s:
            self._probe_again_s = now_s + PROBE_AGAIN_S
            self._probing = asyncio.create_task(self._probe_quietly())
        return await self._http.request(method, path, body)

    async def _probe(self) -> None:
        """Set `router` if every owner can be reached. Raises an OnehopError if not."""
        self._probe_again_s = asyncio.get_running_loop().time() + PROBE_AGAIN_S
        assert self._http is not None
        status, body, _wait_s = await self._http.request("GET", "/v1/shards")
        if status not in SUCCESS:
            raise failure(status, body)
        key = self._api_key.encode()
        router = Router(
            self._fetch_map,
            key_id(key),
            sha256(key).digest(),
            inflight_max=self._inflight_max,
            request_timeout_s=self._timeout_s,
            map_wait_s=self._timeout_s,
            rng=self._rng,
        )
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await router.start()
            if not router.reachable:
                raise Unavailable("not every owner can be reached from here")
            self.tenant = msgspec.json.decode(body, type=_Shards).tenant
        except (TimeoutError, msgspec.DecodeError) as error:
            await router.close()
            raise Unavailable(f"the owners can't be reached from here: {error}") from None
        except BaseException:
            await router.close()
            raise
        self.router = router
        self._probe_again_s = float("inf")

    async def _probe_quietly(self) -> None:
        try:
            await self._probe()
        except OnehopError:
            # HTTP serves meanwhile; `_through_http` tries again later.
            return

    async def _fetch_map(self, epoch: int) -> PartitionMap:
        assert self._http is not None
        query = f"?newerThan={epoch}" if epoch >= 0 else ""
        status, body, _wait_s = await self._http.request("GET", f"/v1/shards{query}")
        if status not in SUCCESS:
            raise failure(status, body)
        try:
            return decode_map(body)
        except ValueError as error:
            raise Unavailable(f"the partition map is not usable: {error}") from None
