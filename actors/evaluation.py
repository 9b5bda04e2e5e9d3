"""What another policy would have earned, from decisions that were recorded. Pure.

Inverse propensity scores (Horvitz and Thompson 1952), the same self-normalised (Swaminathan and
Joachims 2015), and doubly robust (Dudik, Langford and Li 2011), each with a 95 % interval. A
candidate learns along: each decision is judged by what it had learned from those before. Where
people choose one of what is shown (outcome `choice`), it learns from which one they took.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.comparison import Z95, Estimate
from actors.treatment import choosing, learning
from actors.treatment.policy import GREEDY, Policy
from actors.treatment.traces import Traced, traced
from actors.treatment.treatment import Treatment

Floats = NDArray[np.float64]


def ips(weights: Floats, rewards: Floats) -> Estimate:
    """Mean of weight times reward. weights: P(candidate) / P(logging), float64 [n].

    >>> ips(np.ones(4), np.array([0.0, 1.0, 1.0, 0.0])).value
    0.5
    """
    return _mean(weights * rewards, weights)


def snips(weights: Floats, rewards: Floats) -> Estimate:
    """The same divided by the mean weight; slightly biased, far less noisy."""
    total = float(weights.sum())
    if total <= 0.0:
        return Estimate(math.nan, math.nan, math.nan, len(weights), 0.0)
    value = float(weights @ rewards) / total
    error = math.sqrt(float(((weights * (rewards - value)) ** 2).sum())) / total
    return Estimate(
        value, value - Z95 * error, value + Z95 * error, len(weights), _effective(weights)
    )


def doubly_robust(
    weights: Floats, rewards: Floats, predicted: Floats, expected: Floats, before: Floats
) -> Estimate:
    """A model's expectation, corrected by what was seen where the candidate might have acted.

    predicted  of what was shown; expected: of what the candidate would show
    before     weights of the slots before, 1 for the first
    """
    return _mean(before * expected + weights * (rewards - predicted), weights)


def _mean(terms: Floats, weights: Floats) -> Estimate:
    n = len(terms)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, 0.0)
    value = float(terms.mean())
    error = float(terms.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(value, value - Z95 * error, value + Z95 * error, n, _effective(weights))


def _effective(weights: Floats) -> float:
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0.0 else 0.0


class Logged(NamedTuple):
    """One decision of the past: what was known and drawn, and the rewards by slot."""

    trace: bytes
    rewards: list[float]


class Judged(NamedTuple):
    """Slots of all decisions, one after the other; float64 [n] each.

    weights  of the slots up to this one, before: of those before it
    """

    weights: Floats
    before: Floats
    rewards: Floats
    predicted: Floats
    expected: Floats

    def estimates(self) -> dict[str, Estimate]:
        return {
            "ips": ips(self.weights, self.rewards),
            "snips": snips(self.weights, self.rewards),
            "dr": doubly_robust(
                self.weights, self.rewards, self.predicted, self.expected, self.before
            ),
        }


def judge(decisions: Iterable[Logged], candidate: Policy | None, by_worth: bool = False) -> Judged:
    """Weights and expectations of a candidate, decision by decision; None: what was logged.

    Pinned slots weigh 1 and count as they are: no policy could have filled them otherwise.
    by_worth  a reward counts times what a success with that arm is worth, its margin say; of a
              choice, what was taken counts alone
    """
    treatment = Treatment()
    rows: list[tuple[float, float, float, float, float]] = []
    for logged in decisions:
        seen = traced(logged.trace)
        worth = seen.worth.astype(np.float64) if by_worth else np.ones(len(seen.arms))
        rewards = [r * float(worth[a]) for r, a in zip(logged.rewards, seen.shown, strict=True)]
        if candidate is None:
            rows += [(1.0, 1.0, reward, 0.0, 0.0) for reward in rewards]
            continue
        before = 1.0
        for slot, (p, predicted, expected) in enumerate(_slots(treatment, candidate, seen, worth)):
            weight = before * p / float(seen.propensities[slot])
            rows.append((weight, before, rewards[slot], predicted, expected))
            before = weight
        _learn(treatment, candidate, logged)
    columns = np.array(rows, np.float64).reshape(-1, 5).T
    return Judged(*(np.ascontiguousarray(column) for column in columns))


def _learn(treatment: Treatment, policy: Policy, logged: Logged) -> None:
    """Let a candidate learn what came of a decision, as it would have when its window closed."""
    if policy.spec.outcome == "choice":
        taken = [i for i, value in enumerate(logged.rewards) if policy.scaled(value) > 0.0]
        for slot in taken[:1]:
            treatment.learn_choice(policy, logged.trace, slot)
        return
    for slot, reward in enumerate(logged.rewards):
        treatment.learn(policy, logged.trace, slot, reward)


def _slots(
    treatment: Treatment, policy: Policy, seen: Traced, worth: Floats
) -> list[tuple[float, float, float]]:
    """By slot: P(what stands there | the slots before), its predicted reward in the policy's
    units, and that of what the policy would put there.
    """
    beliefs = treatment.replayed(policy, seen)
    m = len(seen.arms)
    low, high = policy.spec.reward_min, policy.spec.reward_max
    chance = np.empty(m)
    if policy.spec.outcome == "choice":
        chance = learning.softmax(np.ascontiguousarray(beliefs[:, 0]))
    else:
        choosing.merits(beliefs, np.ones(m), GREEDY, 0.0, chance)
    predicted = (low + (high - low) * chance) * worth
    alike, odds = np.empty(len(seen.shown)), np.empty((len(seen.shown), seen.free))
    choosing.along(
        beliefs[: seen.free],
        seen.worth[: seen.free],
        *(policy.rule, policy.alpha, policy.floor),
        *(seen.allowed, seen.shown, alike, odds),
    )
    found: list[tuple[float, float, float]] = []
    for place, shown in enumerate(seen.shown.tolist()):
        own = float(predicted[shown])
        drawn = own if shown >= seen.free else float(odds[place] @ predicted[: seen.free])
        found.append((float(alike[place]), own, drawn))
    return found
