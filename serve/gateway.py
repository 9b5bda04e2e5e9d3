"""What every way in shares: who calls, which owner, one hop, the owner's bytes back.

The body is read only as far as the key; its raw bytes travel on. One `Gateway` lives per
process and event loop. It knows nothing of HTTP servers, WebSockets or Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from actors.messages import (
    BATCH_MAX,
    BODY_BYTES_MAX,
    EVENT_BYTES_MAX,
    BatchItem,
    BatchRequest,
    Person,
)
from cluster.errors import RequestError
from cluster.frames import OP_OF_TYPE, Op
from cluster.keys import ANONYMOUS, USER, key_hash, place
from cluster.partition_map import PartitionMap
from serve.auth import Caller, Keys
from serve.pages import Pages
from serve.problems import (
    DECODE_ERRORS,
    RETRY_LATER,
    Answer,
    Header,
    answer_of,
    malformed,
    too_large,
)

FAST_ROUTES: Mapping[str, Op] = {f"/v1/{name}": op for name, op in OP_OF_TYPE.items()}
BATCH_ROUTE = "/v1/batch"

_person = msgspec.json.Decoder(Person)
_batch = msgspec.json.Decoder(BatchRequest)
_batch_item = msgspec.json.Decoder(BatchItem)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


class Hop(Protocol):
    """The part of the router that the gateway uses."""

    @property
    def map(self) -> PartitionMap: ...

    @property
    def reachable(self) -> bool: ...

    changes: int
    on_push: Callable[[bytes, bytes], None]

    async def call(
        self, op: Op, position: int, body: bytes, meta: bytes = b"", retry_safe: bool = False
    ) -> tuple[int, bytes]: ...

    async def call_shard(
        self, shard_id: str, op: Op, body: bytes = b"", meta: bytes = b""
    ) -> tuple[int, bytes]: ...

    async def refresh(self, epoch: int, wait_s: float) -> None: ...


class Control(Protocol):
    """The part of the coordinator that the gateway uses."""

    async def put_items(self, tenant: str, items_json: bytes) -> bytes: ...

    async def delete_items(self, tenant: str, ids: list[str]) -> list[bool]: ...

    async def put_document(
        self,
        tenant: str,
        kind: str,
        document_id: str,
        content: bytes,
        expected: int | None,
        dry_run: bool,
    ) -> bytes: ...

    async def get_document(
        self, tenant: str, kind: str, document_id: str, version: int | None
    ) -> bytes: ...

    async def delete_document(
        self, tenant: str, kind: str, document_id: str, expected: int | None
    ) -> bytes: ...

    async def list_documents(self, tenant: str, kind: str) -> bytes: ...

    async def start_import(self, tenant: str, spec_json: bytes) -> bytes: ...

    async def import_status(self, tenant: str, import_id: str) -> bytes | None: ...

    async def plan(self) -> bytes: ...

    async def reshape(self, request_json: bytes) -> bytes: ...

    async def reshapes(self) -> bytes: ...

    async def abort_reshape(self, reshape_id: str) -> bytes | None: ...

    async def nodes(self) -> bytes: ...

    async def drain(self, node_id: str) -> bytes: ...

    async def undrain(self, node_id: str) -> None: ...

    async def model_versions(self, tenant: str) -> bytes: ...

    async def roll_back_model(self, tenant: str, name: str) -> str | None: ...


Named = Person | BatchItem
"""What names a person."""


class Gateway:
    """Answers decide, track, identify, page and batch, given headers and body.

    body_timeout_s  how long a caller may take to send a body that does not come with its head
    """

    def __init__(
        self,
        keys: Keys,
        router: Hop,
        control: Control,
        gateway_id: str = "",
        body_timeout_s: float = 5.0,
    ) -> None:
        self.keys = keys
        self.body_timeout_s = body_timeout_s
        self.router = router
        self.pages = Pages(router)
        router.on_push = self.pages.on_push
        self.control = control
        self.gateway_id = gateway_id
        self.loop = asyncio.get_running_loop()
        self.counts: dict[tuple[str, int], int] = {}
        """Answers by (route, status)."""
        self.flag_keys: dict[str, tuple[float, list[str]]] = {}
        """Keys of flags by tenant, and until when (monotonic seconds) they are taken for all."""

    async def answer(self, path: str, headers: Sequence[Header], body: bytes) -> Answer:
        """The answer to a POST on one of FAST_ROUTES or on BATCH_ROUTE. Never raises an error."""
        try:
            caller = self.keys.caller_of(headers)
            if path == BATCH_ROUTE:
                answer = await self.batch(caller, body)
            else:
                answer = await self.message(FAST_ROUTES[path], caller, body)
        except Exception as error:
            answer = answer_of(error)
        self.count(path, answer.status)
        return answer

    async def message(self, op: Op, caller: Caller, body: bytes) -> Answer:
        """One message to its person's owner. Raises what `answer_of` understands."""
        return await self.forward(op, caller, _person.decode(body), body)

    async def forward(self, op: Op, caller: Caller, person: Named, body: bytes) -> Answer:
        """As `message`, where the person was read before."""
        limit = BODY_BYTES_MAX if op is Op.DECIDE else EVENT_BYTES_MAX
        if len(body) > limit:
            raise too_large("the message", len(body), limit)
        if caller.bucket is not None:
            caller.bucket.take(self.loop.time())
        position = position_of(caller, person)
        status, reply = await self.router.call(
            op, position, body, caller.meta, person.message_id is not None
        )
        return Answer(status, reply, RETRY_LATER.get(status, ()))

    async def batch(self, caller: Caller, body: bytes) -> Answer:
        """Each message to its own owner; results in order, each with its own status."""
        try:
            messages = _batch.decode(body).batch
        except msgspec.ValidationError as error:
            raise _batch_error(error) from None
        # Calls are started in order, so one person's messages reach the owner in order.
        answers = await asyncio.gather(*(self._batch_message(caller, raw) for raw in messages))
        return Answer(200, b'{"results":[%b]}' % b",".join(map(_result, answers)))

    async def _batch_message(self, caller: Caller, raw: msgspec.Raw) -> Answer:
        try:
            data = bytes(raw)
            item = _batch_item.decode(data)
            return await self.forward(OP_OF_TYPE[item.type], caller, item, without(data, "type"))
        except Exception as error:
            return answer_of(error)

    async def guarded(
        self, route: str, headers: Sequence[Header], work: Callable[[Caller], Awaitable[Answer]]
    ) -> Answer:
        """Run `work` for an sk_ caller. Never raises an error; counts every answer."""
        try:
            caller = self.keys.caller_of(headers)
            if caller.role != "sk":
                raise RequestError(403, "this key may not do that", "", "a pk_ key", "an sk_ key")
            answer = await work(caller)
        except Exception as error:
            answer = answer_of(error)
        self.count(route, answer.status)
        return answer

    def count(self, route: str, status: int) -> None:
        key = (route, status)
        self.counts[key] = self.counts.get(key, 0) + 1


