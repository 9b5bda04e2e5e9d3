"""What callers ask of a shard about treatment decisions: rewards, activation, closed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated
from zlib import crc32

import msgspec
from msgspec import Meta

from actors.checked import decode
from actors.messages import Finite, MessageId, Strict, Wire
from actors.people import Caller
from cluster.errors import RequestError
from cluster.frames import Op

if TYPE_CHECKING:
    from actors.shard_reads import ShardReads

PAGE_MAX = 200
"""Closed decisions of one page: with traces of 60 slots it still fits a frame."""
ID_BYTES = 32

Answer = tuple[int, bytes]
_encode = msgspec.json.Encoder().encode


class RewardRequest(Strict):
    """`POST /v1/decisions/{id}/reward`. slot_id None: the only slot, or the first."""

    value: Finite
    slot_id: Annotated[str, Meta(max_length=256)] | None = None
    message_id: MessageId | None = None


class RewardAnswer(Wire, omit_defaults=False):
    """value: the slot's reward from now on. duplicate: it had one, and the first counts."""

    duplicate: bool
    decision_id: str
    slot_id: str
    value: float


class Activation(Wire, omit_defaults=False):
    """duplicate: it was active before, and its window stays as it is."""

    duplicate: bool
    decision_id: str


class OutcomesRequest(Strict):
    """Closed decisions behind the `after`th that this shard closed."""

    after: Annotated[int, Meta(ge=0)] = 0
    count: Annotated[int, Meta(ge=1, le=PAGE_MAX)] = PAGE_MAX


class Outcome(Wire, omit_defaults=False):
    """A treatment decision whose rewards are known; by slot, where there are lists.

    rewarded  whether a reward came; where none did, `rewards` has the default
    trace     context, candidates, propensities: what evaluation needs, as base64
    """

    decision_id: str
    surface: str
    policy_id: str
    decided_at: int
    active: bool
    actions: list[str]
    slots: list[str]
    shadow: list[str]
    rewards: list[float]
    rewarded: list[bool]
    trace: bytes


class OutcomesPage(Wire, omit_defaults=False):
    """`next` is the `after` of the page that follows; done: there is none by now."""

    outcomes: list[Outcome]
    next: int
    done: bool


class RewardOps:
    """Handlers, as a shard calls them: (caller, body, arrived) -> (status, JSON)."""

    def __init__(self, state: ShardReads) -> None:
        self._state = state
        self._reward_decoder = msgspec.json.Decoder(RewardRequest)
        self._page_decoder = msgspec.json.Decoder(OutcomesRequest)
        self.handlers: dict[int, Callable[[Caller, bytes, int], Answer]] = {
            Op.REWARD: self._reward,
            Op.ACTIVATE: self._activate,
            Op.OUTCOMES: self._outcomes,
        }

    def _reward(self, caller: Caller, body: bytes, _: int) -> Answer:
        """body: the decision's id, then a RewardRequest."""
        number = self._number(body)
        if number is None:
            return self._state.moved()
        request = decode(self._reward_decoder, body[ID_BYTES:])
        token = 0 if request.message_id is None else crc32(request.message_id.encode()) or 1
        now_s = int(self._state.now())
        decision, place, duplicate = self._state.rewards.reward(
            caller.tenant, number, request.slot_id, request.value, now_s, token
        )
        value = decision.values[place] or 0.0
        decision_id = body[:ID_BYTES].decode()
        return 200, _encode(RewardAnswer(duplicate, decision_id, decision.slots[place], value))

    def _activate(self, caller: Caller, body: bytes, _: int) -> Answer:
        """body: the decision's id."""
        number = self._number(body)
        if number is None:
            return self._state.moved()
        fresh = self._state.rewards.activate(caller.tenant, number, int(self._state.now()))
        return 200, _encode(Activation(not fresh, body[:ID_BYTES].decode()))

    def _outcomes(self, caller: Caller, body: bytes, _: int) -> Answer:
        request = decode(self._page_decoder, body)
        rewards = self._state.rewards
        page, following = rewards.decisions.page(request.after, request.count)
        outcomes: list[Outcome] = []
        for one in page:
            # What is of another tenant, or of somebody who was erased, is not told.
            if one.tenant != caller.tenant or rewards.forgotten(one):
                continue
            outcomes.append(
                Outcome(
                    f"{one.place:016x}{one.number:016x}",
                    one.surface,
                    one.policy,
                    one.decided_s,
                    one.active,
                    one.arms,
                    one.slots,
                    one.shadow,
                    [value or 0.0 for value in one.values],
                    one.rewarded,
                    one.trace,
                )
            )
        done = following >= rewards.decisions.closed_total
        return 200, _encode(OutcomesPage(outcomes, following, done))

    def _number(self, body: bytes) -> int | None:
        """The number of the decision whose id a body begins with; None if it is another shard's.

        Raises RequestError (404) if it is no id.
        """
        try:
            place, number = int(body[:16], 16), int(body[16:ID_BYTES], 16)
        except ValueError:
            seen = repr(body[:ID_BYTES].decode("utf-8", "replace"))
            raise RequestError(404, "no such decision", "decisionId", seen) from None
        return number if place in self._state.key_range else None
