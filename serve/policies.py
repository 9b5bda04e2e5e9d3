"""Policies as they live: promoted, rolled back, frozen, stopped; and what their versions earned.

Each is a new version of the policy's document, put as any other: answered when every shard has it
on disk, kept with its time, taken back by another. There is no second way to change a policy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from fastapi import Request

from actors.comparison import Compared, Estimate, merged
from actors.document_desk import DocumentAnswer
from actors.messages import Wire
from cluster.errors import RequestError
from serve.auth import Caller
from serve.documents import answer_of_document, flag_of
from serve.gateway import Gateway
from serve.operation import Operation
from serve.problems import Answer
from serve.reports import books_of

Work = Callable[[Gateway, Caller, Request], Awaitable[Answer]]

KIND = "policies"
PROMOTE_DECISIONS = 1000
"""Closed decisions that a comparison needs before a policy is promoted by it."""
TRIES_MAX = 5
"""How often a change is tried again because another one came between."""
_NUMBER = re.compile("0|[1-9][0-9]{0,8}")


class Worth(Wire, omit_defaults=False):
    """A mean reward per decision with its 95 % interval; null where too little is known.

    effective  decisions that it rests on
    """

    value: float | None
    low: float | None
    high: float | None
    effective: float


class VersionReport(Wire, omit_defaults=False):
    """Closed decisions that were made under one version of a policy's document.

    earned     by what was shown: by the baseline in the modes shadow, apprentice and off
    agreement  share of slots in which the policy drew what the baseline shows
    ips, snips what would have been earned by what did not act. While a policy acts that is the
               baseline. Of a policy that watches less is known: the baseline shows what it shows
               with probability 1, so of what would come where the policy differs nothing is seen.
               ips counts that as nothing, a lower bound where rewards are not negative; snips is
               the mean where it agrees
    """

    version: int
    mode: str
    decisions: int
    earned: Worth
    agreement: float | None = None
    ips: Worth | None = None
    snips: Worth | None = None


class PolicyReport(Wire, omit_defaults=False):
    """A policy as it is now, and its last versions that made decisions, the newest first."""

    id: str
    version: int
    mode: str
    versions: list[VersionReport]


class _Now(NamedTuple):
    """The document that is in force."""

    version: int
    fields: dict[str, msgspec.Raw]

    @property
    def mode(self) -> str:
        raw = self.fields.get("mode")
        return "online" if raw is None else msgspec.json.decode(raw, type=str)


async def get_report(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    policy_id: str = request.path_params["id"]
    now = await _now(gateway, caller, policy_id)
    versions = [_reported(one) for one in await _compared(gateway, caller, policy_id)]
    report = PolicyReport(policy_id, now.version, now.mode, versions)
    return Answer(200, msgspec.json.encode(report))


async def promote(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    """Let a policy act that has watched so far. Raises RequestError (409) if it has not watched
    for long enough; `force=true` asks for no comparison."""
    policy_id: str = request.path_params["id"]
    force = flag_of(request, "force")
    needed = _number(request, "minDecisions", PROMOTE_DECISIONS)
    compared = [] if force else await _compared(gateway, caller, policy_id)

    def check(now: _Now) -> None:
        if force or now.mode == "online":
            return
        if now.mode not in ("shadow", "apprentice"):
            wanted = "shadow or apprentice; force=true promotes without a comparison"
            raise RequestError(
                409, "the policy does not watch a baseline", "mode", now.mode, wanted
            )
        seen = sum(one.n for one in compared if one.version == now.version and one.slots)
        if seen < needed:
            wanted = f"at least {needed} closed decisions of this version; force=true asks for none"
            raise RequestError(
                409, "the comparison has too few decisions", "decisions", str(seen), wanted
            )

    return await _set_mode(gateway, caller, policy_id, "online", check)


async def roll_back(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    """Put a version of before, the last one unless `version` names another. What was learned
    stays: the sums of a policy have no versions."""
    policy_id: str = request.path_params["id"]
    for left in range(TRIES_MAX - 1, -1, -1):
        now = await _now(gateway, caller, policy_id)
        wanted = _number(request, "version", now.version - 1)
        if wanted < 1:
            raise RequestError(409, "there is no version before", "version", str(now.version), "2")
        before = await _now(gateway, caller, policy_id, wanted)
        done = await _put(gateway, caller, policy_id, before.fields, now.version, left)
        if done is not None:
            return done
    raise AssertionError


async def freeze(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    """Let it act by what it knows, and learn nothing more."""
    return await _set_mode(gateway, caller, request.path_params["id"], "frozen")


async def stop(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    """The kill switch: the baseline acts, on every shard once this is answered, restarts
    included."""
    return await _set_mode(gateway, caller, request.path_params["id"], "off")


async def _set_mode(
    gateway: Gateway,
    caller: Caller,
    policy_id: str,
    mode: str,
    check: Callable[[_Now], None] = lambda now: None,
) -> Answer:
    for left in range(TRIES_MAX - 1, -1, -1):
        now = await _now(gateway, caller, policy_id)
        check(now)
        fields = now.fields | {"mode": msgspec.Raw(msgspec.json.encode(mode))}
        done = await _put(gateway, caller, policy_id, fields, now.version, left)
        if done is not None:
            return done
    raise AssertionError


async def _put(
    gateway: Gateway,
    caller: Caller,
    policy_id: str,
    fields: dict[str, msgspec.Raw],
    expected: int,
    left: int,
) -> Answer | None:
    """Put the next version; None if somebody else put one meanwhile, and tries are left."""
    content = msgspec.json.encode(fields)
    try:
        return answer_of_document(
            await gateway.control.put_document(
                caller.tenant, KIND, policy_id, content, expected, False
            )
        )
    except RequestError as error:
        if error.status == 412 and left:
            return None
        raise


async def _now(
    gateway: Gateway, caller: Caller, policy_id: str, version: int | None = None
) -> _Now:
    found = await gateway.control.get_document(caller.tenant, KIND, policy_id, version)
    answer = msgspec.json.decode(found, type=DocumentAnswer)
    return _Now(answer.version, msgspec.json.decode(answer.document, type=dict[str, msgspec.Raw]))


async def _compared(gateway: Gateway, caller: Caller, policy_id: str) -> list[Compared]:
    every = await books_of(gateway, caller)
    return merged(books.compared.get(policy_id, []) for books in every)


def _reported(one: Compared) -> VersionReport:
    report = VersionReport(one.version, one.mode, one.n, _worth(one.acted))
    if one.slots:
        report.agreement = one.agreed / one.slots
        report.ips, report.snips = _worth(one.ips), _worth(one.snips)
    return report


def _worth(found: Estimate) -> Worth:
    numbers = (found.value, found.low, found.high)
    value, low, high = (number if math.isfinite(number) else None for number in numbers)
    return Worth(value, low, high, found.effective)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise RequestError(422, "this is no number", name, text, "a whole number, as 3")
    return int(text)


POLICY_ROUTES: tuple[tuple[str, str, Work], ...] = (
    ("GET", "/v1/policies/{id}/report", get_report),
    ("POST", "/v1/policies/{id}/promote", promote),
    ("POST", "/v1/policies/{id}/rollback", roll_back),
    ("POST", "/v1/policies/{id}/freeze", freeze),
    ("POST", "/v1/policies/{id}/stop", stop),
)

POLICY_OPERATIONS = (
    Operation(
        "get",
        "/v1/policies/{id}/report",
        "What a policy's versions earned, and what did not act would have",
        answer=PolicyReport,
    ),
    Operation(
        "post",
        "/v1/policies/{id}/promote",
        "Let a policy act that has watched the baseline",
        answer=DocumentAnswer,
        query=(("force", "boolean"), ("minDecisions", "integer")),
    ),
    Operation(
        "post",
        "/v1/policies/{id}/rollback",
        "Put the version of a policy's document that was before",
        answer=DocumentAnswer,
        query=(("version", "integer"),),
    ),
    Operation(
        "post",
        "/v1/policies/{id}/freeze",
        "Let a policy act by what it knows, and learn nothing more",
        answer=DocumentAnswer,
    ),
    Operation(
        "post",
        "/v1/policies/{id}/stop",
        "Kill switch: the baseline acts, on every shard",
        answer=DocumentAnswer,
    ),
)
