"""Decisions of a shard, through Parquet, to the table that `onehop evaluate` prints."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from actors.export_records import read_logged, write_outcomes
from actors.reward_ops import Outcome
from actors.treatment.features import NO_FEATURES, Arm, arms_of
from actors.treatment.policy import PolicySpec, policy_of
from actors.treatment.treatment import Treatment
from cluster.errors import RequestError
from serve.cli import commands


def outcomes(n=300):
    """What a uniform policy showed, with known rates."""
    policy, arms = policy_of("log", PolicySpec("ui", rule="uniform")), arms_of([Arm("a"), Arm("b")])
    treatment, rng = Treatment(), np.random.default_rng(1)
    for number in range(n):
        choice = treatment.choose(policy, NO_FEATURES, arms, rng)
        arm = arms.ids[choice.order[0]]
        reward = float(rng.random() < {"a": 0.1, "b": 0.5}[arm])
        logged_by = "log" if number % 10 else "other"
        yield Outcome(
            decision_id=f"{number:032x}",
            surface="ui",
            policy_id=logged_by,
            decided_at=1000 - number,
            active=True,
            actions=[arm],
            slots=["0"],
            shadow=[],
            rewards=[reward],
            rewarded=[True],
            trace=choice.trace,
        )


def test_what_is_exported_can_be_judged(tmp_path: Path) -> None:
    file, document = tmp_path / "a.parquet", tmp_path / "greedy.yaml"
    assert write_outcomes(file, outcomes()) == 300
    document.write_text("surface: ui\nrule: epsilon-greedy\nfloor: 0.0\n")
    logged = read_logged([file])
    observed = float(np.mean([one.rewards[0] for one in logged]))
    said = CliRunner().invoke(commands, ["evaluate", str(file), "--policy", str(document)])
    assert said.exit_code == 0, said.output
    lines = {tuple(line.split()[:2]): line.split() for line in said.output.splitlines()}
    for estimator in ("ips", "snips", "dr"):
        assert float(lines["logged", estimator][2]) == pytest.approx(observed, abs=1e-5)
        assert float(lines["uniform", estimator][2]) == pytest.approx(observed, abs=0.05)
        assert float(lines["greedy", estimator][2]) > 0.4


def test_decisions_come_in_the_order_of_their_times_and_by_policy(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_outcomes(file, outcomes())
    assert len(read_logged([file], "log")) == 270
    traces = [one.trace for one in outcomes()]
    assert [one.trace for one in read_logged([file])] == traces[::-1]


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(b"no")
    with pytest.raises(RequestError, match="Parquet"):
        read_logged([file])


def test_outcomes_travel_as_json() -> None:
    (one,) = outcomes(1)
    assert msgspec.json.decode(msgspec.json.encode(one), type=Outcome) == one
