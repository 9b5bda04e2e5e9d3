"""Comparing two means so that looking at any time, as often as one likes, stays honest. Pure.

A fixed-horizon test that is looked at every day finds something in pure noise sooner or later. The
mixture sequential probability ratio test does not: its p-value is valid at every moment at once
(Johari, Koomen, Pekelis, Walsh 2017, "Peeking at A/B Tests"), and so is the interval that belongs
to it, a normal-mixture confidence sequence (Howard, Ramdas, McAuliffe, Sekhon 2021).
"""

from __future__ import annotations

import math
from typing import NamedTuple

TAU = 0.1
"""Standard deviation of the effects that are expected, in standard deviations of an outcome.

It must not depend on the data. Being off costs power, never validity."""
MINIMUM = 100
"""Outcomes in each group before anything is said: the test rests on means being near normal."""


class Sample(NamedTuple):
    """Outcomes of one group: how many, their sum, and the sum of their squares."""

    n: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """Unbiased; 0 for fewer than two outcomes."""
        if self.n < 2:
            return 0.0
        return max(self.squares - self.total * self.mean, 0.0) / (self.n - 1)


class Comparison(NamedTuple):
    """A group against the control. p_value and the interval [low, high] are always valid."""

    effect: float
    p_value: float
    low: float
    high: float


def compare(control: Sample, group: Sample, alpha: float) -> Comparison:
    """The difference of means, group - control, with interval of coverage 1 - alpha.

    Without enough outcomes the p-value is 1 and the interval infinite.

    >>> compare(Sample(1000, 100, 100), Sample(1000, 180, 180), 0.05).p_value < 0.001
    True
    >>> compare(Sample(1000, 100, 100), Sample(1000, 104, 104), 0.05).p_value
    1.0
    """
    effect = group.mean - control.mean
    if min(control.n, group.n) < MINIMUM:
        return Comparison(effect, 1.0, -math.inf, math.inf)
    pooled = ((control.n - 1) * control.variance + (group.n - 1) * group.variance) / (
        control.n + group.n - 2
    )
    if pooled <= 0.0:
        # Without any spread nothing is known of how means vary.
        return Comparison(effect, 1.0, -math.inf, math.inf)
    # Under the hypothesis of no effect both groups have the pooled variance.
    noise = pooled * (1 / control.n + 1 / group.n)
    mixing = TAU * TAU * pooled
    log_ratio = 0.5 * math.log(noise / (noise + mixing)) + mixing * effect * effect / (
        2 * noise * (noise + mixing)
    )
    spread = noise * (noise + mixing) / mixing
    half = math.sqrt(spread * (2 * math.log(1 / alpha) + math.log((noise + mixing) / noise)))
    return Comparison(effect, math.exp(-max(log_ratio, 0.0)), effect - half, effect + half)
