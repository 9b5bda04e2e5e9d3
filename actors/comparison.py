"""What versions of a policy earned, and what would have been earned by what did not act.

Where a policy acts that is the baseline, and inverse propensity scores are what it would have
earned, since a policy with a floor may show everything. Where the baseline acts it is the policy
that watches. The baseline is no lottery: it shows what it shows with probability 1. So of what a
policy would earn where it differs nothing is known, and the scores are lower bounds: what it would
earn by doing as the baseline does, the rest counted as nothing; self-normalised they are the mean
reward where both agree. There a decision weighs by the chance that the policy would have shown the
same, which says more than one draw of it. Sums, so that those of shards add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

VERSIONS_MAX = 3
"""Versions of one policy that are kept apart, the newest."""
Z95 = 1.959964


class Estimate(NamedTuple):
    """A mean reward per slot. low, high: 95 % interval. effective: samples that it rests on."""

    value: float
    low: float
    high: float
    n: int
    effective: float


class Compared(msgspec.Struct, array_like=True):
    """Sums over closed decisions of one version; a decision counts as the means of its slots.

    version, mode    of the document under which they were made
    n                decisions; reward, reward2: sums of rewards and of their squares
    slots, agreed    that were compared, and those in which policy and baseline are the same
    weight, weight2  P(what did not act shows that) / P(what acted did), and squared
    earned, earned2  weight times reward, and squared; crossed: times weight
    New fields go to the end, with a default.
    """

    version: int
    mode: str
    n: int = 0
    reward: float = 0.0
    reward2: float = 0.0
    slots: int = 0
    agreed: int = 0
    weight: float = 0.0
    weight2: float = 0.0
    earned: float = 0.0
    earned2: float = 0.0
    crossed: float = 0.0

    @property
    def acted(self) -> Estimate:
        """What was earned by what stood there, with a 95 % interval."""
        return _mean(self.n, self.reward, self.reward2, float(self.n))

    @property
    def ips(self) -> Estimate:
        """What would have been earned by what did not act; see above."""
        return _mean(self.n, self.earned, self.earned2, self._effective)

    @property
    def snips(self) -> Estimate:
        """The same by the mean weight instead of 1."""
        if self.weight <= 0.0:
            return Estimate(math.nan, math.nan, math.nan, self.n, 0.0)
        value = self.earned / self.weight
        squares = self.earned2 - 2.0 * value * self.crossed + value * value * self.weight2
        error = math.sqrt(max(squares, 0.0)) / self.weight
        return Estimate(value, value - Z95 * error, value + Z95 * error, self.n, self._effective)

    @property
    def _effective(self) -> float:
        return self.weight**2 / self.weight2 if self.weight2 > 0.0 else 0.0


SUMS = tuple(name for name in Compared.__struct_fields__ if name not in ("version", "mode"))


def _mean(n: int, total: float, squares: float, effective: float) -> Estimate:
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0, 0.0)
    value = total / n
    spread = max(squares - total * value, 0.0) / (n - 1) if n > 1 else math.inf
    error = math.sqrt(spread / n)
    return Estimate(value, value - Z95 * error, value + Z95 * error, n, effective)


def compared_of(
    every: dict[str, list[Compared]], policy_id: str, version: int, mode: str
) -> Compared | None:
    """Where decisions of a version count, made if need be; None if it is too old to be kept."""
    if not mode:
        return None
    kept = every.setdefault(policy_id, [])
    for one in kept:
        if one.version == version:
            return one
    if len(kept) >= VERSIONS_MAX and version < kept[0].version:
        return None
    made = Compared(version, mode)
    kept.append(made)
    kept.sort(key=lambda one: one.version)
    del kept[:-VERSIONS_MAX]
    return made


def count(
    compared: Compared, rewards: Sequence[float], agreed: int, weights: Sequence[float]
) -> None:
    """One decision. rewards by slot; weights by slot, of all slots up to there, none where there is
    nothing to compare.

    >>> seen = Compared(1, "shadow")
    >>> count(seen, [1.0], 1, [0.5])
    >>> seen.acted.value, seen.ips.value, seen.snips.value
    (1.0, 0.5, 1.0)
    """
    k = len(rewards)
    if not k:
        return
    reward = sum(rewards) / k
    compared.n += 1
    compared.reward += reward
    compared.reward2 += reward * reward
    if not weights:
        return
    weight = sum(weights) / k
    earned = sum(w * r for w, r in zip(weights, rewards, strict=True)) / k
    compared.slots += k
    compared.agreed += agreed
    compared.weight += weight
    compared.weight2 += weight * weight
    compared.earned += earned
    compared.earned2 += earned * earned
    compared.crossed += earned * weight


def merged(parts: Iterable[Sequence[Compared]]) -> list[Compared]:
    """What several shards counted of one policy, added up, the newest version first."""
    total: dict[int, Compared] = {}
    for part in parts:
        for one in part:
            kept = total.setdefault(one.version, Compared(one.version, one.mode))
            for name in SUMS:
                setattr(kept, name, getattr(kept, name) + getattr(one, name))
    return sorted(total.values(), key=lambda one: -one.version)
