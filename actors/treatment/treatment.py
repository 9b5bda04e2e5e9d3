"""Chooses among arms and learns from what came of it; one per tenant, shared by its policies.

Everything learned is one vector of sums (`belief`), so what shards learned adds up. A choice takes
the arms that are eligible: what guardrails, caps and exclusions forbid is taken out before, and
propensities are exact over what is left. Nothing here knows a person, a clock or a log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.treatment import belief, choosing, learning, memory
from actors.treatment.features import NO_FEATURES, Arms, Features
from actors.treatment.policy import Policy

NO_ORDER: NDArray[np.int32] = np.zeros(0, np.int32)
SLOTS_MAX = 60
"""Slots of one choice."""
PARTS = ("base", "action", "contextAction", "person", "uncertainty")


class Choice(NamedTuple):
    """What was chosen, k slots.

    order         int32 [k], indices into the arms
    propensities  float64 [k], P(this arm in this slot | the slots before), as it was drawn
    chances       float32 [k], predicted P(reward), or P(choice) among those shown
    scores        float32 [k], chances times what a success is worth
    explored      some slot's arm is not the one thought best
    acted         False: the baseline did
    shadow        int32 [k], what the policy would have shown where the baseline acted; else empty
    trace         what learning needs later
    """

    order: NDArray[np.int32]
    propensities: NDArray[np.float64]
    chances: NDArray[np.float32]
    scores: NDArray[np.float32]
    explored: bool
    acted: bool
    shadow: NDArray[np.int32]
    trace: bytes


class Trace(msgspec.Struct, array_like=True, frozen=True):
    """What was decided on, as learning and evaluation need it. Arrays as little-endian bytes.

    hashes uint32 and values float32: the context
    of m candidates, of which the first `free` could be drawn and the others were pinned:
    arms uint32 [m], worth float32 [m]; starts int32 [m + 1], features uint32 and feature_values
    float32: what they are like; memory float32 [m, MEMORY], or b"" of who has none
    of k slots: shown int32 [k], which candidate; chances float32 [k]; propensities float64 [k]
    """

    hashes: bytes
    values: bytes
    free: int
    arms: bytes
    worth: bytes
    starts: bytes
    features: bytes
    feature_values: bytes
    memory: bytes
    shown: bytes
    chances: bytes
    propensities: bytes


class Traced(NamedTuple):
    """A trace as arrays."""

    context: Features
    free: int
    arms: NDArray[np.uint32]
    worth: NDArray[np.float32]
    starts: NDArray[np.int32]
    features: Features
    memory: NDArray[np.float32]
    shown: NDArray[np.int32]
    chances: NDArray[np.float32]
    propensities: NDArray[np.float64]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Trace).decode


class Delta(NamedTuple):
    """What was learned since the delta before. slots int32 [n], changes float64 [n]."""

    slots: NDArray[np.int32]
    changes: NDArray[np.float64]


def merged(total: NDArray[np.float64], deltas: Sequence[Delta]) -> NDArray[np.float64]:
    """The sums after deltas, float64 [belief.SIZE]; the same array if there are none."""
    if deltas:
        total = total.copy()
    for delta in deltas:
        total[delta.slots] += delta.changes
    return total


class Treatment:
    """The beliefs of one tenant on one shard."""

    def __init__(self) -> None:
        # Zeroed memory costs nothing until it is touched.
        self._sums: NDArray[np.float64] = np.zeros(belief.SIZE)
        self._taken: NDArray[np.float64] = np.zeros(belief.SIZE)
        self.learned = 0
        self.version = "0"

    def choose(
        self,
        policy: Policy,
        context: Features,
        arms: Arms,
        rng: np.random.Generator,
        slots: int = 1,
        eligible: NDArray[np.int32] | None = None,
        pins: Mapping[int, int] | None = None,
        remembered: bytes = b"",
    ) -> Choice:
        """Fill slots with arms; O(slots * arms), about 10 us for ten arms of 20 features.

        eligible    int32, indices of the arms that may be chosen; None = all
        pins        slot -> arm that stands there by a rule, eligible or not, with propensity 1
        remembered  the person's memory for this policy
        """
        if eligible is None:
            eligible = np.arange(len(arms.ids), dtype=np.int32)
        free, candidates = len(eligible), eligible
        fixed = np.full(min(slots, SLOTS_MAX), -1, np.int32)
        if pins:
            eligible = eligible[~np.isin(eligible, list(pins.values()))]
            pinned = np.array(list(pins.values()), np.int32)
            free, candidates = len(eligible), np.append(eligible, pinned)
            for i, place in enumerate(pins):
                if place < len(fixed):
                    fixed[place] = free + i
        own = memory.recall(remembered, arms.hashes)
        beliefs = self._believe(policy, context, arms, own, candidates)
        order, propensities = np.empty(len(fixed), np.int32), np.empty(len(fixed))
        count, explored = choosing.draw(
            beliefs,
            arms.values[candidates[:free]],
            policy.rule,
            policy.alpha,
            policy.floor,
            fixed,
            rng.random(len(fixed)),
            order,
            propensities,
        )
        order, propensities = order[:count], propensities[:count]
        shadow = NO_ORDER
        if not policy.acts:
            if policy.spec.mode == "shadow":
                shadow = candidates[order]
            order = _baseline(policy, arms, candidates, free, fixed)
            propensities, explored = np.ones(len(order)), False
        chances = np.empty(len(order), np.float32)
        choice = policy.spec.outcome == "choice"
        choosing.chances(self._sums, policy.salt, beliefs, order, choice, chances)
        shown = candidates[order]
        trace = _trace(context, arms, own, candidates, free, order, chances, propensities)
        return Choice(
            shown,
            propensities,
            chances,
            chances * arms.values[shown],
            explored,
            policy.acts,
            shadow,
            trace,
        )

    def predict(
        self, policy: Policy, context: Features, arms: Arms, remembered: bytes = b""
    ) -> NDArray[np.float32]:
        """P(reward) of each arm in the first slot, float32 [n]; or P(choice) if all were shown."""
        every = np.arange(len(arms.ids), dtype=np.int32)
        own = memory.recall(remembered, arms.hashes)
        beliefs = self._believe(policy, context, arms, own, every)
        out = np.empty(len(every), np.float32)
        if policy.spec.outcome == "choice":
            choosing.chances(self._sums, policy.salt, beliefs, every, True, out)
        else:
            choosing.merits(beliefs, np.ones(len(every)), choosing.GREEDY, 0.0, out)
        return out

    def probabilities(
        self,
        policy: Policy,
        context: Features,
        arms: Arms,
        eligible: NDArray[np.int32] | None = None,
        remembered: bytes = b"",
    ) -> NDArray[np.float64]:
        """P(arm is drawn for the first slot), float64 [n]; 0 for what is not eligible."""
        if eligible is None:
            eligible = np.arange(len(arms.ids), dtype=np.int32)
        own = memory.recall(remembered, arms.hashes)
        beliefs = self._believe(policy, context, arms, own, eligible)
        out = np.zeros(len(arms.ids))
        out[eligible] = choosing.first_slot(
            beliefs, arms.values[eligible], policy.rule, policy.alpha, policy.floor
        )
        return out

    def learn(
        self, policy: Policy, trace: bytes, slot: int, reward: float, weight: float = 1.0
    ) -> None:
        """What stood in `slot` got a reward, in the policy's units."""
        seen = traced(trace)
        arm = seen.shown[slot]
        part = slice(seen.starts[arm], seen.starts[arm + 1])
        learning.learn_reward(
            self._sums,
            policy.salt,
            policy.surface_salt,
            seen.context.hashes,
            seen.context.values,
            seen.arms[arm],
            seen.features.hashes[part],
            seen.features.values[part],
            seen.memory[arm],
            slot,
            policy.scaled(reward),
            weight,
        )
        self.learned += 1

    def learn_choice(self, policy: Policy, trace: bytes, chosen: int, weight: float = 1.0) -> None:
        """The person took what stood in slot `chosen`, of all that was shown; -1: nothing."""
        seen = traced(trace)
        if not 0 <= chosen < len(seen.shown) or len(seen.shown) < 2:
            return
        learning.learn_choice(
            self._sums,
            policy.salt,
            seen.context.hashes,
            seen.context.values,
            seen.arms,
            seen.starts,
            seen.features.hashes,
            seen.features.values,
            seen.memory,
            seen.shown,
            chosen,
            weight,
        )
        self.learned += 1

    def remember(
        self, policy: Policy, remembered: bytes, trace: bytes, slot: int, reward: float
    ) -> bytes:
        """A person's memory after the reward of a slot; of a choice, `slot` is what was taken."""
        seen = traced(trace)
        arms = seen.arms[seen.shown]
        if policy.spec.outcome == "choice":
            taken = (np.arange(len(arms)) == slot).astype(np.float32)
            return memory.remember(remembered, arms, seen.chances, taken)
        one = slice(slot, slot + 1)
        got = np.array([policy.scaled(reward)], np.float32)
        return memory.remember(remembered, arms[one], seen.chances[one], got)

    def replayed(self, policy: Policy, seen: Traced) -> NDArray[np.float64]:
        """What the policy believes now of the candidates of an earlier decision, [m, 4]."""
        found: NDArray[np.float64] = choosing.believe(
            self._sums,
            policy.salt,
            policy.surface_salt,
            seen.context.hashes,
            seen.context.values,
            seen.arms,
            seen.starts,
            seen.features.hashes,
            seen.features.values,
            seen.memory,
            np.arange(len(seen.arms), dtype=np.int32),
        )
        return found

    def explain(
        self,
        policy: Policy,
        context: Features,
        arms: Arms,
        index: int,
        remembered: bytes = b"",
    ) -> dict[str, float]:
        """What an arm's log-odds are made of; `uncertainty` is their standard deviation."""
        own = memory.recall(remembered, arms.hashes)
        part = slice(arms.starts[index], arms.starts[index + 1])
        parts = choosing.parts(
            self._sums,
            policy.salt,
            policy.surface_salt,
            context.hashes,
            context.values,
            arms.hashes[index],
            arms.features.hashes[part],
            arms.features.values[part],
            own[index],
        )
        return dict(zip(PARTS, parts.tolist(), strict=True))

    # What is learned travels as in the engine: deltas out, a base in.

    def take(self) -> Delta | None:
        """What was learned since the last `take`; None if nothing."""
        if not self.learned:
            return None
        self.learned = 0
        change = self._sums - self._taken
        np.copyto(self._taken, self._sums)
        slots = np.flatnonzero(change).astype(np.int32)
        return Delta(slots, change[slots])

    def install(self, total: NDArray[np.float64], name: str) -> None:
        """Go on from what all shards learned; what was not taken yet stays on top of it."""
        own = self._sums - self._taken
        np.copyto(self._taken, total)
        np.add(total, own, out=self._sums)
        self.version = name

    def _believe(
        self,
        policy: Policy,
        context: Features,
        arms: Arms,
        own: NDArray[np.float32],
        candidates: NDArray[np.int32],
    ) -> NDArray[np.float64]:
        found: NDArray[np.float64] = choosing.believe(
            self._sums,
            policy.salt,
            policy.surface_salt,
            context.hashes,
            context.values,
            arms.hashes,
            arms.starts,
            arms.features.hashes,
            arms.features.values,
            own,
            candidates,
        )
        return found


