"""Chooses among arms and learns from what came of it; one per tenant, shared by its policies.

Everything learned is one vector of sums (`belief`), so what shards learned adds up. A choice takes
the arms that are eligible: what guardrails, caps and exclusions forbid is taken out before, and
propensities are exact over what is left. Nothing here knows a person, a clock or a log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.arena import reserve
from actors.treatment import belief, choosing, learning, memory
from actors.treatment.acting import act
from actors.treatment.baseline import baseline_rows, rows_named
from actors.treatment.choice import Choice, Retold, Watched
from actors.treatment.features import Arms, Features
from actors.treatment.policy import GREEDY, Policy
from actors.treatment.slots import SLOTS_MAX, open_first
from actors.treatment.traces import ANY, NO_ODDS, NO_ROWS, Traced, trace_of, traced

PARTS = ("base", "action", "contextAction", "person", "uncertainty")


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
        self._sums: NDArray[np.float64] = reserve(np.float64, belief.SIZE)
        self._taken: NDArray[np.float64] = reserve(np.float64, belief.SIZE)
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
        allowed: NDArray[np.bool_] | None = None,
        baseline: Sequence[str | None] = (),
    ) -> Choice:
        """Fill slots with arms; O(slots * arms), about 10 us for ten arms of 20 features.

        eligible    int32, indices of the arms that may be chosen; None = all
        pins        slot -> arm that stands there by a rule, eligible or not, with propensity 1
        remembered  the person's memory for this policy
        allowed     bool [slots, arms], which arms a slot may take; None = all. If not every slot
                    can be filled so, the first ones are
        baseline    ids by slot of what stands there where the policy does not act; None and beyond:
                    as the policy's own baseline says
        """
        rows, free, fixed = _candidates(len(arms.ids), eligible, pins, slots)
        k = len(fixed)
        own = np.empty((len(arms.ids), belief.MEMORY), np.float32)
        may = ANY if allowed is None else allowed[:k, rows[:free]].copy()
        order, shown, propensities = np.empty(k, np.int32), np.empty(k, np.int32), np.empty(k)
        chances, scores = np.empty(k, np.float32), np.empty(k, np.float32)
        count, explored, like = act(
            *(self._sums, policy.salt, policy.surface_salt, context.hashes, context.values),
            *(arms.hashes, arms.starts, arms.features.hashes, arms.features.values, arms.values),
            *(memory.words_of(remembered), rows, free),
            *(policy.rule, policy.alpha, policy.floor, fixed, may),
            *(rng.random(k), policy.spec.outcome == "choice"),
            *(order, shown, propensities, chances, scores, own),
        )
        if count < k:
            order, shown, propensities = order[:count], shown[:count], propensities[:count]
            chances, scores, may = chances[:count], scores[:count], may[:count]
        known = own if remembered else None
        if policy.acts:
            named = rows_named(baseline, arms, rows[:free]) if baseline else NO_ROWS
            trace = trace_of(
                *(context, like, known, rows, free, order, chances, propensities, may),
                named=named,
            )
            return Choice(shown, propensities, chances, scores, explored, True, NO_ROWS, trace)
        watched = Watched(context, like, own, rows, free, order, may)
        return self._watch(policy, arms, watched, fixed[:count], baseline, known)

    def _watch(
        self,
        policy: Policy,
        arms: Arms,
        drawn: Watched,
        fixed: NDArray[np.int32],
        baseline: Sequence[str | None],
        known: NDArray[np.float32] | None,
    ) -> Choice:
        """The baseline's choice, and what the policy that drew another has to do with it."""
        context, like, own, rows, free, shadow, may = drawn
        order = baseline_rows(policy, arms, rows, free, fixed, may, baseline)
        propensities, chances = np.ones(len(order)), np.empty(len(order), np.float32)
        beliefs = self._believe(policy, context, arms, own, rows)
        choice = policy.spec.outcome == "choice"
        choosing.chances(self._sums, policy.salt, beliefs, order, choice, chances)
        alike = NO_ODDS
        if policy.spec.mode == "off":
            shadow = NO_ROWS
        else:
            alike, rule = np.empty(len(order)), (policy.rule, policy.alpha, policy.floor)
            values = arms.values[rows[:free]]
            choosing.along(beliefs, values, *rule, may, order, alike, np.empty((0, free)))
        trace = trace_of(
            *(context, like, known, rows, free, order, chances, propensities, may, shadow, alike)
        )
        shown = rows[order]
        scores = chances * arms.values[shown]
        return Choice(shown, propensities, chances, scores, False, False, rows[shadow], trace)

    def predict(
        self, policy: Policy, context: Features, arms: Arms, remembered: bytes = b""
    ) -> NDArray[np.float32]:
        """P(reward) of each arm in the first slot, float32 [n]; or P(choice) if all were shown."""
        all_arms = every(len(arms.ids))
        own = memory.recall(remembered, arms.hashes)
        beliefs = self._believe(policy, context, arms, own, all_arms)
        out = np.empty(len(all_arms), np.float32)
        if policy.spec.outcome == "choice":
            choosing.chances(self._sums, policy.salt, beliefs, all_arms, True, out)
        else:
            choosing.merits(beliefs, np.ones(len(all_arms)), GREEDY, 0.0, out)
        return out

    def probabilities(
        self,
        policy: Policy,
        context: Features,
        arms: Arms,
        eligible: NDArray[np.int32] | None = None,
        remembered: bytes = b"",
        allowed: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """P(arm is drawn for the first slot), float64 [n]; 0 for what is not eligible."""
        if eligible is None:
            eligible = every(len(arms.ids))
        if allowed is not None:
            eligible = eligible[open_first(allowed[:, eligible])]
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
        """What stood in `slot` got a reward, in the policy's units.

        An apprentice is rewarded for what it would have shown, and only if that is what the
        baseline showed; else it learns from both: the baseline's reward, and none for itself.
        """
        seen = traced(trace)
        self._learn(policy, seen, seen.shown[slot], slot, policy.scaled(reward), weight)
        imitates = policy.spec.mode == "apprentice" and slot < len(seen.shadow)
        if imitates and seen.shadow[slot] != seen.shown[slot]:
            self._learn(policy, seen, seen.shadow[slot], slot, 0.0, weight)
        self.learned += 1

    def _learn(
        self, policy: Policy, seen: Traced, arm: np.int32, slot: int, reward: float, weight: float
    ) -> None:
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
            reward,
            weight,
        )

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

    def retold(self, policy: Policy, trace: bytes, slot: int) -> Retold:
        """What a decision of the past was made of, by what is believed now."""
        seen = traced(trace)
        arm, context = seen.shown[slot], seen.context
        part = slice(seen.starts[arm], seen.starts[arm + 1])
        parts = choosing.parts(
            *(self._sums, policy.salt, policy.surface_salt, context.hashes, context.values),
            *(seen.arms[arm], seen.features.hashes[part], seen.features.values[part]),
            seen.memory[arm],
        )
        each = choosing.by_feature(
            self._sums, policy.salt, context.hashes, context.values, seen.arms[arm]
        )
        features: dict[str, float] = {}
        names = context.names.split("\n")
        # A number is two features of one name. Names of several lines tell nothing any more.
        if len(names) == len(each):
            for name, (shared, own) in zip(names, each.tolist(), strict=True):
                features[name] = features.get(name, 0.0) + shared + own
        return Retold(dict(zip(PARTS, parts.tolist(), strict=True)), features)

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


@lru_cache(maxsize=256)
def every(n: int) -> NDArray[np.int32]:
    """Indices of n arms, int32; not to be changed."""
    return np.arange(n, dtype=np.int32)


def _candidates(
    n: int, eligible: NDArray[np.int32] | None, pins: Mapping[int, int] | None, slots: int
) -> tuple[NDArray[np.int32], int, NDArray[np.int32]]:
    """Arms that are looked at, int32; how many of them, the first, may be drawn; and by slot which
    of the others stands there, int32, -1 = none.
    """
    fixed = np.empty(min(slots, SLOTS_MAX), np.int32)
    fixed.fill(-1)
    rows = every(n) if eligible is None else eligible
    if not pins:
        return rows, len(rows), fixed
    rows = rows[~np.isin(rows, list(pins.values()))]
    free = len(rows)
    for i, place in enumerate(pins):
        if place < len(fixed):
            fixed[place] = free + i
    return np.append(rows, np.array(list(pins.values()), np.int32)), free, fixed
