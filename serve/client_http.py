"""The client's way through HTTP, and what an answer that is no success means. Retries nothing."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import aiohttp
import msgspec

from actors.messages import Problem
from cluster.errors import AuthError, OnehopError, Overloaded, Unavailable

RETRY_AFTER_MAX_S = 30.0
REPLY_BYTES_MAX = 64 << 20
SUCCESS = range(200, 300)
# 500 too: a load balancer in front of the gateway turns "not reached" into it.
_RETRIED: dict[int, type[OnehopError]] = {
    429: Overloaded,
    500: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


class ApiError(OnehopError):
    """The service refused the request; sending it again would not help.

    status   HTTP status
    problem  what is wrong: title, field, the value seen and the value wanted (RFC 9457)
    """

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.status}: {self.problem.detail or self.problem.title}"


class HttpReply(NamedTuple):
    """An answer; `retry_after_s` is what the service asked for, or 0."""

    status: int
    body: bytes
    retry_after_s: float = 0.0


def failure(status: int, body: bytes) -> OnehopError:
    """The error that an answer other than a success means: Overloaded or Unavailable if a retry
    may help, AuthError for 401, else ApiError."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = Problem(f"the service answered {status}", status)
    text = f"{status}: {problem.detail or problem.title}"
    if status == 401:
        return AuthError(text)
    if status in _RETRIED:
        return _RETRIED[status](text)
    return ApiError(status, problem)


class Http:
    """One pool of HTTP connections to the gateways behind `url`."""

    def __init__(self, url: str, api_key: str, connections_max: int, timeout_s: float) -> None:
        # Answers are small: packing them costs more time than it saves.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if api_key:
            headers["x-api-key"] = api_key
        self._url = url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections_max),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers=headers,
            auto_decompress=False,
        )

    async def request(self, method: str, path: str, body: bytes = b"") -> HttpReply:
        """One request, one answer, whatever its status. Raises Unavailable without an answer."""
        try:
            async with self._session.request(
                method,
                self._url + path,
                data=body if method in ("POST", "PUT") else None,
                allow_redirects=False,
            ) as response:
                data = bytearray()
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > REPLY_BYTES_MAX:
                        raise Unavailable(f"an answer must be <= {REPLY_BYTES_MAX} bytes")
                wait_s = _seconds(response.headers.get("retry-after", ""))
                return HttpReply(response.status, bytes(data), wait_s)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{self._url} can't be reached: {reason}") from None

    async def close(self) -> None:
        await self._session.close()
        # Closed transports are only gone after the loop turned once more.
        await asyncio.sleep(0)


def _seconds(retry_after: str) -> float:
    """Seconds of a Retry-After header; 0 if it is absent or a date."""
    return min(float(retry_after), RETRY_AFTER_MAX_S) if retry_after.isdecimal() else 0.0
