"""Triggers: which events lead to a message. Documents of kind `triggers`, and what they match.

    {"onEvent": {"event": "Searched", "filter": "results = 0"}, "channels": ["inApp"]}
    {"onEvent": "Item Added", "onInactivity": "PT30M", "exitOn": ["Order Completed"], ...}
    {"onPrediction": {"leave": {"above": 0.7}}, ...}

With `onInactivity` the event starts a timer. Each further event of the person is activity and puts
it off; an event of `exitOn` ends it. Times are the owner's: what arrives later than EVENT_AGE_S
after it happened is history, and triggers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from actors import filters
from actors.contact_rules import (
    IN_APP,
    ContactRules,
    Prepared,
    Threshold,
    check_contact_rules,
    prepare,
)
from actors.documents import DocumentId, Documents, must_exist
from actors.events import TYPES
from actors.filters import And, Compare, Filter, In, Not
from actors.messages import Name, Strict
from actors.schedule import Duration, duration_s
from cluster.errors import RequestError

EVENT_AGE_S = 3600
EXITS_MAX = 16
TRAITS_MAX = 32


class EventPattern(Strict):
    """An event by name, and a filter over its properties and its item's attributes."""

    event: Name
    filter: Annotated[str, Meta(max_length=filters.FILTER_CHARS_MAX)] | None = None


class Prediction(Strict):
    """What is predicted when the trigger is asked; with both, both must hold.

    leave  that the session ends here: the engine's noAction, in a decide call it ranks for
    buy    that the contact succeeds: the policy's chance of a reward, a purchase say, for what it
           chose
    """

    leave: Threshold | None = None
    buy: Threshold | None = None


class Trigger(ContactRules, kw_only=True):
    """One trigger. At least one of on_event, on_inactivity and on_prediction.

    webhook        id of the webhook that sends; without, only inApp is sent
    traits         names of traits that the message carries
    on_event       fires, or starts the timer; with on_prediction: both must hold
    on_inactivity  fires so long after the last event
    enabled        False: starts and fires nothing
    """

    id: DocumentId | None = None
    description: Annotated[str, Meta(max_length=1024)] = ""
    webhook: Name | None = None
    traits: Annotated[tuple[Name, ...], Meta(max_length=TRAITS_MAX)] = ()
    on_event: str | EventPattern | None = None
    on_inactivity: Duration | None = None
    on_prediction: Prediction | None = None
    exit_on: Annotated[tuple[str | EventPattern, ...], Meta(max_length=EXITS_MAX)] = ()
    enabled: bool = True


class Seen:
    """One event as patterns look at it.

    values  its properties, and below them the attributes of its item; read when first asked for,
            since most events match no trigger by name
    """

    __slots__ = ("_read", "_values", "event", "item")

    def __init__(self, event: str, item: str, read: Callable[[], Mapping[str, Any]]) -> None:
        self.event = event
        self.item = item
        self._read = read
        self._values: Mapping[str, Any] | None = None

    @property
    def values(self) -> Mapping[str, Any]:
        if self._values is None:
            self._values = self._read()
        return self._values


class Pattern(NamedTuple):
    """A checked EventPattern. names: what the event may be called, by Segment's aliases too."""

    names: frozenset[str]
    filter: Filter | None

    def matches(self, seen: Seen) -> bool:
        return seen.event in self.names and (
            self.filter is None or passes(self.filter, seen.values)
        )


class Armed(NamedTuple):
    """A trigger made ready. after_s 0: it fires at once. starts None: any event starts it."""

    trigger_id: str
    rules: Trigger
    prepared: Prepared
    starts: Pattern | None
    after_s: int
    exits: tuple[Pattern, ...]

    def begins(self, seen: Seen) -> bool:
        """Whether an event fires the trigger, or starts its timer."""
        return self.starts is None or self.starts.matches(seen)

    def ends(self, seen: Seen) -> bool:
        return any(pattern.matches(seen) for pattern in self.exits)


class Matcher(NamedTuple):
    """All living triggers of a tenant."""

    at_once: tuple[Armed, ...]
    delayed: dict[str, Armed]
    predicted: tuple[Armed, ...]

    @property
    def idle(self) -> bool:
        return not (self.at_once or self.delayed or self.predicted)


