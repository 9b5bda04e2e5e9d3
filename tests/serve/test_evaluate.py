"""Decisions of a shard, through Parquet, to the table that `onehop evaluate` prints."""

from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from actors import export_records
from actors.evaluation import Logged, judge
from actors.export_records import OutcomesFile, read_logged
from actors.reward_ops import Outcome
from actors.treatment.features import NO_FEATURES, Arm, arms_of
from actors.treatment.policy import PolicySpec, policy_of
from actors.treatment.treatment import Treatment
from cluster.errors import RequestError
from serve.cli import commands


def write_outcomes(file: Path, found) -> int:
    with OutcomesFile(file) as written:
        for one in found:
            written.write([one])
    return written.written


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


def test_what_is_held_while_exporting_is_bounded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export_records, "ROWS_MAX", 64)
    file = tmp_path / "a.parquet"
    with OutcomesFile(file) as written:
        for one in outcomes():
            written.write([one])
            assert len(written._rows) < 64
        assert not file.exists()
    parquet = pq.ParquetFile(file)
    assert [parquet.metadata.row_group(i).num_rows for i in range(5)] == [64] * 4 + [300 - 256]
    monkeypatch.setattr(export_records, "TRACE_BYTES_MAX", 1)
    assert write_outcomes(file, outcomes(3)) == 3
    assert pq.ParquetFile(file).metadata.num_row_groups == 4


def test_an_export_that_fails_leaves_no_file(tmp_path: Path) -> None:
    spoiled = [*outcomes(3), msgspec.structs.replace(next(outcomes(1)), trace=b"no")]
    with pytest.raises(msgspec.DecodeError):
        write_outcomes(tmp_path / "a.parquet", spoiled)
    assert list(tmp_path.iterdir()) == []


def chosen(n=1500, seed=2):
    """What people took of three prices shown side by side in random order: a known logit."""
    policy = policy_of("log", PolicySpec("offer", outcome="choice", rule="uniform"))
    worth = (1.0, 2.0, 6.0)
    arms = arms_of([Arm(f"a{i}", {}, value) for i, value in enumerate(worth)])
    rng, odds = np.random.default_rng(seed), np.array([0.6, 0.3, 0.1])
    found = []
    for _ in range(n):
        choice = Treatment().choose(policy, NO_FEATURES, arms, rng, 3)
        taken = rng.choice(3, p=odds)
        found.append(Logged(choice.trace, (choice.order == taken).astype(float).tolist()))
    return found


def test_a_choice_is_learned_as_a_choice() -> None:
    """Doubly robust expects of every slot what people take: a third, on average over the arms."""
    candidate = policy_of("c", PolicySpec("offer", outcome="choice", rule="uniform"))
    judged = judge(chosen(), candidate)
    assert judged.weights == pytest.approx(np.ones(4500))
    late = judged.predicted[-900:].reshape(-1, 3)
    assert late.sum(axis=1) == pytest.approx(np.ones(300), abs=1e-5)
    assert np.sort(late, axis=1).mean(axis=0) == pytest.approx([0.1, 0.3, 0.6], abs=0.05)
    assert judged.estimates()["dr"].value == pytest.approx(1 / 3, abs=0.01)


def test_by_worth_a_reward_counts_what_it_brings() -> None:
    logged = chosen()
    by_worth = judge(logged, None, by_worth=True).rewards.reshape(-1, 3).sum(axis=1).mean()
    assert by_worth == pytest.approx(0.6 * 1 + 0.3 * 2 + 0.1 * 6, abs=0.1)
    same = judge(logged, policy_of("c", PolicySpec("offer", rule="uniform")), by_worth=True)
    assert same.estimates()["ips"].value == pytest.approx(by_worth / 3, abs=1e-9)
    assert same.estimates()["dr"].value == pytest.approx(by_worth / 3, abs=0.05)


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(b"no")
    with pytest.raises(RequestError, match="Parquet"):
        read_logged([file])


def test_outcomes_travel_as_json() -> None:
    (one,) = outcomes(1)
    assert msgspec.json.decode(msgspec.json.encode(one), type=Outcome) == one
