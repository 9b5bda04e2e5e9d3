"""Reading the body of a request that takes no fast lane, within its bounds."""

from __future__ import annotations

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from actors.messages import BODY_BYTES_MAX
from cluster.errors import RequestError
from cluster.keys import ANONYMOUS, USER
from serve.gateway import Gateway
from serve.problems import late_body, too_large


async def read_body(gateway: Gateway, request: Request) -> bytes:
    """The body. Raises RequestError: 413 beyond BODY_BYTES_MAX, before all of it is read; 408 if
    it does not come in time; 400 if the caller left."""
    body = bytearray()
    try:
        async with asyncio.timeout(gateway.body_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    raise too_large("the body", len(body), BODY_BYTES_MAX)
    except TimeoutError:
        raise late_body() from None
    except ClientDisconnect:
        raise RequestError(400, "the caller left before the body ended") from None
    return bytes(body)


def profile_id(text: str) -> tuple[str, str, str]:
    """Field, id type and id of a profile's path.

    >>> profile_id("anonymousId:v1"), profile_id("ada")
    (('anonymousId', 'a', 'v1'), ('userId', 'u', 'ada'))
    """
    head, colon, rest = text.partition(":")
    if colon and head == "anonymousId":
        return head, ANONYMOUS, rest
    return "userId", USER, rest if colon and head == "userId" else text
