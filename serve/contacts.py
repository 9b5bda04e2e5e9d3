"""Contacts over HTTP: consents and suppression of a person, messages of a tenant."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import Request

from actors.contact_messages import Consents, Shown, Suppress
from cluster.errors import RequestError, Unavailable
from cluster.frames import Op
from cluster.keys import key_hash, place
from serve.auth import Caller
from serve.bodies import profile_id, read_body
from serve.gateway import Gateway, decode
from serve.operation import Operation
from serve.problems import Answer

Work = Callable[[Gateway, Caller, Request], Awaitable[Answer]]

LETTERS_MAX = 1000
_MESSAGE_ID = re.compile("[0-9a-f]{32}")


class ConsentsAnswer(msgspec.Struct):
    """All consents of a person."""

    consents: dict[str, bool]


class SuppressedAnswer(msgspec.Struct):
    """Where nothing is sent, and until when; null = for good."""

    suppressed: dict[str, str | None]


class DeadLetters(msgspec.Struct):
    """Messages that were given up. truncated: a shard has more than it tells."""

    messages: list[Shown]


async def put_consents(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return await _of_person(gateway, caller, request, Op.CONSENTS_PUT, Consents)


async def suppress(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return await _of_person(gateway, caller, request, Op.SUPPRESS, Suppress)


async def _of_person(
    gateway: Gateway, caller: Caller, request: Request, op: Op, wanted: Any
) -> Answer:
    field, id_type, person_id = profile_id(request.path_params["id"])
    fields = decode(await read_body(gateway, request) or b"{}", dict[str, msgspec.Raw])
    fields.pop("userId", None), fields.pop("anonymousId", None)
    fields[field] = msgspec.Raw(msgspec.json.encode(person_id))
    body = msgspec.json.encode(fields)
    decode(body, wanted)
    position = place(key_hash(caller.tenant, id_type, person_id))
    return Answer(*await gateway.router.call(op, position, body, caller.meta, True))


async def get_message(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return await _of_message(gateway, caller, request, Op.MESSAGE_GET)


async def redrive(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return await _of_message(gateway, caller, request, Op.REDRIVE)


async def discard(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    return await _of_message(gateway, caller, request, Op.DISCARD)


async def _of_message(gateway: Gateway, caller: Caller, request: Request, op: Op) -> Answer:
    message_id: str = request.path_params["id"]
    if not _MESSAGE_ID.fullmatch(message_id):
        wanted = "32 hexadecimal digits, lower case"
        raise RequestError(422, "no message has such an id", "id", message_id, wanted)
    position = int(message_id[:16], 16)
    body = message_id.encode()
    return Answer(*await gateway.router.call(op, position, body, caller.meta, True))


async def dead_letters(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    """The latest of every shard. Raises Unavailable if one can't be asked: a list that lacks some
    would look as if there were none."""

    async def ask(shard_id: str) -> list[msgspec.Raw]:
        status, body = await gateway.router.call_shard(shard_id, Op.DEAD_LETTERS, b"", caller.meta)
        if status != 200:
            raise Unavailable(f"shard {shard_id} answered {status}")
        return msgspec.json.decode(body, type=list[msgspec.Raw])

    shards = [owner.shard_id for owner in gateway.router.map.owners]
    found = await asyncio.gather(*map(ask, shards))
    letters = [letter for of_shard in found for letter in of_shard]
    return Answer(200, msgspec.json.encode({"messages": letters[:LETTERS_MAX]}))


CONTACT_ROUTES: tuple[tuple[str, str, Work], ...] = (
    ("PUT", "/v1/profiles/{id:path}/consents", put_consents),
    ("POST", "/v1/profiles/{id:path}/suppress", suppress),
    ("GET", "/v1/deadletters", dead_letters),
    ("GET", "/v1/messages/{id}", get_message),
    ("DELETE", "/v1/messages/{id}", discard),
    ("POST", "/v1/messages/{id}:redrive", redrive),
)

CONTACT_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "put",
        "/v1/profiles/{id}/consents",
        "What a person agreed to, by purpose",
        Consents,
        ConsentsAnswer,
    ),
    Operation(
        "post",
        "/v1/profiles/{id}/suppress",
        "Send a person nothing, or nothing over some channels",
        Suppress,
        SuppressedAnswer,
    ),
    Operation("get", "/v1/deadletters", "Messages that were given up", answer=DeadLetters),
    Operation("get", "/v1/messages/{id}", "A message that is pending or dead", answer=Shown),
    Operation("delete", "/v1/messages/{id}", "Discard a message"),
    Operation("post", "/v1/messages/{id}:redrive", "Send a dead letter again"),
)
