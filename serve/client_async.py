"""The SDK's async client. Import it from serve.client.

    async with Client("http://127.0.0.1:8000", "sk_...") as client:
        answer = await client.decide(user_id="ada", decisions=[{"surface": "content"}])

It goes straight to the owner where it can reach the nodes, and through HTTP elsewhere. Whatever
has no messageId gets one, so that a retry counts once.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import msgspec

from actors.decisions import DecideAnswer, DecisionSpec
from actors.messages import BATCH_MAX, Event, Item, Person, Problem, Properties, TrackAnswer
from cluster.errors import OnehopError, RequestError
from cluster.frames import OP_OF_TYPE, Op
from cluster.keys import ANONYMOUS, USER, key_hash, place
from cluster.levels import Level
from serve.client_http import ApiError
from serve.delivery import Delivery

Fields = Mapping[str, Any]
Document = dict[str, Any]

# Statuses of a batch's single message that a retry may help.
RETRIED = frozenset((429, 500, 503))

_person = msgspec.json.Decoder(Person)
_decide_answer = msgspec.json.Decoder(DecideAnswer)
_track_answer = msgspec.json.Decoder(TrackAnswer)
_document = msgspec.json.Decoder(Document)
_encode = msgspec.json.Encoder().encode


class Client:
    """Talks to onehop. Belongs to the event loop of its first call; close it when done.

    url           of the gateway, "http://host:port"
    api_key       "sk_..." or "pk_..."; "" where the service is on loopback and wants none
    direct        True: straight to the owners or not at all; False: HTTP only; None: straight
                  to the owners while all of them can be reached
    inflight_max  requests open at once; more wait for their turn
    timeout_s     of one attempt
    attempts_max  per request; the pauses between them grow and are jittered

    Calls raise Unavailable or Overloaded when all attempts failed, AuthError for a key that is
    not valid, ApiError for a request that is wrong. All are OnehopErrors.
    """

    def __init__(
        self,
        url: str,
        api_key: str = "",
        *,
        direct: bool | None = None,
        inflight_max: int = 256,
        timeout_s: float = 5.0,
        attempts_max: int = 5,
        rng: random.Random | None = None,
    ) -> None:
        self._delivery = Delivery(
            url, api_key, direct, inflight_max, timeout_s, attempts_max, rng or random.Random()
        )
        self._starting: asyncio.Task[None] | None = None
        self._started = False
        # Unique among clients by 96 random bits, within this one by counting.
        self._id_prefix = secrets.token_hex(12)
        self._ids = count()

    @property
    def is_direct(self) -> bool:
        """Whether requests go straight to the owners at present."""
        return self._delivery.router is not None

    async def start(self) -> None:
        """Connect; the first call does it too. Raises an OnehopError only if `direct` is True."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._delivery.start())
        try:
            await asyncio.shield(self._starting)
        except OnehopError:
            self._starting = None
            raise
        self._started = True

    async def close(self) -> None:
        """End all connections; open requests fail."""
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._delivery.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def decide(
        self,
        *,
        user_id: str | None = None,
        anonymous_id: str | None = None,
        events: Sequence[Event | Fields] = (),
        decisions: Sequence[DecisionSpec | Fields] = (),
        context: Fields | None = None,
        session_id: str | None = None,
        message_id: str | None = None,
        explain: bool | None = None,
        durability: Level | None = None,
        deadline_ms: float | None = None,
    ) -> DecideAnswer:
        """Apply events, then decide: `POST /v1/decide`."""
        body = self._body(
            userId=user_id,
            anonymousId=anonymous_id,
            messageId=message_id,
            sessionId=session_id,
            events=events or None,
            context=context,
            decisions=decisions or None,
            explain=explain,
            durability=durability,
            deadlineMs=deadline_ms,
        )
        return _decide_answer.decode(await self._message("decide", user_id, anonymous_id, body))

    async def decide_raw(
        self,
        body: bytes,
        *,
        user_id: str | None = None,
        anonymous_id: str | None = None,
    ) -> bytes:
        """As `decide`, JSON in and JSON out, nothing decoded that need not be.

        Without ids the body is read for them, and gets a messageId if it has none. A caller that
        names the id vouches that the body has the same one *and* a messageId.
        """
        if user_id is None and anonymous_id is None:
            try:
                person = _person.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise _wrong(400, "the body is not usable", "", str(error), "JSON") from None
            user_id, anonymous_id = person.user_id, person.anonymous_id
            if person.message_id is None:
                head, _, tail = body.partition(b"{")
                now = b'"sentAt":%f,' % (time.time() * 1000.0) if b'"timestamp"' in body else b""
                body = b'%b{"messageId":"%b",%b%b' % (head, self._new_id().encode(), now, tail)
        return await self._message("decide", user_id, anonymous_id, body)

    async def track(
        self,
        event: str,
        *,
        user_id: str | None = None,
        anonymous_id: str | None = None,
        properties: Properties | Fields | None = None,
        session_id: str | None = None,
        timestamp: str | float | None = None,
        message_id: str | None = None,
        durability: Level | None = None,
    ) -> TrackAnswer:
        """Apply one event: `POST /v1/track`."""
        body = self._body(
            event=event,
            userId=user_id,
            anonymousId=anonymous_id,
            messageId=message_id,
            sessionId=session_id,
            properties=properties,
            timestamp=timestamp,
            durability=durability,
        )
        return _track_answer.decode(await self._message("track", user_id, anonymous_id, body))

    async def identify(
        self,
        traits: Fields,
        *,
        user_id: str | None = None,
        anonymous_id: str | None = None,
        message_id: str | None = None,
        durability: Level | None = None,
    ) -> TrackAnswer:
        """Merge traits into the profile; None removes one: `POST /v1/identify`."""
        body = self._body(
            userId=user_id,
            anonymousId=anonymous_id,
            messageId=message_id,
            traits=traits,
            durability=durability,
        )
        return _track_answer.decode(await self._message("identify", user_id, anonymous_id, body))

    async def page(
        self,
        name: str | None = None,
        *,
        user_id: str | None = None,
        anonymous_id: str | None = None,
        properties: Properties | Fields | None = None,
        session_id: str | None = None,
        timestamp: str | float | None = None,
        message_id: str | None = None,
        durability: Level | None = None,
    ) -> TrackAnswer:
        """Apply a page view: `POST /v1/page`."""
        body = self._body(
            name=name,
            userId=user_id,
            anonymousId=anonymous_id,
            messageId=message_id,
            sessionId=session_id,
            properties=properties,
            timestamp=timestamp,
            durability=durability,
        )
        return _track_answer.decode(await self._message("page", user_id, anonymous_id, body))

    async def batch(self, messages: Sequence[Fields]) -> list[Document]:
        """Up to BATCH_MAX messages, each with a `type` ("decide", "track", "identify", "page").

        Returns, in order, {"status", "answer"} or {"status", "problem"} for each message. Those
        that a retry may help are sent again, with the same messageId.
        """
        if not 0 < len(messages) <= BATCH_MAX:
            wanted = f"1 to {BATCH_MAX} messages"
            raise _wrong(422, "the batch has the wrong size", "batch", str(len(messages)), wanted)
        await self._ensure_started()
        fixed = [self._identified(message) for message in messages]
        if self.is_direct:
            return list(await asyncio.gather(*map(self._batched, fixed)))
        results: list[Document] = [{} for _ in fixed]
        left = list(range(len(fixed)))
        for attempt in range(1, self._delivery.attempts_max + 1):
            body = _encode({"batch": [fixed[at] for at in left]})
            answer = _document.decode(await self._ask(None, 0, "POST", "/v1/batch", body))
            for at, result in zip(left, answer["results"], strict=True):
                results[at] = result
            left = [at for at in left if results[at]["status"] in RETRIED]
            if not left:
                break
            await asyncio.sleep(self._delivery.pause_s(attempt))
        return results

    async def profile(
        self, *, user_id: str | None = None, anonymous_id: str | None = None
    ) -> Document:
        """One person's profile: `GET /v1/profiles/{id}`."""
        return await self._profile(Op.PROFILE_GET, "GET", user_id, anonymous_id)

    async def delete_profile(
        self, *, user_id: str | None = None, anonymous_id: str | None = None
    ) -> Document:
        """Erase one person's profile: `DELETE /v1/profiles/{id}`."""
        return await self._profile(Op.PROFILE_DELETE, "DELETE", user_id, anonymous_id)

    async def put_items(self, items: Sequence[Item | Fields]) -> list[Document]:
        """Add or replace items, on every shard when it returns: `POST /v1/items:batch`.

        Returns one {"id", "status"[, "error"]} per item, in order.
        """
        body = _encode({"items": items})
        answer = _document.decode(await self._ask(None, 0, "POST", "/v1/items:batch", body))
        results: list[Document] = answer["results"]
        return results

    async def put_document(self, kind: str, document_id: str, document: Fields) -> Document:
        """Put a document, as an offer or a flag: `PUT /v1/{kind}/{id}`."""
        path = f"/v1/{quote(kind, safe='')}/{quote(document_id, safe='')}"
        return _document.decode(await self._ask(None, 0, "PUT", path, _encode(document)))

    async def decision(self, decision_id: str) -> Document:
        """The record of a decision: `GET /v1/decisions/{id}`."""
        path = f"/v1/decisions/{quote(decision_id, safe='')}"
        try:
            # The first 16 digits are the person's place.
            position = int(decision_id[:16], 16)
        except ValueError:
            wanted = "a decisionId of an answer"
            raise _wrong(422, "no decision has such an id", "id", decision_id, wanted) from None
        body = decision_id.encode()
        return _document.decode(await self._ask(Op.DECISION_GET, position, "GET", path, body))

    async def _profile(
        self, op: Op, method: str, user_id: str | None, anonymous_id: str | None
    ) -> Document:
        await self._ensure_started()
        position = self._position(user_id, anonymous_id)
        field, person_id = "userId", user_id
        if person_id is None:
            field, person_id = "anonymousId", anonymous_id
        path = f"/v1/profiles/{field}:{quote(person_id or '', safe='')}"
        body = _encode({field: person_id})
        return _document.decode(await self._ask(op, position, method, path, body))

    async def _batched(self, message: Document) -> Document:
        """One message of a batch, as the gateway would answer it."""
        kind = message.pop("type", None)
        try:
            if kind not in OP_OF_TYPE:
                raise _wrong(422, "the type is unknown", "type", repr(kind), ", ".join(OP_OF_TYPE))
            body = _encode(message)
            reply = await self._message(
                kind, message.get("userId"), message.get("anonymousId"), body
            )
            return {"status": 200, "answer": _document.decode(reply)}
        except ApiError as error:
            return {"status": error.status, "problem": msgspec.to_builtins(error.problem)}
        except OnehopError as error:
            problem = Problem("the message could not be delivered", 503, detail=str(error))
            return {"status": 503, "problem": msgspec.to_builtins(problem)}

    async def _message(
        self, kind: str, user_id: str | None, anonymous_id: str | None, body: bytes
    ) -> bytes:
        await self._ensure_started()
        position = self._position(user_id, anonymous_id)
        return await self._delivery.ask(OP_OF_TYPE[kind], position, "POST", "/v1/" + kind, body)

    async def _ask(
        self, op: Op | None, position: int, method: str, path: str, body: bytes
    ) -> bytes:
        await self._ensure_started()
        return await self._delivery.ask(op, position, method, path, body)

    async def _ensure_started(self) -> None:
        if not self._started:
            await self.start()

    def _position(self, user_id: str | None, anonymous_id: str | None) -> int:
        """Where the person lives. Raises ApiError as the gateway would without a usable id."""
        tenant = self._delivery.tenant
        try:
            if user_id is not None:
                return place(key_hash(tenant, USER, user_id))
            if anonymous_id is not None:
                return place(key_hash(tenant, ANONYMOUS, anonymous_id))
        except RequestError as error:
            raise _wrong(error.status, error.title, error.field, error.seen, error.wanted) from None
        wanted = "userId or anonymousId"
        raise _wrong(422, "the message names no person", "userId", "", wanted)

    def _body(self, **fields: Any) -> bytes:
        """The request as JSON, without what is None, with a messageId."""
        present = {name: value for name, value in fields.items() if value is not None}
        return _encode(self._identified(present))

    def _identified(self, message: Fields) -> Document:
        """The message with a messageId; one that gets it here also says when, if it is of the past:
        by that the owner knows that it can't be a repeat from before."""
        if "messageId" in message:
            return {"messageId": message["messageId"], **message}
        fresh: Document = {"messageId": self._new_id()}
        if "timestamp" in message or b'"timestamp"' in _encode(message.get("events", ())):
            fresh["sentAt"] = time.time() * 1000.0
        return {**fresh, **message}

    def _new_id(self) -> str:
        return f"{self._id_prefix}-{next(self._ids):x}"


def _wrong(status: int, title: str, field: str, seen: str, wanted: str) -> ApiError:
    """The ApiError of a request that is not even sent."""
    detail = str(RequestError(status, title, field, seen, wanted))
    return ApiError(status, Problem(title, status, "about:blank", detail, field, seen, wanted))
