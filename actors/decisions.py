"""The JSON of a decide call: what is asked for, by surface, and what is answered. Types only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from actors.contact_rules import ContactRules
from actors.documents import DocumentId
from actors.messages import (
    ACTIONS_MAX,
    DECISIONS_MAX,
    EVENTS_MAX,
    RESULTS_MAX,
    Event,
    MessageId,
    Name,
    Strict,
    Wire,
)
from cluster.levels import Level


class Action(Strict):
    """One candidate. A plain string is short for {"id": string}.

    features  what it is like, for policies of documents
    """

    id: Name
    features: Annotated[dict[Name, str | float | bool], Meta(max_length=64)] = {}


Actions = Annotated[list[str | Action], Meta(min_length=1, max_length=ACTIONS_MAX)]
# Left as JSON when a request is read: a hundred plain ids are looked up faster as text than as
# strings (actors.id_numbers), and what is not plain is decoded as Actions.
RawActions = Annotated[
    msgspec.Raw,
    Meta(
        extra_json_schema={
            "type": ["array", "null"],
            "minItems": 1,
            "maxItems": ACTIONS_MAX,
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "properties": {
                            "id": {"type": "string", "minLength": 1, "maxLength": 256},
                            "features": {"type": "object", "maxProperties": 64},
                        },
                        "required": ["id"],
                        "additionalProperties": False,
                    },
                ]
            },
        }
    ),
]


class Promotion(Strict):
    """A share of the results that goes to items which pass a filter, if there are any."""

    name: Name
    filter: str
    percent_promoted_items: Annotated[int, Meta(ge=1, le=100)]


class Diversity(Strict):
    """At most `max` results with the same value of the attribute `by`."""

    by: Name
    max: Annotated[int, Meta(ge=1, le=RESULTS_MAX)] = 1


class Pin(Strict):
    """An item that stands at a place of the results, 1 = the first, whatever its score."""

    id: Name
    position: Annotated[int, Meta(ge=1, le=RESULTS_MAX)]


class Slot(Strict):
    """One place on the page.

    baseline_action   stands there for people of a holdout, and where a policy does not act
    excluded_actions  never stand there; policies of documents have this
    """

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    baseline_action: Name | None = None
    excluded_actions: Annotated[list[str], Meta(max_length=ACTIONS_MAX)] = []


class Spec(Strict, tag_field="surface"):
    """Base of what may be asked for: one type per surface, told apart by the field `surface`."""

    @property
    def surface(self) -> str:
        """The surface's name, as on the wire."""
        return str(self.__struct_config__.tag)


class RankingSpec(Spec):
    """A ranking of items. Without `actions`, or with null, the whole catalogue is ranked.

    policy          "default" (the engine), "vector", or the id of a document of /v1/policies
    slots           the places to be filled, instead of num_results
    baseline_action stands first for people of a holdout; a slot may have its own
    exclude_seen    True leaves out what the person has seen lately; None = the surface's rule;
                    a policy of a document leaves them in then
    exclude_bought  leaves out what the person has bought lately
    filter          as in `actors.filters`; filter_values fill in its $names
    rotation        0 = the best order; the nearer to 1, the more a reload differs from the last
    exploration     share of the results that goes to items with few events yet
    """

    actions: RawActions = msgspec.field(default_factory=msgspec.Raw)
    excluded_actions: Annotated[list[str], Meta(max_length=ACTIONS_MAX)] = []
    num_results: Annotated[int, Meta(ge=1, le=RESULTS_MAX)] = 10
    policy: DocumentId = "default"
    exclude_seen: bool | None = None
    exclude_bought: bool = True
    filter: str | None = None
    filter_values: dict[str, str | float | bool | list[str | float | bool]] = {}
    promotions: Annotated[list[Promotion], Meta(max_length=4)] = []
    diversity: Diversity | None = None
    pins: Annotated[list[Pin], Meta(max_length=20)] = []
    rotation: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    exploration: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.0
    slots: Annotated[list[Slot], Meta(max_length=RESULTS_MAX)] = []
    baseline_action: Name | None = None


class ContentSpec(RankingSpec, tag="content"):
    """Content to be read, seen or heard."""


class ProductSpec(RankingSpec, tag="product"):
    """Products to be bought."""


class OfferSpec(Spec, tag="offer"):
    """A price or another benefit, chosen among the levels of an offer.

    item_id  what is offered; its price and cost are attributes of the item
    """

    offer_id: DocumentId = "default"
    item_id: Name | None = None


class UiSpec(Spec, tag="ui"):
    """What a person sees of a flag: a variant of the page, or a layout of several slots."""

    flag_key: str


