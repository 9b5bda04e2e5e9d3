"""Azure Personalizer's API v1.0 as a door, for those whose hosted service ends.

There is no person in it: an event lives where its `eventId` leads, as a visitor of that name, so
a reward finds its owner without looking anything up. Rank events are kept for as long as message
ids are; a policy document named `personalizer` sets rule, window and mode, as its Settings did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import numpy as np
from fastapi import Request
from msgspec import Meta

from actors.decisions import Decision
from actors.messages import Name, Wire
from actors.treatment.policy import PERSONALIZER
from cluster.errors import RequestError
from cluster.frames import Op
from cluster.keys import ANONYMOUS, key_hash, place
from serve.auth import Caller
from serve.doors import Refused, body_of, decide, refusal_of, told
from serve.gateway import Gateway
from serve.operation import Operation
from serve.problems import Answer

ACTIONS_MAX = 50
EventId = Annotated[str, Meta(min_length=1, max_length=100)]
Feature = str | float | bool


class RankableAction(Wire):
    """One action. features: a list of objects, whose values may be objects of values."""

    id: Name
    features: list[dict[str, Any]] = []


class RankRequest(Wire):
    """`POST /rank`."""

    actions: Annotated[list[RankableAction], Meta(min_length=1, max_length=ACTIONS_MAX)]
    context_features: list[dict[str, Any]] = []
    excluded_actions: Annotated[list[str], Meta(max_length=ACTIONS_MAX)] = []
    event_id: EventId | None = None
    defer_activation: bool = False


class RankedAction(Wire, omit_defaults=False):
    id: str
    probability: float


class RankResponse(Wire, omit_defaults=False):
    """The actions, best first; one that was excluded keeps its place, with probability 0."""

    ranking: list[RankedAction]
    event_id: str
    reward_action_id: str


class SlotRequest(Wire):
    """One slot, in the order in which they are filled."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    baseline_action: str
    features: list[dict[str, Any]] = []
    excluded_actions: Annotated[list[str], Meta(max_length=ACTIONS_MAX)] = []


class MultiSlotRankRequest(Wire):
    """`POST /multislot/rank`."""

    actions: Annotated[list[RankableAction], Meta(min_length=1, max_length=ACTIONS_MAX)]
    slots: Annotated[list[SlotRequest], Meta(min_length=1, max_length=ACTIONS_MAX)]
    context_features: list[dict[str, Any]] = []
    event_id: EventId | None = None
    defer_activation: bool = False


class SlotResponse(Wire, omit_defaults=False):
    id: str
    reward_action_id: str


class MultiSlotRankResponse(Wire, omit_defaults=False):
    slots: list[SlotResponse]
    event_id: str


class RewardRequest(Wire):
    """`POST /events/{eventId}/reward`."""

    value: Annotated[float, Meta(ge=-1e9, le=1e9)]


class SlotReward(Wire):
    slot_id: Name
    value: Annotated[float, Meta(ge=-1e9, le=1e9)]


class MultiSlotRewardRequest(Wire):
    """`POST /multislot/events/{eventId}/reward`."""

    reward: Annotated[list[SlotReward], Meta(min_length=1, max_length=ACTIONS_MAX)]


class ErrorBody(Wire, omit_defaults=False):
    code: str
    message: str


class ErrorResponse(Wire, omit_defaults=False):
    """A failure in Azure's words."""

    error: ErrorBody


async def rank(gateway: Gateway, request: Request, caller: Caller) -> Answer:
    wanted: RankRequest = await body_of(gateway, request, RankRequest)
    ids = [action.id for action in wanted.actions]
    eligible = [one for one in wanted.actions if one.id not in wanted.excluded_actions]
    if not eligible:
        raise RequestError(422, "every action is excluded", "excludedActions", "", "one left")
    event_id = wanted.event_id or uuid4().hex
    spec = {"numResults": 1, "actions": [_action(one) for one in eligible]}
    made = await _ask(gateway, caller, event_id, wanted, spec)
    chosen, chances = made.ranking[0].id, made.chances
    rest = [one.id for one in eligible if one.id != chosen]
    ranked = iter([chosen, *sorted(rest, key=lambda i: -chances.get(i, 0.0))])
    # An action that was excluded stays where it stood.
    order = [i if i in wanted.excluded_actions else next(ranked) for i in ids]
    ranking = [RankedAction(i, chances.get(i, 0.0)) for i in order]
    answer = RankResponse(ranking, event_id, chosen)
    return Answer(201, msgspec.json.encode(answer))


