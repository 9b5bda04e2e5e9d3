"""How good the engine's answers are, and what they cost: the code that serves is measured.

    python -m tests.bench.quality PATH... [--json F] [--cases N]
                                  [--online] [--compare] [--ablate] [--components]

Latencies are of one decision over the whole catalogue: p50_us and p99_us its scoring by the wall
clock, cpu_us_* all of it, JSON in to JSON out, by the thread's CPU clock, which does not see what
else the machine is busy with.

A PATH is a folder in one of the formats of `quality_data`. Train is loaded into a `Shard` as the
stream that it was; then each test case is one `decide` request. What a person did before is put
into their profile without being learned, so that a frozen run learns nothing from its test.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import Any, NamedTuple

import msgspec
import numpy as np

from actors import events
from actors.engine import features as f
from actors.engine.base import NEVER
from actors.engine.engine import NextAction
from actors.messages import Item
from actors.people import Caller, person_key
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from tests.bench.harness import Row, report, table
from tests.bench.quality_baselines import baselines, rank_of
from tests.bench.quality_components import components
from tests.bench.quality_data import STEP_S, TIME_MAX_S, Case, Data, read

SEED = 7
CALLER = Caller("s", "default")
PACKAGES = ("numpy", "numba", "msgspec")
RESULTS = 100
EXCLUDED_MAX = 1000
BINS = 20
COMPONENTS = {
    "transitions": (f.AFTER, f.DIRECT, f.BEFORE),
    "neighbours": (f.NEIGHBOURS, f.NEIGHBOURS_BEFORE),
    "own history": (f.OWN, f.OWN_COUNT, f.CURRENT, f.PREVIOUS),
    "popularity": (f.POPULAR, f.POPULAR_NOW),
    "last two": (f.PAIR,),
}
COLUMNS = (
    *(
        "set",
        "arm",
        "hr20",
        "mrr20",
        "r10",
        "ndcg10",
        "logloss",
        "acc1",
        "acc5",
        "ece",
        "ece_floor",
    ),
    *(
        "p50_us",
        "p99_us",
        "cpu_us_p50",
        "cpu_us_p99",
        "learn_us",
        "learn_us_p99",
        "model_bytes",
        "load_s",
        "tune_s",
        "half_life_days",
        "cases",
    ),
)


class Outcome(NamedTuple):
    """What one case came to. rank is 0 if the target was not among the results."""

    rank: float
    top: float
    probability: float
    us: float
    cpu_us: float


class Subject:
    """A shard that has learned a data set's train stream."""

    def __init__(self, data: Data, silenced: Iterable[int] = ()) -> None:
        self.data = data
        people = int(data.people.max()) + 1
        config = Config(
            profiles_max=max(people * 2, 1 << 16),
            profile_bytes_max=1 << 30,
            items_max=max(data.items_n, 1024),
        )
        self.now_s = float(TIME_MAX_S + 10 * STEP_S)
        self.shard = Shard("0", KeyRange(0, HASH_SPACE), config, now=lambda: self.now_s)
        tenant = self.shard.tenant(CALLER.tenant)
        for number in range(data.items_n):
            tenant.catalogue.put(Item(str(number)))
        assert isinstance(tenant.engine, NextAction)
        self.engine = tenant.engine
        for feature in silenced:
            self.engine.stacker.silence(feature)
        started = perf_counter_ns()
        self._load(people)
        self.engine.consolidate()
        self.load_s = (perf_counter_ns() - started) / 1e9
        self.engine.tune()
        self.engine.consolidate()
        self.half_life_s = self.engine.stacker.sums().half_life_s
        self.tune_s = (perf_counter_ns() - started) / 1e9 - self.load_s

    def _load(self, people: int) -> None:
        data = self.data
        keys = b"".join(person_key(CALLER, f"p{person}", None) for person in range(people))
        halves = np.frombuffer(keys, ">i8").astype(np.int64).reshape(-1, 2)[data.people]
        self.shard.loads.events(
            "train",
            CALLER.tenant,
            {
                "key_hi": halves[:, 0].copy(),
                "key_lo": halves[:, 1].copy(),
                "item": data.items,
                "type": np.full(len(data.items), events.VIEWED, np.uint8),
                "value": np.zeros(len(data.items), np.float32),
                "time": data.times,
            },
        )

    def ask(self, case: Case, name: str, new: bool) -> Outcome:
        """Predict a case. With `new`, the history is put into the profile of a stranger first."""
        store = self.shard.store
        if new:
            row = store.ensure(person_key(CALLER, name, None), int(self.now_s))
            for item in case.history[-50:]:
                store.enter_ring(row, item, events.VIEWED, 0.0, int(self.now_s))
        hidden: list[int] = []
        if self.data.hidden == "current":
            hidden = case.history[-1:]
        elif self.data.hidden == "seen":
            hidden = case.history
        spec = {
            "surface": "product",
            "numResults": RESULTS,
            "excludedActions": [str(item) for item in dict.fromkeys(hidden[-EXCLUDED_MAX:])],
        }
        decisions: list[dict[str, Any]] = [spec]
        if self.data.kind == "pages":
            decisions.append({"surface": "product", "actions": [str(case.target)]})
        body = msgspec.json.encode({"userId": name, "decisions": decisions})
        started = thread_time_ns()
        status, raw = self.shard.handle(Op.DECIDE, CALLER, body, perf_counter_ns())
        cpu_us = (thread_time_ns() - started) / 1e3 / len(decisions)
        assert status == 200, raw
        answer = msgspec.json.decode(raw)
        if new:
            self.shard.store.remove(row)
            self.engine.forget(row)
        us = answer["tookMs"]["score"] * 1000 / len(decisions)
        return _outcome(
            answer["decisions"], case, {str(i) for i in hidden[:-EXCLUDED_MAX]}, us, cpu_us
        )

    def learn(self, sequence: list[int], name: str) -> None:
        """Let a finished session come in as live events."""
        for item in sequence:
            event = {"event": "Item Viewed", "properties": {"itemId": str(item)}}
            body = msgspec.json.encode({"userId": name, **event})
            status, raw = self.shard.handle(Op.TRACK, CALLER, body, perf_counter_ns())
            assert status == 200, raw
        self.now_s += 1.0

    def learn_us(self, limit: int = 20000) -> tuple[float, float]:
        """Mean and p99 microseconds of `engine.learn` on the last events of train."""
        row = self.shard.store.find(person_key(CALLER, "p0", None))
        took = []
        for item in self.data.items[-limit:].tolist():
            started = perf_counter_ns()
            self.engine.learn(row, item, events.VIEWED, 0.0, int(self.now_s))
            took.append(perf_counter_ns() - started)
        return float(np.mean(took)) / 1e3, float(np.percentile(took, 99)) / 1e3


