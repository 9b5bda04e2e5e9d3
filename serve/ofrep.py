"""OpenFeature's Remote Evaluation Protocol (OFREP 0.3): flags, for every OpenFeature SDK.

The targeting key is the person: a user for sk_ keys ("anonymousId:..." for a visitor), a visitor
for pk_ keys. The rest of the context is the context of the decision.
"""

from __future__ import annotations

from hashlib import sha256
from time import monotonic
from typing import Any

import msgspec
from fastapi import Request

from actors.decisions import Decision
from actors.document_desk import DocumentsAnswer
from actors.messages import DECISIONS_MAX, Name, Wire
from serve.auth import Caller
from serve.doors import Refused, body_of, decide, only_scalars, refusal_of, told
from serve.gateway import Gateway
from serve.operation import Operation
from serve.problems import Answer

KEYS_KEPT_S = 1.0
"""How long a gateway remembers which flags there are."""


class EvaluationRequest(Wire):
    """What is known of the person; `targetingKey` says who it is."""

    context: dict[str, Any] = {}


class Evaluation(Wire, omit_defaults=False):
    """One flag. metadata tells the decision, for rewards."""

    key: str
    reason: str
    variant: str
    value: Any
    metadata: dict[str, str | float | bool]


class Failure(Wire):
    """Why a flag, or the request, was not evaluated."""

    error_code: str
    error_details: str = ""
    key: str | None = None


class Evaluations(Wire, omit_defaults=False):
    """All flags of the tenant."""

    flags: list[Evaluation]


class InvalidContext(Exception):
    """The context names nobody."""


async def evaluate_flag(gateway: Gateway, request: Request) -> Answer:
    key: Name = request.path_params["key"]
    try:
        caller = gateway.keys.caller_of(request.scope["headers"])
        wanted: EvaluationRequest = await body_of(gateway, request, EvaluationRequest)
        (evaluation,) = await _evaluate(gateway, caller, wanted.context, [key])
        return Answer(200, msgspec.json.encode(evaluation))
    except Exception as error:
        return _failed(error, key)


async def evaluate_flags(gateway: Gateway, request: Request) -> Answer:
    try:
        caller = gateway.keys.caller_of(request.scope["headers"])
        wanted: EvaluationRequest = await body_of(gateway, request, EvaluationRequest)
        keys = await _flag_keys(gateway, caller)
        flags = await _evaluate(gateway, caller, wanted.context, keys)
    except Exception as error:
        return _failed(error, None)
    # Which decision it was differs every time; what the page shows need not.
    shown = [(one.key, one.reason, one.variant, one.value) for one in flags]
    etag = b'"%b"' % sha256(msgspec.json.encode(shown)).hexdigest()[:32].encode()
    headers = ((b"etag", etag),)
    if request.headers.get("if-none-match", "").encode() == etag:
        return Answer(304, b"", headers)
    return Answer(200, msgspec.json.encode(Evaluations(flags)), headers)


async def _evaluate(
    gateway: Gateway, caller: Caller, context: dict[str, Any], keys: list[str]
) -> list[Evaluation]:
    person = _person(caller, context)
    named = only_scalars({name: v for name, v in context.items() if name != "targetingKey"})
    found: list[Evaluation] = []
    for start in range(0, len(keys), DECISIONS_MAX):
        part = keys[start : start + DECISIONS_MAX]
        asked = [{"surface": "ui", "flagKey": key} for key in part]
        made = await decide(gateway, caller, person | {"context": named, "decisions": asked})
        found += [_evaluation(key, one) for key, one in zip(part, made, strict=True)]
    return found


def _person(caller: Caller, context: dict[str, Any]) -> dict[str, str]:
    key = context.get("targetingKey")
    if not isinstance(key, str) or not key:
        raise InvalidContext("targetingKey is missing: it says for whom the flag is evaluated")
    head, colon, rest = key.partition(":")
    if colon and rest and head == "anonymousId":
        return {"anonymousId": rest}
    return {"anonymousId": key} if caller.role == "pk" else {"userId": key}


def _evaluation(key: str, made: Decision) -> Evaluation:
    flag = made.flags[key]
    metadata: dict[str, str | float | bool] = {"decisionId": made.decision_id}
    if made.experiment is not None:
        metadata |= {
            "experiment": made.experiment.key,
            "experimentVariant": made.experiment.variant,
        }
    if made.holdout is not None:
        metadata["holdout"] = made.holdout
    return Evaluation(key, flag.reason, flag.variant, flag.value, metadata)


async def _flag_keys(gateway: Gateway, caller: Caller) -> list[str]:
    kept = gateway.flag_keys.get(caller.tenant)
    if kept is None or kept[0] < monotonic():
        listed = await gateway.control.list_documents(caller.tenant, "flags")
        keys = [one.id for one in msgspec.json.decode(listed, type=DocumentsAnswer).documents]
        kept = gateway.flag_keys[caller.tenant] = (monotonic() + KEYS_KEPT_S, keys)
    return kept[1]


def _failed(error: Exception, key: str | None) -> Answer:
    """The failure in OFREP's words; what it has none for stays a problem document."""
    code, status, text = "GENERAL", 400, str(error)
    if isinstance(error, InvalidContext):
        code = "TARGETING_KEY_MISSING"
    else:
        try:
            status, text = refusal_of(error)
        except Exception:
            return told(error)
        if isinstance(error, Refused) and error.field.endswith("flagKey"):
            status, code = 404, "FLAG_NOT_FOUND"
        elif status in (400, 422):
            code = "PARSE_ERROR" if status == 400 else "INVALID_CONTEXT"
            status = 400
    return Answer(status, msgspec.json.encode(Failure(code, text, key)))


OFREP_ROUTES = (
    ("POST", "/ofrep/v1/evaluate/flags/{key:path}", evaluate_flag),
    ("POST", "/ofrep/v1/evaluate/flags", evaluate_flags),
)

OFREP_OPERATIONS = (
    Operation(
        "post",
        "/ofrep/v1/evaluate/flags/{key}",
        "One flag, by OpenFeature's remote evaluation protocol",
        EvaluationRequest,
        Evaluation,
        keys=("pk_", "sk_"),
        failure=Failure,
    ),
    Operation(
        "post",
        "/ofrep/v1/evaluate/flags",
        "All flags; 304 if they are as `If-None-Match` knows them",
        EvaluationRequest,
        Evaluations,
        keys=("pk_", "sk_"),
        failure=Failure,
    ),
)
