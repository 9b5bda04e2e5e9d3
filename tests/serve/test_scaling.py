"""How many gateways: the policy alone, and through what Serve makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingContext

from cluster.config import Config
from serve.scaling import BUSY_MAX, METRIC, BusyMeter, autoscaling, gateways_wanted, wanted

DOWN_S = Config().shrink_after_s


@pytest.mark.parametrize("hundredths", range(0, 800, 7))
def test_a_steady_load_leads_to_one_number_from_above_and_from_below(hundredths: int):
    busy = hundredths / 100
    for start in range(1, 20):
        now = start
        for _ in range(20):
            now = wanted(busy, now)
        assert wanted(busy, now) == now
        assert busy / now <= BUSY_MAX + 1e-9
    # From far above it stops at the first that leaves all less busy than the lower bound.
    assert wanted(busy, 1000) <= max(1, math.ceil(busy / 0.45))


class Played:
    """Serve's own wrapper around the policy, over a load, second by second."""

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = autoscaling(config)
        assert self.settings is not None
        self.decide = _apply_autoscaling_config(gateways_wanted)
        self.now = config.gateways
        self.state: dict[str, Any] = {}
        self.time_s = 0.0
        monkeypatch.setattr("ray.serve.autoscaling_policy.time.time", lambda: self.time_s)

    def second(self, busy: float) -> int:
        self.time_s += 1.0
        assert self.settings is not None
        reports: Any = {METRIC: {f"r{i}": busy / self.now for i in range(self.now)}}
        context = AutoscalingContext(
            DeploymentID("gateway", "onehop"),
            "gateway",
            "onehop",
            self.now,
            self.now,
            [],
            0.0,
            0.0,
            reports,
            None,
            self.settings.min_replicas,
            self.settings.max_replicas,
            self.state,
            None,
            None,
            self.time_s,
            self.settings,
        )
        self.now, self.state = self.decide(context)
        return self.now


def test_serve_scales_up_in_seconds_and_down_after_minutes(monkeypatch: pytest.MonkeyPatch):
    played = Played(Config(gateways=1, gateways_max=8), monkeypatch)
    assert [played.second(0.3) for _ in range(30)] == [1] * 30
    up = [played.second(2.0) for _ in range(10)]
    assert up[-1] == 4
    assert up.index(4) <= 3
    down = [played.second(0.3) for _ in range(int(DOWN_S) + 60)]
    assert set(down[: int(DOWN_S) - 5]) == {4}
    assert down[-1] == 1


@pytest.mark.parametrize(
    "load",
    [
        lambda s: 2.0 + 1.5 * math.sin(s / 600 * 2 * math.pi),
        lambda s: 3.5 if s // 120 % 2 else 1.0,
    ],
    ids=["sine", "steps"],
)
def test_waves_shorter_than_the_delay_do_not_make_it_flap(load, monkeypatch: pytest.MonkeyPatch):
    played = Played(Config(gateways=1, gateways_max=16), monkeypatch)
    counts = [played.second(load(s)) for s in range(7200)]
    settled = counts[1800:]
    assert len(set(settled)) == 1
    assert max(counts) == math.ceil(3.5 / BUSY_MAX)


def test_one_that_has_not_reported_yet_is_counted(monkeypatch: pytest.MonkeyPatch):
    played = Played(Config(gateways=2, gateways_max=8), monkeypatch)
    played.now = 4
    context: Any = type("C", (), {})()
    context.target_num_replicas = context.current_num_replicas = 4
    context.aggregated_metrics = {METRIC: {"a": 0.55, "b": 0.55}}
    assert gateways_wanted(context) == (4, {})
    context.aggregated_metrics = {}
    assert gateways_wanted(context) == (4, {}), "silence is no reason to change anything"


def test_without_a_higher_maximum_the_number_is_fixed():
    assert autoscaling(Config(gateways=4)) is None
    assert autoscaling(Config(gateways=4, gateways_max=4)) is None
    found = autoscaling(Config(gateways=2, gateways_max=6))
    assert found is not None
    assert (found.min_replicas, found.max_replicas, found.initial_replicas) == (2, 6, 2)
    assert found.policy.policy_function == "serve.scaling:gateways_wanted"


def test_the_meter_reads_cores_since_it_was_last_read():
    times = iter([0.0, 2.0, 2.0, 6.0])
    cpu = iter([1.0, 2.0, 2.0, 5.0])
    meter = BusyMeter(lambda: next(times), lambda: next(cpu))
    assert meter.read() == 0.5
    assert meter.read() == 0.0
    assert meter.read() == 0.75