def _outcome(
    decisions: list[Any], case: Case, hidden: set[str], us: float, cpu_us: float
) -> Outcome:
    ranking = [r for r in decisions[0]["ranking"] if r["id"] not in hidden]
    scores = {r["id"]: r["score"] for r in ranking}
    wanted = str(case.target)
    rank = 0.0
    if wanted in scores:
        ties = sum(score == scores[wanted] for score in scores.values())
        better = sum(score > scores[wanted] for score in scores.values())
        rank = 1 + better + (ties - 1) / 2
    if len(decisions) > 1:
        probability = decisions[1]["ranking"][0]["probability"]
    else:
        probability = next((r["probability"] for r in ranking if r["id"] == wanted), 0.0)
    return Outcome(rank, ranking[0]["probability"], probability, us, cpu_us)


def ece(said: list[float], came: Sequence[bool]) -> float:
    """Expected calibration error of the top answer over BINS bins of equal mass."""
    p, hits = np.array(said), np.array(came, np.float64)
    parts = np.array_split(np.argsort(p, kind="stable"), BINS)
    gaps = [len(i) * abs(float(p[i].mean() - hits[i].mean())) for i in parts if len(i)]
    return sum(gaps) / len(p)


def ece_floor(said: list[float], draws: int = 100) -> float:
    """The mean ECE of outcomes drawn from the said probabilities: what chance alone leaves."""
    rng = np.random.default_rng(SEED)
    p = np.array(said)
    return float(np.mean([ece(said, (rng.random(len(p)) < p).tolist()) for _ in range(draws)]))


def metrics(data: Data, ranks: list[float]) -> dict[str, float]:
    """The columns that the set's numbers are named by."""
    r = np.array(ranks, np.float64)
    inverse = np.divide(1.0, r, out=np.zeros_like(r), where=r > 0)
    within = lambda k: (r > 0) & (r <= k)  # noqa: E731
    if data.kind == "leave-one-out":
        gain = np.divide(1.0, np.log2(r + 1), out=np.zeros_like(r), where=within(10))
        return {"r10": float(within(10).mean()), "ndcg10": float(gain.mean())}
    if data.kind == "pages":
        return {"acc1": float((r == 1).mean()), "acc5": float(within(5).mean())}
    return {"hr20": float(within(20).mean()), "mrr20": float((inverse * within(20)).mean())}


