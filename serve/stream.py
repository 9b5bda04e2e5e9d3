"""`/v1/stream`: the messages of decide, track, identify and page over one WebSocket, pipelined.

A text message from the caller is one JSON object or an array of up to STREAM_ARRAY_MAX. Each
object is the JSON of the HTTP call plus "type" and an "id" (text or integer) of the caller's
choice. Every text message to the caller is a JSON array of replies, in the order in which
they became ready:

    -> [{"id": 1, "type": "decide", "userId": "ada", ...}, {"id": 2, "type": "track", ...}]
    <- [{"id": 2, "status": 200, "answer": {...}}]
    <- [{"id": 1, "status": 422, "problem": {...}}]

A page that wants messages sent to its person subscribes; each comes as an entry of its own, and
again after a reconnect, until the page has acknowledged it:

    -> {"id": 3, "type": "subscribe", "anonymousId": "v1"}
    <- [{"id": 3, "status": 200, "answer": {"subscribed": true}}]
    <- [{"type": "message", "message": {...}}]
    -> {"id": 4, "type": "acknowledge", "anonymousId": "v1", "messages": ["<the message's id>"]}

Arrays are what makes a busy stream fast: a decide alone in its message costs the gateway 15 us of
Python, in an array of 16 it costs 8, and the system calls are shared too (HTTP: 16 us and all
system calls). Replies that are ready in the same turn leave together. Callers that can should not
offer permessage-deflate: compressing a reply costs more than making it.

The key comes in the X-API-Key or Authorization header, as the second subprotocol beside
"onehop" (browsers can't set headers), or as first message {"apiKey": "..."}.

The bound: STREAM_INFLIGHT_MAX open messages per connection; beyond it nothing more is read,
so the caller's own TCP connection fills up and slows it down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.websockets import WebSocketDisconnect

from actors.messages import BODY_BYTES_MAX, Person, Wire
from cluster.errors import AuthError, OnehopError, RequestError
from cluster.frames import OP_OF_TYPE, Op
from serve.auth import Caller
from serve.gateway import Gateway, position_of, without
from serve.pages import Page
from serve.problems import DECODE_ERRORS, Answer, Header, answer_of, too_large

STREAM_ROUTE = "/v1/stream"
SUBPROTOCOL = "onehop"
STREAM_INFLIGHT_MAX = 1024
STREAM_ARRAY_MAX = 500
SUBSCRIPTIONS_MAX = 4
UNSENT_PUSHES_MAX = 256
FIRST_MESSAGE_S = 5.0

# WebSocket close codes (RFC 6455; 4000 and above are ours).
POLICY = 1008
UNAUTHORIZED = 4401

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


OPS = {**OP_OF_TYPE, "acknowledge": Op.ACKNOWLEDGE}
SUBSCRIBE = "subscribe"


class StreamMessage(Person, kw_only=True):
    """What the gateway reads of a stream's message."""

    id: Annotated[str, Meta(max_length=128)] | int
    type: str


class Login(Wire):
    """The first message of a caller that can set neither header nor subprotocol."""

    api_key: str


_login = msgspec.json.Decoder(Login)
_many = msgspec.json.Decoder(Annotated[list[msgspec.Raw], Meta(max_length=STREAM_ARRAY_MAX)])
_head = msgspec.json.Decoder(StreamMessage)
_encode = msgspec.json.Encoder().encode