def position_of(caller: Caller, person: Named) -> int:
    """Where the person of a message lives. Raises RequestError without an id or the right to it."""
    if person.user_id is not None:
        if caller.role != "sk":
            raise RequestError(
                403, "a pk_ key speaks for an anonymous visitor", "userId", "userId", "anonymousId"
            )
        return place(key_hash(caller.tenant, USER, person.user_id))
    if person.anonymous_id is not None:
        return place(key_hash(caller.tenant, ANONYMOUS, person.anonymous_id))
    raise RequestError(422, "the message names no person", "userId", "", "userId or anonymousId")


def without(data: bytes, *names: str) -> bytes:
    """A JSON object without these top-level names; all other values keep their bytes.

    >>> without(b'{"type": "track", "userId": "ada"}', "type")
    b'{"userId":"ada"}'
    """
    fields: dict[str, Any] = _fields.decode(data)
    for name in names:
        fields.pop(name, None)
    return _encode(fields)


def decode(data: bytes, wanted: Any) -> Any:
    """JSON as `wanted`. Raises RequestError naming field, seen and wanted."""
    try:
        return msgspec.json.decode(data, type=wanted)
    except DECODE_ERRORS as error:
        raise malformed(error) from None


def _batch_error(error: msgspec.ValidationError) -> RequestError:
    if "length" in str(error):
        return RequestError(
            422, "the batch has the wrong size", "batch", wanted=f"1 to {BATCH_MAX} messages"
        )
    return malformed(error)


def _result(answer: Answer) -> bytes:
    name = b"answer" if answer.status < 400 else b"problem"
    return b'{"status":%d,"%b":%b}' % (answer.status, name, answer.body)
