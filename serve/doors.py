"""What doors share: other services' APIs, answered by onehop, errors in the words of theirs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from fastapi import Request

from actors.decisions import DecideAnswer, Decision
from cluster.errors import RequestError
from cluster.frames import Op
from serve.auth import Caller
from serve.bodies import read_body
from serve.gateway import Gateway, decode
from serve.problems import PROBLEM_TYPE, Answer, answer_of

Work = Callable[[Gateway, Request], Awaitable[Answer]]
Scalar = str | float | bool

_answer = msgspec.json.Decoder(DecideAnswer)
_problem = msgspec.json.Decoder(dict[str, Any])


class Refused(Exception):
    """An answer that is no success, as a problem document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(status, problem)
        self.status = status
        self.field: str = problem.get("field", "")
        self.text: str = problem.get("detail") or problem.get("title", "")


async def body_of(gateway: Gateway, request: Request, wanted: Any) -> Any:
    """The body as `wanted`. Raises RequestError."""
    return decode(await read_body(gateway, request), wanted)


async def decide(gateway: Gateway, caller: Caller, fields: Mapping[str, Any]) -> list[Decision]:
    """The decisions of a decide call. Raises Refused, and what `answer_of` understands."""
    body = msgspec.json.encode(fields)
    answer = await gateway.message(Op.DECIDE, caller, body)
    if answer.status != 200:
        raise Refused(answer.status, _problem.decode(answer.body))
    return _answer.decode(answer.body).decisions


def told(error: Exception) -> Answer:
    """What the other service has no words for, as the problem document that it is."""
    answer = answer_of(error)
    return answer._replace(headers=(PROBLEM_TYPE, *answer.headers))


def only_scalars(known: Mapping[str, Any]) -> dict[str, Scalar]:
    """Text, finite numbers and truth values of a context; what is nested is left out."""
    return {name: value for name, value in known.items() if isinstance(value, str | int | float)}


def refusal_of(error: Exception) -> tuple[int, str]:
    """Status and text of what was raised; others are raised again."""
    if isinstance(error, Refused):
        return error.status, error.text
    if isinstance(error, RequestError):
        return error.status, str(error)
    raise error
