"""The hot paths, answered before Ray Serve's per-request bookkeeping.

An ASGI middleware that Serve installs in its HTTP server (the HTTP callback hook). Where no
gateway lives in this process and loop, it lets everything pass: the same handlers also sit
behind FastAPI routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

from actors.messages import BODY_BYTES_MAX
from cluster.errors import RequestError
from serve.cors import preflight, readable
from serve.gateway import BATCH_ROUTE, FAST_ROUTES, Gateway
from serve.problems import JSON_TYPE, PROBLEM_TYPE, Answer, answer_of, late_body, too_large
from serve.stream import STREAM_ROUTE, serve_stream

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

PATHS = frozenset((*FAST_ROUTES, BATCH_ROUTE))
METHODS = ("POST", "OPTIONS")

_gateways: dict[asyncio.AbstractEventLoop, Gateway] = {}


def install(gateway: Gateway) -> None:
    """Make `gateway` the one of this process and of its event loop.

    Raises RuntimeError if the loop has one already."""
    if gateway.loop in _gateways:
        raise RuntimeError("this event loop already has a gateway")
    _gateways[gateway.loop] = gateway


def uninstall(gateway: Gateway) -> None:
    _gateways.pop(gateway.loop, None)


def installed() -> Gateway | None:
    """The gateway of the running event loop, if there is one."""
    return _gateways.get(asyncio.get_running_loop())


def middlewares() -> list[Middleware]:
    """What Serve's HTTP callback hook calls."""
    return [Middleware(FastLane)]


class FastLane:
    """Answers METHODS on PATHS, and the stream; everything else goes to `app`."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._gateway: Gateway | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        if gateway is None:
            gateway = self._gateway = installed()
        kind = scope["type"]
        if gateway is None or kind == "lifespan":
            await self._app(scope, receive, send)
        elif kind == "http" and scope["path"] in PATHS and scope["method"] in METHODS:
            await respond(gateway, scope, receive, send)
        elif kind == "websocket" and scope["path"] == STREAM_ROUTE:
            await serve_stream(gateway, scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def respond(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one POST, or a browser's question whether it may POST. A caller that goes away
    before its body ended gets no answer."""
    headers = scope["headers"]
    if scope["method"] == "OPTIONS":
        await send_answer(preflight(gateway.keys, headers), send)
        return
    path = scope["path"]
    try:
        # A timer costs more than the rest of this; uvicorn knows whether one is needed. Its only
        # other message has no body: that the caller is gone.
        if getattr(getattr(receive, "__self__", None), "more_body", True):
            async with asyncio.timeout(gateway.body_timeout_s):
                body = await _body(receive)
        else:
            body = (await receive()).get("body")
        if body is None:
            return
        if len(body) > BODY_BYTES_MAX:
            raise too_large("the body", len(body), BODY_BYTES_MAX)
    except (RequestError, TimeoutError) as error:
        answer = answer_of(error if isinstance(error, RequestError) else late_body())
        gateway.count(path, answer.status)
    else:
        answer = await gateway.answer(path, headers, body)
    if gateway.keys.origins:
        answer = readable(answer, gateway.keys, headers)
    await send_answer(answer, send)


async def _body(receive: Receive) -> bytes | None:
    """The body, or its first BODY_BYTES_MAX + 1 bytes or more; None if the caller left."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more and size <= BODY_BYTES_MAX:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts)


async def send_answer(answer: Answer, send: Send) -> None:
    """One response start and one body, in one system call where the server is uvicorn."""
    status, body, headers = answer
    cycle = getattr(send, "__self__", None)
    transport = getattr(cycle, "transport", None)
    if cycle is not None and transport is not None:
        cycle.transport = _HeadHeld(transport)
    try:
        await send(
            {
                "type": "http.response.start",
                "status": status,
                # A 204 has neither.
                "headers": (
                    JSON_TYPE if status < 400 else PROBLEM_TYPE,
                    (b"content-length", b"%d" % len(body)),
                    *headers,
                )
                if body
                else headers,
            }
        )
        await send({"type": "http.response.body", "body": body})
    finally:
        if cycle is not None and transport is not None:
            cycle.transport = transport


class _HeadHeld:
    """A transport that holds the response's head until its body follows.

    uvicorn writes them one by one, and uvloop sends each at once: two system calls here and
    two wake-ups in HAProxy, for answers that always fit one.
    """

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
        else:
            self._transport.write(self._head + data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