def chosen_sessions(data: Data, cases_max: int) -> list[tuple[int, list[Case]]]:
    """Sessions with their numbers: all, or a seeded sample of about `cases_max` cases, in order."""
    total = sum(len(s) for s in data.sessions)
    if not cases_max or total <= cases_max or data.kind == "pages":
        return list(enumerate(data.sessions))
    count = max(1, len(data.sessions) * cases_max // total)
    picks = np.random.default_rng(SEED).choice(len(data.sessions), count, replace=False)
    return [(i, data.sessions[i]) for i in np.sort(picks).tolist()]


def measure(data: Data, cases_max: int, online: bool, silenced: Iterable[int] = ()) -> Row:
    """One row of the table: the engine on one data set."""
    subject = Subject(data, silenced)
    outcomes = []
    for number, cases in chosen_sessions(data, cases_max):
        known = data.kind == "leave-one-out"
        for j, case in enumerate(cases):
            name = f"p{number}" if known else f"case {number} {j}"
            outcomes.append(subject.ask(case, name, not known))
        if online or data.kind == "pages":
            longest = max(cases, key=lambda case: len(case.history))
            subject.learn([*longest.history, longest.target], f"session {number}")
            subject.engine.settle()
    row: Row = {"set": data.name, "arm": "onehop online" if online else "onehop"}
    row |= metrics(data, [o.rank for o in outcomes])
    if data.kind == "pages":
        row["logloss"] = float(np.mean([-np.log(max(o.probability, 1e-9)) for o in outcomes]))
    us = np.array([o.us for o in outcomes])
    cpu_us = np.array([o.cpu_us for o in outcomes])
    learn_us, learn_us_p99 = subject.learn_us()
    return row | {
        "ece": ece([o.top for o in outcomes], [o.rank == 1 for o in outcomes]),
        "ece_floor": ece_floor([o.top for o in outcomes]),
        "p50_us": float(np.percentile(us, 50)),
        "p99_us": float(np.percentile(us, 99)),
        "cpu_us_p50": float(np.percentile(cpu_us, 50)),
        "cpu_us_p99": float(np.percentile(cpu_us, 99)),
        "learn_us": learn_us,
        "learn_us_p99": learn_us_p99,
        "model_bytes": subject.engine.bytes_used(),
        "load_s": subject.load_s,
        "tune_s": subject.tune_s,
        "half_life_days": 0 if subject.half_life_s == NEVER else round(subject.half_life_s / 86400),
        "cases": len(outcomes),
    }


def compare(data: Data, cases_max: int) -> list[Row]:
    """The rows of the published baselines, learned from train only."""
    found = []
    for arm, score in baselines(data).items():
        ranks, us = [], []
        for _, cases in chosen_sessions(data, cases_max):
            for case in cases:
                started = perf_counter_ns()
                scores = score(case.history)
                us.append((perf_counter_ns() - started) / 1e3)
                ranks.append(rank_of(scores, case, data.hidden))
        row: Row = {"set": data.name, "arm": arm} | metrics(data, ranks)
        found.append(row | {"p50_us": float(np.median(us)), "cases": len(ranks)})
    return found


def ablate(data: Data, cases_max: int) -> list[Row]:
    """One row per component that is left out: its weights are held at 0 while the others learn."""
    rows = []
    for name, left_out in COMPONENTS.items():
        products = [
            f.EVIDENCE + i for i, pair in enumerate(f.PRODUCTS) if set(pair) & set(left_out)
        ]
        row = measure(data, cases_max, False, [*left_out, *products])
        rows.append(row | {"arm": f"without {name}"})
    return rows


def latencies(data: Data, cases_max: int) -> list[Row]:
    """One row per component: what it costs in a decision, by its kernels."""
    sessions = chosen_sessions(data, cases_max)
    histories = [case.history for _, cases in sessions for case in cases]
    return components(data.name, Subject(data).engine, histories)


def tidy(row: Row) -> Row:
    """The row with as many digits as say something."""
    digits = {
        "cpu_us_p50": 1,
        "cpu_us_p99": 1,
        "p50_us": 1,
        "p99_us": 1,
        "learn_us": 1,
        "learn_us_p99": 1,
        "load_s": 2,
        "tune_s": 2,
    }
    return {
        k: round(v, digits.get(k, 4)) if isinstance(v, float) else v
        for k, v in row.items()
        if k in COLUMNS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--online", action="store_true", help="learn each finished test session")
    parser.add_argument("--compare", action="store_true", help="also run published baselines")
    parser.add_argument("--ablate", action="store_true", help="also leave out each component")
    parser.add_argument("--components", action="store_true", help="also time each component")
    parser.add_argument("--cases", type=int, default=0, help="about so many test cases; 0 = all")
    options = parser.parse_args()
    rows: list[Row] = []
    for path in options.paths:
        data = read(path)
        rows.append(measure(data, options.cases, False))
        if options.online and data.kind == "next-item":
            rows.append(measure(data, options.cases, True))
        if options.compare:
            rows += compare(data, options.cases)
        if options.ablate:
            rows += ablate(data, options.cases)
        if options.components:
            rows += latencies(data, options.cases)
        print(table([tidy(row) for row in rows]), flush=True)
    report("quality", SEED, [tidy(row) for row in rows], {}, PACKAGES, options.json)


if __name__ == "__main__":
    main()
