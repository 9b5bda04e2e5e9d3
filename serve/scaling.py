"""How many gateways there should be: Ray Serve's autoscaler asks, by its custom-metric interface.

The fast lane answers before Serve counts, so Serve's own count of requests says nothing. What runs
out in a gateway is the one core of its event loop: each reports how busy its process is.
Serve itself applies the bounds and the delays; with these thresholds apart, a load that is steady
leads to one number of gateways, from above and from below.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.config import Config

BUSY_MAX = 0.60
"""Of a core: more gateways, if each would be busier than this."""
BUSY_MIN = 0.45
"""Fewer, if all would still be less busy than this."""
UP_S = 2.0
LOOK_BACK_S = 11.0
"""Serve warns of less than eleven. Gateways report every two seconds (`launch.REPORT_S`): so more
are asked for within 15 s of an overload."""
METRIC = "busy"


class BusyMeter:
    """How busy this process is, in cores, from one call to the next."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock = clock
        self._cpu_s = cpu_s
        self._last = clock(), cpu_s()

    def read(self) -> float:
        last_s, last_cpu_s = self._last
        self._last = now_s, now_cpu_s = self._clock(), self._cpu_s()
        return (now_cpu_s - last_cpu_s) / (now_s - last_s) if now_s > last_s else 0.0


def wanted(busy: float, now: int) -> int:
    """How many gateways a load of `busy` cores needs, where there are `now`.

    >>> [wanted(1.0, now) for now in (1, 2, 3, 4)]
    [2, 2, 3, 3]
    """
    at_least = max(1, math.ceil(busy / BUSY_MAX))
    at_most = max(at_least, math.ceil(busy / BUSY_MIN))
    return min(max(now, at_least), at_most)


def gateways_wanted(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy; its import path stands in `autoscaling`."""
    now = context.target_num_replicas
    reports = (context.aggregated_metrics or {}).get(METRIC) or {}
    if not reports:
        return now, {}
    mean = sum(reports.values()) / len(reports)
    # One that has not reported yet takes its part of the load soon.
    return wanted(mean * max(len(reports), context.current_num_replicas), now), {}


def autoscaling(config: Config) -> AutoscalingConfig | None:
    """Serve's settings for `config`; None if the number of gateways is fixed."""
    if config.gateways_max <= config.gateways:
        return None
    path = "serve.scaling:gateways_wanted"
    policy = AutoscalingPolicy(policy_function=path)  # type: ignore[no-untyped-call]
    return AutoscalingConfig(
        min_replicas=config.gateways,
        initial_replicas=config.gateways,
        max_replicas=config.gateways_max,
        upscale_delay_s=UP_S,
        downscale_delay_s=config.shrink_after_s,
        look_back_period_s=LOOK_BACK_S,
        policy=policy,
    )
