"""Experiments and holdouts as documents."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from actors.decisions import Surface
from actors.documents import DocumentId, Documents, must_exist
from actors.messages import Name, Strict
from actors.surfaces.common import Seconds, Text
from cluster.errors import RequestError

WEEK_S = 7 * 86_400


class Variant(Strict):
    """One way to decide. Without policy and arm it is as it would be without the experiment.

    policy  decides instead of the usual one; arm: always this level, variant or action
    """

    key: DocumentId
    weight: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    policy: DocumentId | None = None
    arm: Name | None = None


class Metric(Strict):
    """What is compared: per exposed person, within `window_s` of the exposure.

    outcome  conversion: whether the event came; count: how often; revenue: what it brought
    """

    event: Name
    outcome: Literal["conversion", "count", "revenue"] = "conversion"
    window_s: Seconds = WEEK_S


class Experiment(Strict):
    """People divided among variants, the first of which is the control.

    key      the flag, offer or trigger it is about; None: all of the surface
    percent  of people who take part
    salt     other words, other division of people; None: the experiment's id
    """

    surface: Surface
    variants: Annotated[tuple[Variant, ...], Meta(min_length=2, max_length=10)]
    metric: Metric
    id: DocumentId | None = None
    description: Text = ""
    key: Name | None = None
    percent: Annotated[float, Meta(gt=0, le=100)] = 100.0
    alpha: Annotated[float, Meta(gt=0, lt=0.5)] = 0.05
    salt: Name | None = None
    running: bool = True


class Holdout(Strict):
    """A share of people for whom nothing is personalized, to measure what personalization brings.

    percent   of people, by a hash of person and id; they stay the same people
    surfaces  on which; none named: on all
    """

    percent: Annotated[float, Meta(gt=0, le=50)]
    id: DocumentId | None = None
    description: Text = ""
    surfaces: tuple[Surface, ...] = ()


def check_experiment(experiment: Experiment, document_id: str, documents: Documents) -> None:
    """Raises RequestError if an experiment can't be run."""
    keys = [variant.key for variant in experiment.variants]
    for i, variant in enumerate(experiment.variants):
        must_exist(documents, "policies", variant.policy, f"variants[{i}].policy")
        if keys.index(variant.key) != i:
            raise RequestError(
                422, "keys of variants must differ", f"variants[{i}].key", variant.key
            )