def _baseline(
    policy: Policy,
    arms: Arms,
    candidates: NDArray[np.int32],
    free: int,
    fixed: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Rows of candidates in the baseline's order, pins where they belong."""
    row_of = {arms.ids[arm]: row for row, arm in enumerate(candidates[:free].tolist())}
    named = [row_of.pop(arm_id) for arm_id in policy.spec.baseline if arm_id in row_of]
    waiting = iter([*named, *row_of.values()])
    order: list[int] = []
    for pinned in fixed.tolist():
        row = pinned if pinned >= 0 else next(waiting, -1)
        if row < 0:
            break
        order.append(row)
    return np.array(order, np.int32)


def _trace(
    context: Features,
    arms: Arms,
    own: NDArray[np.float32],
    candidates: NDArray[np.int32],
    free: int,
    shown: NDArray[np.int32],
    chances: NDArray[np.float32],
    propensities: NDArray[np.float64],
) -> bytes:
    features, starts = arms.features, arms.starts
    if np.array_equal(candidates, np.arange(len(arms.ids))):
        pass  # They lie in this order already.
    elif starts[-1] and len(candidates):
        lengths = np.diff(starts)[candidates]
        ends = np.cumsum(lengths)
        # Where each candidate's features lie among all arms' features, one after the other.
        places = np.arange(ends[-1]) + np.repeat(starts[candidates] - (ends - lengths), lengths)
        features = Features(features.hashes[places], features.values[places])
        starts = np.append(0, ends).astype(np.int32)
    else:
        features, starts = NO_FEATURES, np.zeros(len(candidates) + 1, np.int32)
    return _encode(
        Trace(
            context.hashes.tobytes(),
            context.values.tobytes(),
            free,
            arms.hashes[candidates].tobytes(),
            arms.values[candidates].tobytes(),
            starts.tobytes(),
            features.hashes.tobytes(),
            features.values.tobytes(),
            own[candidates].tobytes() if own.any() else b"",
            shown.tobytes(),
            chances.tobytes(),
            propensities.tobytes(),
        )
    )


def traced(trace: bytes) -> Traced:
    """The arrays of a trace. Raises msgspec.DecodeError if it is none."""
    raw = _decode(trace)
    arms = np.frombuffer(raw.arms, np.uint32)
    if raw.memory:
        own = np.frombuffer(raw.memory, np.float32).reshape(len(arms), belief.MEMORY)
    else:
        own = np.zeros((len(arms), belief.MEMORY), np.float32)
    return Traced(
        Features(np.frombuffer(raw.hashes, np.uint32), np.frombuffer(raw.values, np.float32)),
        raw.free,
        arms,
        np.frombuffer(raw.worth, np.float32),
        np.frombuffer(raw.starts, np.int32),
        Features(
            np.frombuffer(raw.features, np.uint32), np.frombuffer(raw.feature_values, np.float32)
        ),
        own,
        np.frombuffer(raw.shown, np.int32),
        np.frombuffer(raw.chances, np.float32),
        np.frombuffer(raw.propensities, np.float64),
    )
