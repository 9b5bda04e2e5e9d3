"""All kinds of documents there are. A kind is a name, a type and a check; its routes follow."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from actors.documents import DocumentId, Kind
from actors.messages import Strict
from actors.surfaces.common import Text
from actors.surfaces.experiment_documents import Experiment, Holdout, check_experiment
from actors.surfaces.flag_documents import Flag, check_flag
from actors.surfaces.offer_documents import Guardrails, Offer, check_guardrails, check_offer
from actors.treatment.policy import PolicySpec, check_policy
from actors.triggers import Trigger, check_trigger
from actors.webhook_rules import Webhook, check_webhook


class Budget(Strict):
    """What offers may cost in all. Shards hold portions of it, and decide from these alone.

    total    in the unit of prices; grows and shrinks by a new version
    portion  what a shard holds at most without having spent it; None: total / 100
    """

    total: Annotated[float, Meta(ge=0, le=1e12)]
    id: DocumentId | None = None
    description: Text = ""
    portion: Annotated[float, Meta(gt=0, le=1e12)] | None = None


KINDS = (
    Kind("triggers", Trigger, check_trigger),
    Kind("webhooks", Webhook, check_webhook, ("secret",)),
    Kind("holdouts", Holdout),
    Kind("experiments", Experiment, check_experiment),
    Kind("guardrails", Guardrails, check_guardrails),
    Kind("offers", Offer, check_offer),
    Kind("flags", Flag, check_flag),
    Kind("budgets", Budget),
    Kind("policies", PolicySpec, check_policy),
)