async def rank_slots(gateway: Gateway, request: Request, caller: Caller) -> Answer:
    wanted: MultiSlotRankRequest = await body_of(gateway, request, MultiSlotRankRequest)
    if len(wanted.slots) > len(wanted.actions):
        seen, limit = str(len(wanted.slots)), f"at most {len(wanted.actions)}, one per action"
        raise RequestError(422, "there are more slots than actions", "slots", seen, limit)
    if any(slot.excluded_actions for slot in wanted.slots):
        await asyncio.to_thread(_check_slots, wanted)
    event_id = wanted.event_id or uuid4().hex
    slots = [
        {
            "id": slot.id,
            "baselineAction": slot.baseline_action,
            "excludedActions": slot.excluded_actions,
        }
        for slot in wanted.slots
    ]
    spec = {"slots": slots, "actions": [_action(one) for one in wanted.actions]}
    made = await _ask(gateway, caller, event_id, wanted, spec)
    filled = [SlotResponse(slot.id, slot.reward_action_id) for slot in made.slots]
    return Answer(201, msgspec.json.encode(MultiSlotRankResponse(filled, event_id)))


def _check_slots(wanted: MultiSlotRankRequest) -> None:
    """Raises RequestError unless all slots can be filled at once with different actions."""
    # Compiled code takes a third of a second of CPU to load, and few callers need it.
    from actors.treatment.slots import fillable

    ids = [action.id for action in wanted.actions]
    without = [set(slot.excluded_actions) for slot in wanted.slots]
    allowed = np.array([[i not in out for i in ids] for out in without], np.bool_)
    filled = fillable(allowed, np.full(len(without), -1, np.int32))
    if filled < len(without):
        raise RequestError(
            422,
            "the slots leave no action for this one",
            f"slots[{filled}].excludedActions",
            repr(wanted.slots[filled].excluded_actions),
            "exclusions under which every slot gets an action of its own",
        )


async def reward(gateway: Gateway, request: Request, caller: Caller) -> Answer:
    wanted: RewardRequest = await body_of(gateway, request, RewardRequest)
    event_id = _event_id(request)
    decision_id = await _decision_id(gateway, caller, event_id)
    await _told(gateway, caller, Op.REWARD, decision_id, {"value": wanted.value})
    return Answer(204, b"")


async def reward_slots(gateway: Gateway, request: Request, caller: Caller) -> Answer:
    wanted: MultiSlotRewardRequest = await body_of(gateway, request, MultiSlotRewardRequest)
    decision_id = await _decision_id(gateway, caller, _event_id(request))
    for one in wanted.reward:
        body = {"value": one.value, "slotId": one.slot_id}
        await _told(gateway, caller, Op.REWARD, decision_id, body)
    return Answer(204, b"")


async def activate(gateway: Gateway, request: Request, caller: Caller) -> Answer:
    decision_id = await _decision_id(gateway, caller, _event_id(request))
    await _told(gateway, caller, Op.ACTIVATE, decision_id, None)
    return Answer(204, b"")


async def _ask(
    gateway: Gateway,
    caller: Caller,
    event_id: str,
    wanted: RankRequest | MultiSlotRankRequest,
    spec: Mapping[str, Any],
) -> Decision:
    policy = {"surface": "content", "policy": PERSONALIZER} | dict(spec)
    fields = {
        "anonymousId": event_id,
        "messageId": message_of(event_id),
        "context": flat(wanted.context_features),
        "decisions": [policy],
        "deferActivation": wanted.defer_activation,
        "explain": True,
    }
    (made,) = await decide(gateway, caller, fields)
    return made


async def _decision_id(gateway: Gateway, caller: Caller, event_id: str) -> str:
    """The decision that a rank event made. Raises Refused (404) if there was none."""
    position = place(key_hash(caller.tenant, ANONYMOUS, event_id))
    body = msgspec.json.encode({"anonymousId": event_id, "messageId": message_of(event_id)})
    status, content = await gateway.router.call(Op.DECISION_FIND, position, body, caller.meta, True)
    if status != 200:
        raise Refused(status, msgspec.json.decode(content))
    found: str = msgspec.json.decode(content)["decisionId"]
    return found


