"""Watches the events and timers of one shard for its triggers, and decides on what they send.

Triggers are asked in the very turn that applies the events, so a timer is cancelled by the event
that ends the inactivity before anything else can happen, and what is to be sent stands in the
record of the event that caused it. A timer that fires is a record of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from actors.checked import Applied
from actors.contact import Cause, choose, commit, describe, message_of
from actors.decisions import Decision
from actors.ledger import LEDGER_BYTES_MAX, Ledger, OpenLedger, Reach, Timer, pack, unpack
from actors.messages import Event, TrackRequest
from actors.records import Contacted, Fired
from actors.state import ShardState
from actors.tenant import Tenant
from actors.timers import Due
from actors.triggers import EVENT_AGE_S, Armed, Matcher, Seen, matcher_of
from cluster.errors import StoreFull
from cluster.keys import ANONYMOUS, USER

LOG = logging.getLogger("onehop.actors")

TIMERS_MAX = 16
"""Timers of one person."""
LEDGER_SPARE_BYTES = 1024
"""A ledger with less room than this starts no timer."""
FIRED_MAX = 200
AGAIN_S = 60
"""A timer that can't fire, for want of room, is looked at again so much later."""


class Person(NamedTuple):
    """Whom a request is about."""

    key: bytes
    row: int
    reach: Reach


class Said(NamedTuple):
    """What one request says: of whom, which events.

    body  of the request: the event, or with a list of `events`
    """

    key: bytes
    row: int
    user_id: str | None
    anonymous_id: str | None
    events: Sequence[Event | TrackRequest]
    applied: list[Applied]
    body: bytes

    def person(self, tenant: str) -> Person:
        if self.user_id is not None:
            return Person(self.key, self.row, Reach(tenant, USER, self.user_id))
        return Person(self.key, self.row, Reach(tenant, ANONYMOUS, self.anonymous_id or ""))

    def seen(self, tenant: Tenant) -> list[Seen]:
        """The events as patterns look at them."""
        items = [(event.properties and event.properties.item_id) or "" for event in self.events]
        return [
            Seen(event.event, item, partial(self._values, tenant, i, item))
            for i, (event, item) in enumerate(zip(self.events, items, strict=True))
        ]

    def _values(self, tenant: Tenant, index: int, item: str) -> dict[str, Any]:
        """All properties of an event, and below them its item's attributes."""
        said = msgspec.json.decode(self.body)
        event = said["events"][index] if "events" in said else said
        document = tenant.catalogue.document(item) if item else None
        attributes = msgspec.json.decode(document).get("attributes", {}) if document else {}
        found: dict[str, Any] = attributes | (event.get("properties") or {})
        return found


class Watched(NamedTuple):
    """What one request leads to. moved: (trigger, when its timer runs out now; 0 = never)."""

    contacted: list[Contacted]
    moved: list[tuple[str, int]]


NOTHING = Watched([], [])


