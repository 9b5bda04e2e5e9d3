"""Experiments and holdouts: who gets what is a hash, so it needs no state and never changes.

A person is exposed once, at the first decision that an experiment had a say in; from then on the
events of its metric count as that person's outcome, for as long as the metric's window.
"""

from __future__ import annotations

from typing import NamedTuple

from actors.books import Exposed, Scored
from actors.checked import Applied
from actors.decisions import Assignment
from actors.documents import Documents
from actors.ledger import Exposure, Ledger, OpenLedger
from actors.surfaces.common import share_of
from actors.surfaces.experiment_documents import Experiment, Metric
from actors.surfaces.interface import Who
from actors.tenant import Tenant
from actors.treatment.policy import Policy, policies


class Running(NamedTuple):
    """One experiment, ready to divide people. bounds: upper ends of the variants' shares."""

    experiment_id: str
    experiment: Experiment
    salt: str
    bounds: list[float]
    policies: list[Policy | None]

    def variant_of(self, key: bytes) -> int:
        """The person's variant by number, -1 if the person takes no part."""
        if share_of(f"{self.salt}/traffic", key) * 100.0 >= self.experiment.percent:
            return -1
        share = share_of(f"{self.salt}/variant", key)
        return next(i for i, bound in enumerate(self.bounds) if share < bound)


class Rota(NamedTuple):
    """What has a say in the decisions of one surface, by id."""

    holdouts: list[tuple[str, float]]
    experiments: list[Running]


class Arranged(NamedTuple):
    """What experiments and holdouts say of one decision of one person."""

    holdout: str | None = None
    assignment: Assignment | None = None
    policy: Policy | None = None
    arm: str | None = None


NOTHING = Arranged()
_NO_ROTA = Rota([], [])


def arrange(tenant: Tenant, surface: str, key: str, who: Who) -> Arranged:
    """What has a say in a decision on `key` (a flag, an offer); the person is exposed to it."""
    rota = rotas(tenant).get(surface, _NO_ROTA)
    for holdout_id, percent in rota.holdouts:
        if share_of(f"holdout/{holdout_id}", who.key) * 100.0 < percent:
            return Arranged(holdout=holdout_id)
    for running in rota.experiments:
        if running.experiment.key not in (None, key):
            continue
        number = running.variant_of(who.key)
        if number >= 0:
            variant = running.experiment.variants[number]
            _expose(running.experiment_id, variant.key, who)
            return Arranged(
                None,
                Assignment(running.experiment_id, variant.key),
                running.policies[number],
                variant.arm,
            )
    return NOTHING


def rotas(tenant: Tenant) -> dict[str, Rota]:
    """What has a say, by surface; a surface on which nothing has is not in it."""
    return tenant.documents.derived(compile_rotas)


def _expose(experiment_id: str, variant: str, who: Who) -> None:
    if experiment_id not in who.ledger.read().exposures:
        who.ledger.change().exposures[experiment_id] = Exposure(who.now_s, variant)
        who.ledger.effects.append(Exposed(experiment_id, variant))


def compile_rotas(documents: Documents) -> dict[str, Rota]:
    """Holdouts and running experiments by surface, each in the order of their ids."""
    rotas: dict[str, Rota] = {}
    for holdout_id, holdout in sorted(documents.of("holdouts").items()):
        for surface in holdout.surfaces or SURFACES:
            rotas.setdefault(surface, Rota([], [])).holdouts.append((holdout_id, holdout.percent))
    for experiment_id, experiment in sorted(documents.of("experiments").items()):
        if experiment.running:
            running = _running(experiment_id, experiment, documents)
            rotas.setdefault(experiment.surface, Rota([], [])).experiments.append(running)
    return rotas


def _running(experiment_id: str, experiment: Experiment, documents: Documents) -> Running:
    total = sum(variant.weight for variant in experiment.variants)
    bounds, reached = [], 0.0
    for variant in experiment.variants:
        reached += variant.weight / total
        bounds.append(reached)
    # Rounding must leave nobody without a variant.
    bounds[-1] = 1.0
    known = documents.derived(policies)
    chosen_by = [
        known.get(variant.policy) if variant.policy is not None else None
        for variant in experiment.variants
    ]
    salt = experiment.salt or experiment_id
    return Running(experiment_id, experiment, salt, bounds, chosen_by)


SURFACES = ("content", "product", "offer", "ui", "communication")


def score(tenant: Tenant, opened: OpenLedger, applied: list[Applied], now_s: int) -> None:
    """Count events as outcomes of the experiments that the person was exposed to."""
    experiments = tenant.documents.of("experiments")
    ledger: Ledger = opened.read()
    for experiment_id, exposure in ledger.exposures.items():
        experiment: Experiment | None = experiments.get(experiment_id)
        if experiment is None or not experiment.running:
            continue
        metric = experiment.metric
        if now_s > exposure.time_s + metric.window_s:
            continue
        kind = tenant.event_types.find(metric.event)
        before = exposure.value
        for event in applied:
            if event.event_type == kind:
                exposure.value = _grown(metric, exposure.value, event)
        if exposure.value != before:
            opened.change()
            scored = Scored(experiment_id, exposure.variant, before, exposure.value)
            opened.effects.append(scored)


def _grown(metric: Metric, value: float, event: Applied) -> float:
    if metric.outcome == "conversion":
        return 1.0
    return value + (1.0 if metric.outcome == "count" else event.money)