async def _told(
    gateway: Gateway, caller: Caller, op: Op, decision_id: str, fields: Mapping[str, Any] | None
) -> None:
    content = decision_id.encode() + (b"" if fields is None else msgspec.json.encode(fields))
    position = int(decision_id[:16], 16)
    status, body = await gateway.router.call(op, position, content, caller.meta, True)
    if status != 200:
        raise Refused(status, msgspec.json.decode(body))


def message_of(event_id: str) -> str:
    """The message id under which a rank event is remembered."""
    return f"{PERSONALIZER}:{event_id}"


def flat(features: list[dict[str, Any]]) -> dict[str, Feature]:
    """Features of Azure's form by name; those of a namespace as "namespace.name".

    >>> flat([{"user": {"age": 20, "tags": ["a", "b"]}}, {"device": "ios"}])
    {'user.age': 20, 'user.tags.a': True, 'user.tags.b': True, 'device': 'ios'}
    """
    found: dict[str, Feature] = {}
    for one in features:
        _flatten("", one, found, 0)
    return found


def _flatten(prefix: str, value: Any, found: dict[str, Feature], depth: int) -> None:
    if len(found) >= 256 or depth > 8:
        return
    if isinstance(value, dict):
        for name, part in value.items():
            _flatten(f"{prefix}.{name}" if prefix else str(name), part, found, depth + 1)
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, str):
                found[f"{prefix}.{part}"[:256]] = True
            else:
                _flatten(prefix, part, found, depth + 1)
    elif isinstance(value, str | bool | int | float) and prefix:
        found[prefix[:256]] = value


def _action(action: RankableAction) -> dict[str, Any]:
    named = list(flat(action.features).items())[:64]
    return {"id": action.id, "features": dict(named)}


def _event_id(request: Request) -> str:
    event_id: str = request.path_params["eventId"]
    if not 0 < len(event_id) <= 100:
        raise RequestError(422, "the id is not usable", "eventId", event_id, "1 to 100 characters")
    return event_id


Door = Callable[[Gateway, Request, Caller], Awaitable[Answer]]


def _guarded(door: Door) -> Callable[[Gateway, Request], Awaitable[Answer]]:
    """A door whose failures are in Azure's words."""

    async def work(gateway: Gateway, request: Request) -> Answer:
        try:
            caller = gateway.keys.caller_of(_headers(request))
            if caller.role != "sk":
                raise RequestError(403, "this key may not do that", "", "a pk_ key", "an sk_ key")
            return await door(gateway, request, caller)
        except Exception as error:
            try:
                status, text = refusal_of(error)
            except Exception:
                return told(error)
            status = 400 if status == 422 else status
            code = {
                404: "EventNotFound",
                403: "Forbidden",
                409: "EventKeyConflict",
                410: "EventExpired",
            }
            failure = ErrorResponse(ErrorBody(code.get(status, "BadRequest"), text))
            return Answer(status, msgspec.json.encode(failure))

    work.__name__ = door.__name__
    return work


def _headers(request: Request) -> list[tuple[bytes, bytes]]:
    """The headers, Azure's name of the key as ours."""
    return [
        (b"x-api-key" if name == b"ocp-apim-subscription-key" else name, value)
        for name, value in request.scope["headers"]
    ]


_BASE = "/personalizer/v1.0"
_TABLE: tuple[tuple[str, Door, Any, Any, int, str], ...] = (
    ("/rank", rank, RankRequest, RankResponse, 201, "Azure Personalizer: rank actions"),
    (
        "/multislot/rank",
        rank_slots,
        MultiSlotRankRequest,
        MultiSlotRankResponse,
        201,
        "Azure Personalizer: fill slots",
    ),
    ("/events/{eventId}/reward", reward, RewardRequest, None, 204, "Azure Personalizer: reward"),
    ("/events/{eventId}/activate", activate, None, None, 204, "Azure Personalizer: activate"),
    (
        "/multislot/events/{eventId}/reward",
        reward_slots,
        MultiSlotRewardRequest,
        None,
        204,
        "Azure Personalizer: rewards of slots",
    ),
    (
        "/multislot/events/{eventId}/activate",
        activate,
        None,
        None,
        204,
        "Azure Personalizer: activate slots",
    ),
)

PERSONALIZER_ROUTES = tuple(("POST", _BASE + path, _guarded(door)) for path, door, *_ in _TABLE)

PERSONALIZER_OPERATIONS = tuple(
    Operation(
        "post", _BASE + path, summary, wanted, answer, status, ("sk_",), failure=ErrorResponse
    )
    for path, _, wanted, answer, status, summary in _TABLE
)