class Watch:
    """Triggers of one shard. new_number: gives out the number of a decision."""

    def __init__(self, state: ShardState, new_number: Callable[[], int]) -> None:
        self._state = state
        self._new_number = new_number
        self.fired = 0
        self.cancelled = 0
        self.suppressed: dict[str, int] = {}
        """Contacts that a trigger asked for and a rule forbade, by rule."""

    def observe(
        self, tenant: Tenant, said: Said, ledger: OpenLedger, decisions: list[Decision], now_s: int
    ) -> Watched:
        """What the events and predictions of one request lead to: changes the ledger only.

        Once that is stored: `moved` what is returned, which stands in the request's record.
        Never raises: the events are applied, and a trigger that fails must not undo that.
        """
        matcher = tenant.documents.derived(matcher_of)
        if matcher.idle or said.row < 0:
            return NOTHING
        mark = ledger.mark()
        try:
            return self._observe(tenant, matcher, said, ledger, decisions, now_s)
        except Exception:
            LOG.exception("shard %s: the triggers failed on an event", self._state.shard_id)
            ledger.back_to(mark)
            return NOTHING

    def _observe(
        self,
        tenant: Tenant,
        matcher: Matcher,
        said: Said,
        ledger: OpenLedger,
        decisions: list[Decision],
        now_s: int,
    ) -> Watched:
        person, applied = said.person(tenant.name), said.applied
        seen = said.seen(tenant)
        moved: list[tuple[str, int]] = []
        causes: list[tuple[Armed, Cause]] = []
        for event, what in zip(seen, applied, strict=True):
            fresh = what.time_s >= now_s - EVENT_AGE_S
            moved += self._move_timers(matcher, person, event, what.item, fresh, ledger, now_s)
            for armed in matcher.at_once if fresh else ():
                if armed.starts is not None and armed.starts.matches(event):
                    causes.append((armed, Cause(armed.trigger_id, event.event, event.item)))
        for armed in matcher.predicted:
            if _predicted(armed, seen, decisions):
                causes.append((armed, Cause(armed.trigger_id)))
        contacted = []
        for armed, cause in causes:
            one = self._contact(tenant, person, armed, cause, ledger.read(), now_s)
            if one is not None:
                ledger.change()
                contacted.append(one)
        return Watched(contacted, moved)

    def moved(self, key: bytes, watched: Watched) -> None:
        """Let the timers run as the ledger says, now that it is stored."""
        for trigger, due_s in watched.moved:
            if due_s:
                self._state.timers.set(key, trigger, due_s)
            else:
                self._state.timers.cancel(key, trigger)
                self.cancelled += 1

    def _move_timers(
        self,
        matcher: Matcher,
        person: Person,
        event: Seen,
        item: int,
        fresh: bool,
        ledger: OpenLedger,
        now_s: int,
    ) -> list[tuple[str, int]]:
        """End, put off and start timers, by one event."""
        moved = []
        for timer in list(ledger.read().timers):
            armed = matcher.delayed.get(timer.trigger)
            if armed is None or armed.ends(event):
                ledger.change().timers.remove(timer)
                moved.append((timer.trigger, 0))
            elif fresh:
                if timer.due_s != now_s + armed.after_s:
                    ledger.change()
                    timer.due_s = now_s + armed.after_s
                    moved.append((timer.trigger, timer.due_s))
                if item >= 0 and item != timer.item and armed.begins(event):
                    ledger.change()
                    timer.item = item
        running = {timer.trigger for timer in ledger.read().timers}
        for trigger_id, armed in matcher.delayed.items() if fresh else ():
            if trigger_id in running or armed.ends(event) or not armed.begins(event):
                continue
            if not self._has_room(person, ledger):
                self._suppress("no room for a timer")
                continue
            changed = ledger.change()
            changed.reach = person.reach
            changed.timers.append(Timer(trigger_id, now_s + armed.after_s, now_s, item))
            moved.append((trigger_id, now_s + armed.after_s))
        if moved and not ledger.read().timers:
            ledger.change().reach = None
        return moved

    def _has_room(self, person: Person, ledger: OpenLedger) -> bool:
        """Whether a timer more may be started: an event must be applied whatever a ledger holds."""
        used = len(self._state.store.ledger(person.row)) + len(person.reach.person)
        return (
            not self._state.timers.full
            and len(ledger.read().timers) < TIMERS_MAX
            and used <= LEDGER_BYTES_MAX - LEDGER_SPARE_BYTES
        )

    # Timers that run out.

    def tick(self, posted: Callable[[list[Contacted]], None]) -> int:
        """Fire what is due, a bounded part at a time; returns how many did.

        posted  told of what is to be sent, once it is logged
        """
        state = self._state
        fired = 0
        while fired < FIRED_MAX:
            if not state.outbox.has_room or (
                state.journal is not None and not state.journal.has_room
            ):
                break  # Timers wait, rather than that a message is lost.
            due = state.timers.take(state.now())
            if due is None:
                break
            try:
                fired += self._fire(due, posted)
            except Exception as error:
                if not isinstance(error, StoreFull):
                    LOG.exception("shard %s: trigger %s did not fire", state.shard_id, due.trigger)
                state.timers.set(due.key, due.trigger, int(state.now()) + AGAIN_S)
        self.fired += fired
        return fired

    def _fire(self, due: Due, posted: Callable[[list[Contacted]], None]) -> bool:
        """Let one timer fire; False if its person, or the timer, is no more."""
        state = self._state
        row = state.store.find(due.key)
        stored = state.store.ledger(row) if row >= 0 else b""
        ledger = unpack(stored)
        timer = next((t for t in ledger.timers if t.trigger == due.trigger), None)
        if timer is None or ledger.reach is None:
            return False
        now_s = int(state.now())
        tenant = state.tenant(ledger.reach.tenant)
        armed = tenant.documents.derived(matcher_of).delayed.get(due.trigger)
        reach = ledger.reach
        ledger.timers.remove(timer)
        if not ledger.timers:
            ledger.reach = None
        contacted: list[Contacted] = []
        if armed is not None:
            item = tenant.catalogue.ids[timer.item] if timer.item >= 0 else ""
            cause = Cause(due.trigger, "", item)
            person = Person(due.key, row, reach)
            one = self._contact(tenant, person, armed, cause, ledger, now_s)
            contacted = [one] if one is not None else []
        packed = pack(ledger, now_s)
        record = Fired(reach.tenant, due.key, now_s, due.trigger, packed, contacted)
        state.fire(record)
        state.log(record)
        posted(contacted)
        return True

    def _contact(
        self,
        tenant: Tenant,
        person: Person,
        armed: Armed,
        cause: Cause,
        ledger: Ledger,
        now_s: int,
    ) -> Contacted | None:
        """One contact that a trigger asks for, counted in the ledger; None if it is not to be."""
        state, rules = self._state, armed.rules
        traits = traits_of(state, person.row)
        choice = choose(rules, cause, ledger, zone_of(traits), now_s)
        if choice.option is None or not state.outbox.has_room:
            self._suppress(choice.suppressed_by or "the outbox is full")
            return None
        number = self._new_number()
        decision_id = f"{person.key[:8].hex()}{number:016x}"
        message = message_of(
            rules, choice.option, cause, decision_id, person.reach, person.key, traits, now_s
        )
        commit(ledger, choice, cause)
        decision = describe(decision_id, choice, cause)
        answer = msgspec.json.encode(
            {"profileVersion": state.store.version(person.row), "decisions": [decision]}
        )
        return Contacted(number, answer, message)

    def _suppress(self, rule: str) -> None:
        self.suppressed[rule] = self.suppressed.get(rule, 0) + 1

    def counters(self) -> dict[str, Any]:
        """For `Op.STATS`."""
        return {
            "timers": len(self._state.timers),
            "timersFired": self.fired,
            "timersCancelled": self.cancelled,
            "contactsSuppressed": self.suppressed,
        }


def traits_of(state: ShardState, row: int) -> dict[str, Any]:
    """The person's traits, decoded; {} if there are none."""
    stored = state.store.traits(row) if row >= 0 else b""
    traits: dict[str, Any] = msgspec.json.decode(stored) if stored else {}
    return traits


def zone_of(traits: dict[str, Any]) -> str:
    """The person's time zone, "" if the trait `timezone` is no text."""
    zone = traits.get("timezone")
    return zone if isinstance(zone, str) else ""


def _predicted(armed: Armed, seen: list[Seen], decisions: list[Decision]) -> bool:
    """Whether what was predicted in this call reaches the trigger's thresholds."""
    if armed.starts is not None and not any(armed.starts.matches(event) for event in seen):
        return False
    prediction = armed.rules.on_prediction
    leave = next((d.no_action for d in decisions if d.no_action is not None), None)
    if prediction is None or leave is None:
        return False
    return prediction.leave is None or prediction.leave.holds(leave)