class CommunicationSpec(ContactRules, Spec, tag="communication", kw_only=True):
    """Whether, what, on which channel and when to write to the person.

    trigger  by the rules of this document, which also says who sends; `channels` may narrow it.
             None: by the rules given here; inApp is sent, all else is the caller's to send
    """

    trigger: DocumentId | None = None


DecisionSpec = ContentSpec | ProductSpec | OfferSpec | UiSpec | CommunicationSpec
Surface = Literal["content", "product", "offer", "ui", "communication"]


class DecideRequest(Strict):
    """`POST /v1/decide`: events first, then decisions that already know of them.

    durability   what the answer waits for; None = what the key or else the setting says
    deadline_ms  counted in the owner; a decision not begun by then is made the cheap way
    defer_activation
                 rewards count only once a decision is activated: it may not be seen at all
    """

    user_id: str | None = None
    anonymous_id: str | None = None
    message_id: MessageId | None = None
    session_id: Name | None = None
    events: Annotated[list[Event], Meta(max_length=EVENTS_MAX)] = []
    context: dict[str, str | float | bool | None] = {}
    decisions: Annotated[list[DecisionSpec], Meta(max_length=DECISIONS_MAX)] = []
    explain: bool = False
    timestamp: str | float | None = None
    sent_at: str | float | None = None
    durability: Level | None = None
    deadline_ms: Annotated[float, Meta(gt=0, le=60_000)] | None = None
    defer_activation: bool = False


class Contribution(Wire, omit_defaults=False):
    """What one event of the person, told as in their profile, did to a score."""

    item_id: str
    event: str
    timestamp: int
    contribution: float


class Explanation(Wire):
    """What a score is made of, told twice: each time the parts add up to it.

    components      what each component added
    events          newest first, by how much each of the person's last events changed the score
                    when it came, the events before it given
    without_events  what the score would be without them: popularity, context; None where a policy
                    can't tell events apart
    """

    components: dict[str, float]
    events: list[Contribution] = []
    without_events: float | None = None


class Ranked(Wire):
    """One ranked item.

    probability  P(it is the next action, given that there is one); None where a policy has none
    """

    id: str
    score: float
    probability: float | None = None
    reason: str | None = None
    """Why it stands here, if not for its score: "pinned", "promoted: NAME" or "explored"."""
    explanation: Explanation | None = None
    """On request: what the score is made of."""


class Rejected(Wire):
    """One candidate that was left out, and by which rule."""

    id: str
    rule: str


class FilledSlot(Wire):
    """One slot of a decision and what fills it.

    probability  that this was chosen for this slot, given those before it
    """

    id: str
    reward_action_id: str
    probability: float | None = None


class Assignment(Wire):
    """The experiment that decided how this was decided."""

    key: str
    variant: str


class Evaluated(Wire):
    """One flag: the variant, what it stands for, and why (in OpenFeature's words)."""

    variant: str
    value: Any
    reason: str


class Decision(Wire):
    """One decision of an answer, and what `GET /v1/decisions/{id}` returns of it.

    no_action  P(the session ends here, and there is no next action)
    slots      by slot, where there are several or the caller named them
    reasons    what else had a say: a price that is held, a cap, a holdout
    holdout    the holdout in which the person is: then this is the baseline
    queued     onehop sends it; False: the caller does
    mode       online, apprentice, shadow, frozen or off; where a policy acted or might have
    """

    decision_id: str
    surface: str
    policy_id: str
    model_version: str
    ranking: list[Ranked]
    rejected: list[Rejected]
    no_action: float | None = None
    slots: list[FilledSlot] = []
    reasons: list[str] = []
    experiment: Assignment | None = None
    holdout: str | None = None
    mode: str | None = None
    expires_at: int | None = None
    offer_id: str | None = None
    quote_id: str | None = None
    item_id: str | None = None
    price: float | None = None
    list_price: float | None = None
    discount: float | None = None
    currency: str | None = None
    benefit: str | None = None
    flags: dict[str, Evaluated] = {}
    send: bool | None = None
    trigger: str | None = None
    channel: str | None = None
    template: str | None = None
    send_at: str | None = None
    queued: bool | None = None
    propensity: float | None = None
    suppressed_by: str | None = None
    chances: dict[str, float] = {}
    """On request: for each action, how likely the policy was to choose it for the first place."""


class Took(Wire, omit_defaults=False):
    """Milliseconds by stage inside the owner: waiting, applying events, scoring."""

    queue: float
    update: float
    score: float


class DecideAnswer(Wire, omit_defaults=False):
    """The answer to `POST /v1/decide`. `duplicate` comes first: a repeat only swaps the head."""

    duplicate: bool
    profile_version: int
    durability: str
    degraded: bool
    took_ms: Took
    decisions: list[Decision]