async def serve_stream(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """One WebSocket from handshake to close."""
    await receive()
    subprotocols: list[str] = scope.get("subprotocols", [])
    chosen = SUBPROTOCOL if SUBPROTOCOL in subprotocols else None
    await send({"type": "websocket.accept", "subprotocol": chosen})
    try:
        headers = await _log_in(gateway, scope["headers"], subprotocols, receive)
    except OnehopError as error:
        await _refuse(gateway, error, send)
        return
    if headers is not None:
        gateway.count(STREAM_ROUTE, 101)
        await Stream(gateway, headers, send).run(receive)


class Stream:
    """One authenticated connection: reads messages, answers them as they become ready.

    headers  who calls; asked again with every text message, for keys expire and are withdrawn
    """

    def __init__(self, gateway: Gateway, headers: Sequence[Header], send: Send) -> None:
        self._gateway = gateway
        self._headers = headers
        self._send = send
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: list[bytes] = []
        self._open = 0
        """Messages taken whose reply has not been sent."""
        self._pages: list[Page] = []
        self._pushes = 0
        """Messages for the page that are not sent yet."""
        self._gone = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self, receive: Receive) -> None:
        """Until the caller goes away. What is still in flight then is abandoned, not undone."""
        writer = asyncio.create_task(self._write())
        try:
            while not self._gone:
                message = await receive()
                if message["type"] != "websocket.receive":
                    return
                caller = self._gateway.keys.caller_of(self._headers)
                text = message.get("text")
                data = text.encode() if text is not None else message.get("bytes") or b""
                self._take(caller, data)
                while self._open >= STREAM_INFLIGHT_MAX and not self._gone:
                    self._room.clear()
                    await self._room.wait()
        except OnehopError as error:
            # Two writers would disturb each other.
            writer.cancel()
            await _refuse(self._gateway, error, self._send)
        finally:
            writer.cancel()
            for task in self._tasks:
                task.cancel()
            for page in self._pages:
                self._gateway.pages.leave(page)

    def _take(self, caller: Caller, data: bytes) -> None:
        try:
            if len(data) > BODY_BYTES_MAX:
                raise too_large("the message", len(data), BODY_BYTES_MAX)
            # An array is told from an object by its first byte that is not white space.
            messages = _many.decode(data) if data.lstrip()[:1] == b"[" else [data]
        except (RequestError, *DECODE_ERRORS) as error:
            self._open += 1
            self._reply(b"null", answer_of(error))
            return
        self._open += len(messages)
        for raw in messages:
            task = asyncio.create_task(self._message(caller, bytes(raw)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _message(self, caller: Caller, data: bytes) -> None:
        message_id = b"null"
        try:
            head = _head.decode(data)
            message_id = _encode(head.id)
            op = OPS.get(head.type)
            if op is not None:
                body = without(data, "id", "type")
                answer = await self._gateway.forward(op, caller, head, body)
            elif head.type == SUBSCRIBE:
                answer = await self._subscribe(caller, head)
            else:
                wanted = ", ".join((*OPS, SUBSCRIBE))
                raise RequestError(422, "the type is unknown", "type", repr(head.type), wanted)
        except Exception as error:
            answer = answer_of(error)
        self._reply(message_id, answer)

    async def _subscribe(self, caller: Caller, head: StreamMessage) -> Answer:
        position = position_of(caller, head)
        person = {"userId": head.user_id, "anonymousId": head.anonymous_id}
        if len(self._pages) >= SUBSCRIPTIONS_MAX:
            wanted = f"at most {SUBSCRIPTIONS_MAX} of a stream"
            raise RequestError(429, "there are too many subscriptions", "", "", wanted)

        def on_message(event: bytes) -> None:
            if self._pushes >= UNSENT_PUSHES_MAX:
                # The page does not read: the owner keeps the rest, and it comes with a renewal.
                page.missed = True
                return
            self._pushes += 1
            self._open += 1
            self._ready.append(b'{"type":"message","message":%b}' % event)
            self._wake.set()

        keys = self._gateway.keys
        page = Page(caller, position, person, on_message, lambda: keys.caller_of(self._headers))
        self._pages.append(page)
        answer = await self._gateway.pages.subscribe(page)
        if answer.status >= 400:
            self._pages.remove(page)
        return answer

    def _reply(self, message_id: bytes, answer: Answer) -> None:
        name = b"answer" if answer.status < 400 else b"problem"
        self._ready.append(
            b'{"id":%b,"status":%d,"%b":%b}' % (message_id, answer.status, name, answer.body)
        )
        self._gateway.count(STREAM_ROUTE, answer.status)
        self._wake.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                replies, self._ready, self._pushes = self._ready, [], 0
                text = b"[%b]" % b",".join(replies)
                # `send` waits while the caller does not read; replies gather here meanwhile,
                # and count as open, so that no more is read either.
                await self._send({"type": "websocket.send", "text": text.decode()})
                self._open -= len(replies)
                self._room.set()
        except (OSError, WebSocketDisconnect):
            self._gone = True
            self._room.set()


async def _log_in(
    gateway: Gateway, headers: Sequence[Header], subprotocols: list[str], receive: Receive
) -> Sequence[Header] | None:
    """Headers that name the caller, by the handshake or by the first message; None if the caller
    is gone. Raises AuthError or RequestError."""
    named = _credentials(headers, subprotocols)
    try:
        gateway.keys.caller_of(named)
        return named
    except AuthError as error:
        refusal = error
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            message = await receive()
    except TimeoutError:
        raise refusal from None
    if message["type"] != "websocket.receive":
        return None
    named = _credentials(headers, [_key_of_login(message)])
    gateway.keys.caller_of(named)
    return named


def _credentials(headers: Sequence[Header], texts: Sequence[str]) -> list[Header]:
    """The handshake's headers, where a key that came otherwise stands as if it were one."""
    keys = [text for text in texts if text.startswith(("pk_", "sk_"))]
    return [*((b"x-api-key", key.encode()) for key in keys), *headers]


def _key_of_login(message: MutableMapping[str, Any]) -> str:
    text = message.get("text")
    try:
        key = _login.decode(text if text is not None else message.get("bytes") or b"").api_key
    except DECODE_ERRORS:
        raise AuthError('the first message must be {"apiKey": "..."}') from None
    if not key.startswith(("pk_", "sk_")):
        raise AuthError("the key is malformed, wanted pk_... or sk_...")
    return key


async def _refuse(gateway: Gateway, error: OnehopError, send: Send) -> None:
    answer = answer_of(error)
    gateway.count(STREAM_ROUTE, answer.status)
    text = b'[{"id":null,"status":%d,"problem":%b}]' % (answer.status, answer.body)
    await send({"type": "websocket.send", "text": text.decode()})
    code = UNAUTHORIZED if answer.status == 401 else POLICY
    await send({"type": "websocket.close", "code": code})
