"""What surfaces counted, over all shards: results of experiments, spreads of prices, budgets."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import Request

from actors.books import MICROS, Books, Tally, merged
from actors.kinds import Budget
from actors.messages import Wire
from actors.sequential import Sample, compare
from actors.surfaces.experiment_documents import Experiment
from actors.surfaces.offer_documents import Guardrails
from cluster.errors import Unavailable
from cluster.frames import Op
from serve.auth import Caller
from serve.gateway import Gateway
from serve.operation import Operation
from serve.problems import Answer

Work = Callable[[Gateway, Caller, Request], Awaitable[Answer]]


class VariantResult(Wire, omit_defaults=False):
    """One variant. Against the control, which has no comparison itself:

    effect   difference of means
    p_value  always valid: it may be looked at as often as one likes
    low, high  the interval of that coverage; None while it has no bounds
    """

    key: str
    people: int
    mean: float
    effect: float | None = None
    p_value: float | None = None
    low: float | None = None
    high: float | None = None
    significant: bool = False


class ExperimentResults(Wire, omit_defaults=False):
    """How an experiment stands. alpha is divided by the number of comparisons (Bonferroni)."""

    id: str
    metric: str
    outcome: str
    alpha: float
    variants: list[VariantResult]


class SegmentPrices(Wire, omit_defaults=False):
    """What one group of people was asked to pay, as a mean share of the list price."""

    segment: str
    quotes: int
    mean_share: float


class SpreadReport(Wire, omit_defaults=False):
    """How far apart groups are. spread is over those with enough quotes."""

    id: str
    by: str | None
    bound: float | None
    spread: float
    segments: list[SegmentPrices]


class BudgetReport(Wire, omit_defaults=False):
    """Where a budget stands: granted to shards, spent by purchases, held back for quotes."""

    id: str
    total: float
    granted: float
    spent: float
    reserved: float


class Documented(Wire):
    """The part of a document's answer that reports need."""

    document: msgspec.Raw


async def get_results(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    experiment_id: str = request.path_params["id"]
    experiment = await _document(gateway, caller, "experiments", experiment_id, Experiment)
    every = await books_of(gateway, caller)
    tallies = merged([books.experiments.get(experiment_id, {}) for books in every])
    samples = [_sample(tallies.get(variant.key, Tally())) for variant in experiment.variants]
    alpha = experiment.alpha / (len(samples) - 1)
    variants: list[VariantResult] = []
    for variant, sample in zip(experiment.variants, samples, strict=True):
        result = VariantResult(variant.key, sample.n, sample.mean)
        if variants:
            found = compare(samples[0], sample, alpha)
            result.effect, result.p_value = found.effect, found.p_value
            if math.isfinite(found.low):
                result.low, result.high = found.low, found.high
            result.significant = found.p_value <= alpha
        variants.append(result)
    metric = experiment.metric
    results = ExperimentResults(experiment_id, metric.event, metric.outcome, alpha, variants)
    return Answer(200, msgspec.json.encode(results))


async def get_spread(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    rails_id: str = request.path_params["id"]
    rails = await _document(gateway, caller, "guardrails", rails_id, Guardrails)
    tallies = merged([books.spreads.get(rails_id, {}) for books in await books_of(gateway, caller)])
    segments = [
        SegmentPrices(name, tally.n, tally.total / tally.n / 1e6)
        for name, tally in sorted(tallies.items())
    ]
    minimum = rails.spread.minimum if rails.spread is not None else 1
    means = [one.mean_share for one in segments if one.quotes >= minimum]
    spread = max(means) - min(means) if means else 0.0
    by, bound = (rails.spread.by, rails.spread.bound) if rails.spread else (None, None)
    return Answer(200, msgspec.json.encode(SpreadReport(rails_id, by, bound, spread, segments)))


async def get_budget(gateway: Gateway, caller: Caller, request: Request) -> Answer:
    budget_id: str = request.path_params["id"]
    budget = await _document(gateway, caller, "budgets", budget_id, Budget)
    every = [
        books.budgets[budget_id]
        for books in await books_of(gateway, caller)
        if budget_id in books.budgets
    ]
    granted, spent = sum(one.granted for one in every), sum(one.spent for one in every)
    reserved = sum(sum(one.reserved.values()) for one in every)
    amounts = (granted / MICROS, spent / MICROS, reserved / MICROS)
    return Answer(200, msgspec.json.encode(BudgetReport(budget_id, budget.total, *amounts)))


async def _document(
    gateway: Gateway, caller: Caller, kind: str, document_id: str, wanted: type[Any]
) -> Any:
    found = await gateway.control.get_document(caller.tenant, kind, document_id, None)
    return msgspec.json.decode(msgspec.json.decode(found, type=Documented).document, type=wanted)


async def books_of(gateway: Gateway, caller: Caller) -> list[Books]:
    """The books of all shards. Raises Unavailable if one can't be reached: half is no result."""

    async def ask(shard_id: str) -> Books:
        status, body = await gateway.router.call_shard(shard_id, Op.BOOKS_GET, b"", caller.meta)
        if status != 200:
            raise Unavailable(f"shard {shard_id} answered {status}")
        return msgspec.json.decode(body, type=Books)

    return list(await asyncio.gather(*(ask(o.shard_id) for o in gateway.router.map.owners)))


def _sample(tally: Tally) -> Sample:
    return Sample(tally.n, tally.total, tally.squares)


REPORT_ROUTES: tuple[tuple[str, str, Work], ...] = (
    ("GET", "/v1/experiments/{id}/results", get_results),
    ("GET", "/v1/guardrails/{id}/spread", get_spread),
    ("GET", "/v1/budgets/{id}/standing", get_budget),
)

REPORT_OPERATIONS = (
    Operation(
        "get",
        "/v1/experiments/{id}/results",
        "How an experiment stands, safe to look at any time",
        answer=ExperimentResults,
    ),
    Operation("get", "/v1/guardrails/{id}/spread", "How far prices are apart", answer=SpreadReport),
    Operation("get", "/v1/budgets/{id}/standing", "Where a budget stands", answer=BudgetReport),
)
