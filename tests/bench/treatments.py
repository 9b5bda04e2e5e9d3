"""How well the treatment engine chooses and predicts: the code that serves is measured.

    python -m tests.bench.treatments [PATH] [--json F] [--set NAME] [--halvings N] [--tests N]
                                     [--visits N]

PATH is the folder that holds hillstrom, upworthy, swissmetro, bank and obd-men; the set simulated
needs none. With --set, the file F keeps its rows of other sets. One default policy
for all sets; nothing is tuned here. Rates of clicks are probabilities, log-losses nats; ECE is over
ten bins of equal width.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from actors.evaluation import doubly_robust, ips, snips
from actors.treatment import memory
from actors.treatment.features import NO_FEATURES, Arm, Features, arms_of, features_of
from actors.treatment.policy import Policy, PolicySpec, policy_of
from actors.treatment.treatment import Treatment
from tests.bench import treatments_shop
from tests.bench.harness import Row, report

SEED = 7
PACKAGES = ("numpy", "numba", "msgspec")
BINS = 10
HALVINGS = 20
UPWORTHY_TESTS = 600
IMPRESSIONS = 10_000
BATCH = 100

Floats = NDArray[np.float64]


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a gzip'd TSV."""
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t")


def value_of(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def logloss(chances: Floats, outcomes: Floats) -> float:
    p = np.clip(chances, 1e-9, 1 - 1e-9)
    return float(-(outcomes * np.log(p) + (1 - outcomes) * np.log(1 - p)).mean())


def ece(chances: Floats, outcomes: Floats) -> float:
    """Expected calibration error: how far rates lie from chances, over BINS (Guo et al. 2017)."""
    place = np.minimum((chances * BINS).astype(int), BINS - 1)
    off = [
        abs(float((chances[place == b] - outcomes[place == b]).sum()))
        for b in range(BINS)
        if (place == b).any()
    ]
    return sum(off) / len(chances)


def auc(chances: Floats, outcomes: Floats) -> float:
    """P(a success was given a higher chance than a failure), ties half."""
    values, where = np.unique(chances, return_inverse=True)
    good = np.bincount(where, outcomes, len(values))
    bad = np.bincount(where, 1.0 - outcomes, len(values))
    below = np.cumsum(bad) - bad
    return float((good * (below + 0.5 * bad)).sum() / (good.sum() * bad.sum()))


def only(index: int) -> NDArray[np.int32]:
    return np.array([index], np.int32)


# --- hillstrom -----------------------------------------------------------------------------------


def hillstrom(folder: Path, halvings: int) -> Row:
    """Learn on a random half, choose on the other by what is believed then: SNIPS visit rate."""
    rows = list(rows_of(folder / "rows.tsv.gz"))
    known = ("recency", "history_segment", "history", "mens", "womens", "zip_code", "newbie")
    contexts = [features_of({n: value_of(row[n]) for n in (*known, "channel")}) for row in rows]
    arms = arms_of([Arm(name) for name in sorted({row["segment"] for row in rows})])
    sent = np.array([arms.ids.index(row["segment"]) for row in rows])
    visits = np.array([float(row["visit"]) for row in rows])
    policy = policy_of("campaign", PolicySpec("communication", rule="uniform"))
    frozen = policy_of("campaign", PolicySpec("communication", mode="frozen", floor=0.0))
    found: list[tuple[float, ...]] = []
    for seed in range(halvings):
        rng = np.random.default_rng(SEED + seed)
        half = rng.permutation(len(rows))
        learned, unseen = half[: len(rows) // 2], half[len(rows) // 2 :]
        treatment = Treatment()
        for row in learned.tolist():
            choice = treatment.choose(policy, contexts[row], arms, rng, 1, only(sent[row]))
            treatment.learn(policy, choice.trace, 0, visits[row])
        chances = np.array([treatment.predict(policy, contexts[row], arms) for row in unseen])
        draws = np.array([treatment.probabilities(frozen, contexts[row], arms) for row in unseen])
        at = np.arange(len(unseen))
        weights = draws[at, sent[unseen]] * len(arms.ids)
        own = chances[at, sent[unseen]].astype(float)
        rates = [visits[learned][sent[learned] == a].mean() for a in range(len(arms.ids))]
        best = unseen[sent[unseen] == int(np.argmax(rates))]
        found.append(
            (
                snips(weights, visits[unseen]).value,
                float(visits[best].mean()),
                logloss(own, visits[unseen]),
                ece(own, visits[unseen]),
            )
        )
    values = np.mean(found, axis=0)
    names = ("snips_visit", "fixed_visit", "logloss", "ece")
    return {"set": "hillstrom", **dict(zip(names, values.tolist(), strict=True)), "n": len(rows)}


# --- upworthy ------------------------------------------------------------------------------------


def upworthy(folder: Path, tests_n: int) -> Row:
    """Clicks drawn from observed rates; what is learned comes back in batches of a hundred."""
    by_test: dict[str, list[float]] = {}
    for row in rows_of(folder / "arms.tsv.gz"):
        observed = by_test.setdefault(row["clickability_test_id"], [])
        observed.append(float(row["clicks"]) / float(row["impressions"]))
    rng = np.random.default_rng(SEED)
    tests = [name for name, rates in sorted(by_test.items()) if len(rates) >= 2]
    chosen = rng.permutation(len(tests))[:tests_n]
    # One site: its tests are policies of one surface, in the order in which they come.
    treatment = Treatment()
    gained = possible = 0.0
    for test in chosen.tolist():
        rates = np.array(by_test[tests[test]])
        arms = arms_of([Arm(str(arm)) for arm in range(len(rates))])
        policy = policy_of(tests[test], PolicySpec("content"))
        earned = 0.0
        for _ in range(IMPRESSIONS // BATCH):
            # Nothing is learned within a batch, so its draws are of one distribution.
            odds = treatment.probabilities(policy, NO_FEATURES, arms)
            drawn = rng.choice(len(rates), BATCH, p=odds / odds.sum())
            traces = {
                arm: treatment.choose(policy, NO_FEATURES, arms, rng, 1, only(arm)).trace
                for arm in set(drawn.tolist())
            }
            for arm in drawn.tolist():
                treatment.learn(policy, traces[arm], 0, float(rng.random() < rates[arm]))
            earned += float(rates[drawn].sum())
        gained += earned / IMPRESSIONS - rates.mean()
        possible += rates.max() - rates.mean()
    return {"set": "upworthy", "oracle_share": float(gained / possible), "n": len(chosen)}


# --- swissmetro ----------------------------------------------------------------------------------

MODES = ("TRAIN", "SM", "CAR")
TRAVELLER = ("PURPOSE", "FIRST", "TICKET", "WHO", "LUGGAGE", "AGE", "MALE", "INCOME", "GA")


def swissmetro(folder: Path) -> Row:
    """Each choice of people not learned from is predicted before it is learned."""
    rows = [
        row
        for row in rows_of(folder / "choices.tsv.gz")
        if row["PURPOSE"] in ("1", "3") and row["CHOICE"] != "0"
    ]
    people = list(dict.fromkeys(row["ID"] for row in rows))
    first = set(people[::2])
    policy = policy_of("trip", PolicySpec("offer", outcome="choice"))
    treatment, rng = Treatment(), np.random.default_rng(SEED)
    remembered: dict[str, bytes] = {}
    losses: list[float] = []
    for row in sorted(rows, key=lambda row: row["ID"] not in first):
        person = row["ID"]
        context = features_of({name: row[name] for name in TRAVELLER})
        named = [mode for mode in MODES if _available(row, mode)]
        arms = arms_of([Arm(mode, _trip(row, mode)) for mode in named])
        taken = MODES[int(row["CHOICE"]) - 1]
        own = remembered.get(person, b"")
        if person not in first:
            chance = treatment.predict(policy, context, arms, own)[named.index(taken)]
            losses.append(-float(np.log(chance)))
        choice = treatment.choose(policy, context, arms, rng, len(named), remembered=own)
        place = [named[arm] for arm in choice.order].index(taken)
        treatment.learn_choice(policy, choice.trace, place)
        remembered[person] = treatment.remember(policy, own, choice.trace, place, 1.0)
        assert len(remembered[person]) <= memory.BYTES_MAX
    return {"set": "swissmetro", "nll": float(np.mean(losses)), "n": len(losses)}


def _available(row: dict[str, str], mode: str) -> bool:
    return row[f"{mode}_AV"] != "0" and (mode == "SM" or row["SP"] != "0")


def _trip(row: dict[str, str], mode: str) -> dict[str, float]:
    free = mode != "CAR" and row["GA"] != "0"
    trip = {"time": float(row[f"{mode}_TT"]), "cost": 0.0 if free else float(row[f"{mode}_CO"])}
    return trip if mode == "CAR" else trip | {"headway": float(row[f"{mode}_HE"])}


# --- bank ----------------------------------------------------------------------------------------


def bank(folder: Path) -> Row:
    """Each call is predicted before it is learned, in the order of dates."""
    policy, arms = policy_of("call", PolicySpec("communication")), arms_of([Arm("call")])
    treatment, rng = Treatment(), np.random.default_rng(SEED)
    chances: list[float] = []
    outcomes: list[float] = []
    running: list[float] = []
    total = 1.0
    for row in rows_of(folder / "calls.tsv.gz"):
        known = {n: value_of(v) for n, v in row.items() if n not in ("duration", "y")}
        choice = treatment.choose(policy, features_of(known), arms, rng)
        outcome = float(row["y"] == "yes")
        chances.append(float(choice.chances[0]))
        running.append(total / (len(outcomes) + 2))
        treatment.learn(policy, choice.trace, 0, outcome)
        outcomes.append(outcome)
        total += outcome
    p, y = np.array(chances), np.array(outcomes)
    return {
        "set": "bank",
        "auc": auc(p, y),
        "logloss": logloss(p, y),
        "running_logloss": logloss(np.array(running), y),
        "ece": ece(p, y),
        "n": len(y),
    }


# --- obd-men -------------------------------------------------------------------------------------


def obd_men(folder: Path) -> Row:
    """Estimators over the logs of two policies; off-policy: what the random log says of `bts`."""
    policy = policy_of("obd", PolicySpec("product"))
    random = list(rows_of(folder / "random.tsv.gz"))
    bts = list(rows_of(folder / "bts.tsv.gz"))
    clicks = np.array([float(row["click"]) for row in random])
    propensities = np.array([float(row["propensity_score"]) for row in random])
    ones = propensities / propensities
    items = sorted({row["item_id"] for row in random})
    arms = arms_of([Arm(item) for item in items])
    shown = np.array([items.index(row["item_id"]) for row in random])
    # What `bts` draws, by position: shares in its own log.
    places = sorted({row["position"] for row in random})
    shares = np.full((len(places), len(items)), 1.0)
    for row in bts:
        shares[places.index(row["position"]), items.index(row["item_id"])] += 1.0
    shares /= shares.sum(axis=1, keepdims=True)
    place = np.array([places.index(row["position"]) for row in random])
    weights = shares[place, shown] / propensities
    predicted, expected = _model(policy, random, arms.ids, shown, shares[place], clicks)
    before = np.ones(len(clicks))
    found = {
        "ips": ips(weights, clicks).value,
        "snips": snips(weights, clicks).value,
        "dr": doubly_robust(weights, clicks, predicted, expected, before).value,
    }
    loop = _plain(weights.tolist(), clicks.tolist(), predicted.tolist(), expected.tolist())
    assert np.allclose(list(found.values()), loop), (found, loop)
    on_policy = [
        ips(ones, clicks).value,
        snips(ones, clicks).value,
        doubly_robust(ones, clicks, predicted, predicted, before).value,
    ]
    assert np.allclose(on_policy, clicks.mean()), (on_policy, clicks.mean())
    return {
        "set": "obd-men",
        **found,
        "on_policy": on_policy[0],
        "click_rate": float(clicks.mean()),
        "n": len(clicks),
    }


def _model(
    policy: Policy,
    rows: list[dict[str, str]],
    items: tuple[str, ...],
    shown: NDArray[np.int64],
    shares: Floats,
    clicks: Floats,
) -> tuple[Floats, Floats]:
    """Chances of what was shown, and of what the other policy shows; each before it is learned."""
    treatment, rng = Treatment(), np.random.default_rng(SEED)
    arms = arms_of([Arm(item) for item in items])
    predicted, expected = np.empty(len(rows)), np.empty(len(rows))
    for at, row in enumerate(rows):
        context = _visitor(row)
        chances = treatment.predict(policy, context, arms)
        predicted[at] = chances[shown[at]]
        expected[at] = shares[at] @ chances
        choice = treatment.choose(policy, context, arms, rng, 1, only(int(shown[at])))
        treatment.learn(policy, choice.trace, 0, clicks[at])
    return predicted, expected


def _visitor(row: dict[str, str]) -> Features:
    known = {f"user{i}": row[f"user_feature_{i}"] for i in range(4)}
    return features_of(known | {"position": row["position"]})


def _plain(
    weights: list[float], rewards: list[float], predicted: list[float], expected: list[float]
) -> tuple[float, float, float]:
    """The three estimators as plain loops."""
    total = weighted = corrected = 0.0
    for w, r, q, e in zip(weights, rewards, predicted, expected, strict=True):
        total += w
        weighted += w * r
        corrected += e + w * (r - q)
    return weighted / len(rewards), weighted / total, corrected / len(rewards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=Path("../shared/data/treatments"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", dest="only", action="append")
    parser.add_argument("--halvings", type=int, default=HALVINGS)
    parser.add_argument("--tests", type=int, default=UPWORTHY_TESTS)
    parser.add_argument("--visits", type=int, default=treatments_shop.VISITS)
    given = parser.parse_args()
    programs: dict[str, Callable[[Path], Row]] = {
        "hillstrom": partial(hillstrom, halvings=given.halvings),
        "upworthy": partial(upworthy, tests_n=given.tests),
        "swissmetro": swissmetro,
        "bank": bank,
        "obd-men": obd_men,
        "simulated": lambda _: treatments_shop.simulated(given.visits, SEED),
    }
    rows: list[Row] = []
    for name, program in programs.items():
        folder = given.path / name
        if given.only and name not in given.only:
            continue
        if not folder.is_dir() and name != "simulated":
            continue
        started = perf_counter_ns()
        rows.append(program(folder))
        rows[-1]["seconds"] = (perf_counter_ns() - started) / 1e9
        print(rows[-1], flush=True)
    report("treatments", SEED, _beside(rows, given.json), {}, PACKAGES, given.json)


def _beside(rows: list[Row], path: Path | None) -> list[Row]:
    """The rows, and those of a file for sets that were not run."""
    if path is None or not path.is_file():
        return rows
    ran = {row["set"] for row in rows}
    kept: list[Row] = json.loads(path.read_text())["rows"]
    return [row for row in kept if row["set"] not in ran] + rows


if __name__ == "__main__":
    main()