def check_trigger(trigger: Trigger, trigger_id: str, documents: Documents) -> None:
    """What the types can't say. Raises RequestError naming the field."""
    if not (trigger.on_event or trigger.on_inactivity or trigger.on_prediction):
        wanted = "onEvent, onInactivity or onPrediction"
        raise RequestError(422, "the trigger never fires", "onEvent", "nothing", wanted)
    if trigger.on_inactivity is not None:
        duration_s(trigger.on_inactivity, "onInactivity")
        if trigger.on_prediction is not None:
            wanted = "one of onInactivity and onPrediction"
            raise RequestError(422, "both can't be", "onPrediction", "both", wanted)
    elif trigger.exit_on:
        wanted = "onInactivity, for there is no timer to end without"
        raise RequestError(422, "nothing can be ended", "exitOn", "onEvent alone", wanted)
    prediction = trigger.on_prediction
    if prediction is not None and prediction.leave is None and prediction.buy is None:
        raise RequestError(422, "nothing is predicted", "onPrediction", "{}", "leave or buy")
    if prediction is not None and prediction.buy is not None and trigger.policy is None:
        wanted = "a policy, whose rewards say what a success is"
        raise RequestError(422, "nobody predicts that", "policy", "nothing", wanted)
    if trigger.on_event is not None:
        _pattern(trigger.on_event, "onEvent")
    for i, pattern in enumerate(trigger.exit_on):
        _pattern(pattern, f"exitOn[{i}]")
    check_contact_rules(trigger, "")
    if trigger.webhook is None and set(trigger.channels) != {IN_APP}:
        wanted = f"a webhook; without one only {IN_APP} is sent"
        raise RequestError(422, "nothing sends this", "webhook", "nothing", wanted)
    if trigger.hold_back:
        wanted = "a decide call, whose caller can tell what came of it"
        raise RequestError(422, "a trigger can't hold back", "holdBack", "true", wanted)
    must_exist(documents, "webhooks", trigger.webhook, "webhook")
    must_exist(documents, "policies", trigger.policy, "policy")


def matcher_of(documents: Documents) -> Matcher:
    """The living triggers, made ready; for `Documents.derived`."""
    at_once, predicted, delayed = [], [], {}
    for trigger_id, trigger in documents.of("triggers").items():
        if not trigger.enabled:
            continue
        starts = None if trigger.on_event is None else _pattern(trigger.on_event, "onEvent")
        exits = tuple(_pattern(one, "exitOn") for one in trigger.exit_on)
        after_s = duration_s(trigger.on_inactivity, "") if trigger.on_inactivity else 0
        armed = Armed(trigger_id, trigger, prepare(trigger), starts, after_s, exits)
        if after_s:
            delayed[trigger_id] = armed
        elif trigger.on_prediction is not None:
            predicted.append(armed)
        else:
            at_once.append(armed)
    return Matcher(tuple(at_once), delayed, tuple(predicted))


def passes(term: Filter, values: Mapping[str, Any]) -> bool:
    """Whether the values of one event pass a filter, as `filters.evaluate` says of items."""
    if isinstance(term, Compare):
        return _compare(term, values.get(term.name))
    if isinstance(term, In):
        return any(_compare(Compare(term.name, "=", v), values.get(term.name)) for v in term.values)
    if isinstance(term, Not):
        return not passes(term.term, values)
    parts = (passes(part, values) for part in term.terms)
    return all(parts) if isinstance(term, And) else any(parts)


def _compare(term: Compare, value: Any) -> bool:
    if isinstance(term.value, str):
        if not isinstance(value, str):
            return False
        return (value == term.value) is (term.op == "=")
    if not isinstance(value, (bool, int, float)):
        return False
    return bool(filters.SIGNS[term.op](float(value), float(term.value)))


def _pattern(spec: str | EventPattern, field: str) -> Pattern:
    if isinstance(spec, str):
        spec = EventPattern(spec)
    if not 0 < len(spec.event) <= 256:
        raise RequestError(
            422, "the event has no usable name", field, repr(spec.event), "1 to 256 characters"
        )
    number = TYPES.get(spec.event)
    aliases = (name for name, other in TYPES.items() if other == number)
    names = frozenset((spec.event, *aliases))
    term = None if spec.filter is None else filters.parse(spec.filter, {}, f"{field}.filter")
    return Pattern(names, term)
