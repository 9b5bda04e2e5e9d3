"""What came of a treatment decision: rewards that arrive late or never, learned when it is known.

A decision stays open for its policy's window. A reward counts once per slot (or adds up); when the
window closes, what got none gets the default, and then all of it is learned: what is learned is
not biased towards what is told early. Every change is a record; replay does the same again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors.comparison import compared_of, count
from actors.ledger import Opened as Opening
from actors.ledger import pack, unpack
from actors.open_decisions import TOKENS_MAX, OpenDecision, OpenDecisions
from actors.records import Activated, Closed, Rewarded
from actors.treatment.baseline import baseline_odds
from actors.treatment.policy import Policy, default_policy
from actors.treatment.traces import traced
from cluster.errors import RequestError, StoreFull

if TYPE_CHECKING:
    from actors.state import ShardState

LOG = logging.getLogger("onehop.actors")

CLOSE_MAX = 500
"""Decisions that close in one turn: some 10 ms."""
MEMORIES_MAX = 8
"""Policies of which a person's memory is kept."""
FEATURES_TOLD = 10
UNACTIVATED_S = 86_400
"""How long a decision may wait for its activation; without one nothing is learned from it."""


class Rewards:
    """The treatment decisions of one shard, open and lately closed."""

    def __init__(self, state: ShardState, bytes_max: int) -> None:
        self._state = state
        self.decisions = OpenDecisions(bytes_max)
        self.closed_early = 0
        self.refused_late = 0

    # What callers do: checked, applied, logged.

    def waiting(
        self, tenant: str, key: bytes, opened: Sequence[Opening], now_s: int
    ) -> list[OpenDecision]:
        """What was decided for a person in one call, as it waits for rewards; nothing changes yet.

        It belongs into the record of that call: one without the other would be half a decision.
        """
        profiled = self._state.store.find(key) >= 0 if opened else False
        return [_waiting(tenant, key, one, now_s, profiled) for one in opened]

    def reward(
        self,
        tenant: str,
        number: int,
        slot_id: str | None,
        value: float,
        now_s: int,
        token: int = 0,
    ) -> tuple[OpenDecision, int, bool]:
        """Take a reward; returns the decision, the slot's place, and whether it had one before.

        token  a number of the message id: where rewards add up, one that comes again counts once

        Raises RequestError: 404 no such decision, 409 its window has closed, 410 so long ago that
        it is no longer kept, 422 no such slot.
        """
        decision = self._open(tenant, number, now_s)
        place = 0
        if slot_id is not None:
            if slot_id not in decision.slots:
                wanted = ", ".join(decision.slots)
                raise RequestError(422, "no such slot", "slotId", repr(slot_id), wanted)
            place = decision.slots.index(slot_id)
        policy = self._policy(decision)
        first_counts = policy.spec.reward_aggregation == "earliest"
        had = first_counts and decision.values[place] is not None
        if had or (token and token in decision.tokens):
            return decision, place, True
        record = Rewarded(number, place, value, now_s, token)
        self.apply_rewarded(record)
        self._state.log(record)
        return decision, place, False

    def activate(self, tenant: str, number: int, now_s: int) -> bool:
        """Let a decision's window begin; returns whether it had not begun before."""
        decision = self._open(tenant, number, now_s)
        if decision.active:
            return False
        record = Activated(number, now_s)
        self.apply_activated(record)
        self._state.log(record)
        return True

    def close_due(self, now_s: int) -> int:
        """Close what is due, at most CLOSE_MAX; returns how many did."""
        due = self._due(now_s)
        if due is None:
            return 0
        record = Closed(now_s)
        before = self.decisions.closed_total
        self.apply_closed(record)
        self._state.log(record)
        return self.decisions.closed_total - before

    # What records do, now and in replay.

    def open_all(self, decisions: Sequence[OpenDecision]) -> None:
        """Begin to wait for the rewards of what one call decided."""
        for decision in decisions:
            self.apply_opened(decision)

    def apply_opened(self, decision: OpenDecision) -> None:
        self.decisions.add(decision)
        while self.decisions.full:
            first = self.decisions.next_due()
            if first is None:
                break
            # Learned from what is known by now, which is better than not at all.
            self.closed_early += 1
            self._close(first, decision.decided_s)

    def apply_rewarded(self, record: Rewarded) -> None:
        decision = self.decisions.get(record.number)
        if decision is None:
            return
        policy = self._policy(decision)
        place, had = record.place, decision.values[record.place]
        summed = policy.spec.reward_aggregation == "sum"
        if record.token:
            decision.tokens = [*decision.tokens, record.token][-TOKENS_MAX:]
        decision.values[place] = (had or 0.0) + record.value if summed else record.value
        decision.got |= 1 << place
        if summed:
            return
        self._remember(decision, policy, place, record.now_s)
        if policy.spec.learn_on == "reward":
            self._learn(decision, policy, place)

    def apply_activated(self, record: Activated) -> None:
        decision = self.decisions.get(record.number)
        if decision is not None:
            window_s = self._policy(decision).spec.reward_window_s
            decision.active = True
            self.decisions.move(decision, record.now_s + window_s)

    def apply_closed(self, record: Closed) -> None:
        for _ in range(CLOSE_MAX):
            decision = self._due(record.now_s)
            if decision is None:
                return
            self._close(decision, record.now_s)

    def _due(self, now_s: int) -> OpenDecision | None:
        decision = self.decisions.next_due()
        return decision if decision is not None and decision.closes_s <= now_s else None

    def _open(self, tenant: str, number: int, now_s: int) -> OpenDecision:
        decision = self.decisions.get(number)
        if decision is not None and decision.closes_s <= now_s:
            self.refused_late += 1
            raise _late(decision)
        if decision is None:
            closed = self.decisions.closed(number)
            if closed is not None and closed.tenant == tenant:
                self.refused_late += 1
                raise _late(closed)
            if closed is None and self.decisions.was_dropped(number):
                self.refused_late += 1
                raise _gone(self.decisions.dropped_s)
        # A forgotten person's decision is missing, and so is another tenant's.
        if decision is None or decision.tenant != tenant or self.forgotten(decision):
            raise RequestError(404, "no decision of that id waits for a reward", "decisionId")
        return decision

    def because(self, number: int) -> list[dict[str, Any]] | None:
        """By slot, what speaks for what a policy showed, by what is believed now; None if no policy
        decided, or it is too long ago.

        features  of the context, the FEATURES_TOLD that add most to the log-odds or take most away
        """
        decision = self.decisions.get(number) or self.decisions.closed(number)
        if decision is None or not decision.trace:
            return None
        tenant, policy = self._state.tenant(decision.tenant), self._policy(decision)
        told: list[dict[str, Any]] = []
        for place, (slot, arm) in enumerate(zip(decision.slots, decision.arms, strict=True)):
            found = tenant.treatment.retold(policy, decision.trace, place)
            most = sorted(found.features.items(), key=lambda one: -abs(one[1]))[:FEATURES_TOLD]
            told.append(
                {"slotId": slot, "id": arm, "components": found.parts, "features": dict(most)}
            )
        return told

    def forget(self, key: bytes) -> None:
        """A person is erased, and with them what was decided for them."""
        self.decisions.forget(key)

    def counters(self) -> dict[str, int]:
        """For `stats`."""
        return {
            "openDecisions": len(self.decisions),
            "openDecisionBytes": self.decisions.open_bytes + self.decisions.closed_bytes,
            "decisionsClosed": self.decisions.closed_total,
            "decisionsClosedEarly": self.closed_early,
            "rewardsRefusedLate": self.refused_late,
        }

    def forgotten(self, decision: OpenDecision) -> bool:
        """Whether the person of a decision was erased since."""
        return decision.profiled and self._state.store.find(decision.key) < 0

    def _policy(self, decision: OpenDecision) -> Policy:
        found = self._state.tenant(decision.tenant).policy(decision.policy)
        return found or default_policy(decision.policy, decision.surface)

    def _close(self, decision: OpenDecision, now_s: int) -> None:
        policy = self._policy(decision)
        default = policy.spec.default_reward
        chosen = decision.values
        decision.values = [default if value is None else value for value in chosen]
        if decision.active:
            if policy.spec.outcome == "choice":
                if all(value is None for value in chosen):
                    self._learn(decision, policy, -1)
            else:
                for place in range(len(decision.arms)):
                    self._remember(decision, policy, place, now_s)
            for place, value in enumerate(chosen):
                if policy.spec.outcome == "reward" or value is not None:
                    self._learn(decision, policy, place)
            self._compare(decision)
        self.decisions.close(decision)

    def _compare(self, decision: OpenDecision) -> None:
        """Count what was earned, and how likely that was by what did not act: the policy where the
        baseline did, the baseline where the policy did."""
        books, policy = self._state.tenant(decision.tenant).books, self._policy(decision)
        compared = compared_of(books.compared, decision.policy, decision.version, decision.mode)
        if compared is None:
            return
        weights: list[float] = []
        agreed = 0
        if decision.shadow:
            weights = traced(decision.trace).alike.cumprod().tolist()
            pairs = zip(decision.arms, decision.shadow, strict=True)
            agreed = sum(shown == drawn for shown, drawn in pairs)
        elif decision.mode != "off" and policy.version == decision.version:
            weights, agreed = baseline_odds(policy, traced(decision.trace))
        count(compared, [value or 0.0 for value in decision.values], agreed, weights)

    def _learn(self, decision: OpenDecision, policy: Policy, place: int) -> None:
        """Teach the model what came of a slot, once; of a choice: which slot was taken."""
        every = (1 << len(decision.arms)) - 1
        bits = every if policy.spec.outcome == "choice" else 1 << place
        if decision.learned & bits or not (policy.learns and decision.active):
            return
        decision.learned |= bits
        if not self._state.learns:
            return
        treatment = self._state.tenant(decision.tenant).treatment
        try:
            if policy.spec.outcome == "choice":
                treatment.learn_choice(policy, decision.trace, place)
            else:
                treatment.learn(policy, decision.trace, place, decision.values[place] or 0.0)
        except Exception:
            # What is not learned is a worse guess; a shard that can't recover would be a loss.
            LOG.exception("shard %s did not learn an outcome", self._state.shard_id)

    def _remember(self, decision: OpenDecision, policy: Policy, place: int, now_s: int) -> None:
        """Put what came of a slot into the person's own memory, once."""
        if decision.remembered & 1 << place or not (policy.learns and decision.active):
            return
        decision.remembered |= 1 << place
        store = self._state.store
        row = store.find(decision.key)
        if row < 0:
            return
        ledger = unpack(store.ledger(row))
        treatment = self._state.tenant(decision.tenant).treatment
        known = ledger.memories.pop(decision.policy, b"")
        value = decision.values[place] or 0.0
        # Last in its order is the last to be dropped for want of room.
        ledger.memories[decision.policy] = treatment.remember(
            policy, known, decision.trace, place, value
        )
        while len(ledger.memories) > MEMORIES_MAX:
            del ledger.memories[next(iter(ledger.memories))]
        try:
            store.set_ledger(row, pack(ledger, now_s))
        except (RequestError, StoreFull):
            return  # A full ledger keeps what protects the person, and goes without memory.


def _waiting(tenant: str, key: bytes, opened: Opening, now_s: int, profiled: bool) -> OpenDecision:
    """Its window begins now, or with `activate`; a slot without a name is called by its place."""
    spec = opened.policy.spec
    named = len(opened.slots)
    return OpenDecision(
        opened.number,
        tenant,
        key,
        spec.surface,
        opened.policy.id,
        now_s,
        now_s + (spec.reward_window_s if opened.active else UNACTIVATED_S),
        list(opened.arms),
        [(opened.slots[i] if i < named else "") or str(i) for i in range(len(opened.arms))],
        list(opened.shadow),
        opened.trace,
        [None] * len(opened.arms),
        profiled,
        opened.active,
        version=opened.policy.version,
        mode=spec.mode,
    )


def _gone(dropped_s: int) -> RequestError:
    """Not known any more, so it can't be told from one that never was; tenants see the same."""
    return RequestError(
        410,
        "the decision's reward window closed so long ago that it is no longer kept",
        "decisionId",
        "now",
        f"a reward within the policy's rewardWindowS; windows closed up to {dropped_s} are gone",
    )


def _late(decision: OpenDecision) -> RequestError:
    return RequestError(
        409,
        "the decision's reward window has closed",
        "decisionId",
        f"now, window closed at {decision.closes_s}",
        "a reward within the policy's rewardWindowS",
    )
