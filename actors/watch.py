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
import numpy as np

from actors.checked import Applied
from actors.contact import Cause, choose, message_of
from actors.context import NO_CODES
from actors.decisions import Decision
from actors.ledger import LEDGER_BYTES_MAX, OpenLedger, Timer
from actors.messages import Event, TrackRequest
from actors.outbox import Contacted
from actors.records import Fired
from actors.schedule import duration_s
from actors.state import ShardState
from actors.surfaces.communication import describe
from actors.surfaces.interface import Who
from actors.tenant import Tenant
from actors.timers import Due
from actors.triggers import EVENT_AGE_S, Armed, Matcher, Seen, matcher_of
from cluster.errors import StoreFull

LOG = logging.getLogger("onehop.actors")

TIMERS_MAX = 16
"""Timers of one person."""
LEDGER_SPARE_BYTES = 1024
"""A ledger with less room than this starts no timer."""
FIRED_MAX = 200
AGAIN_S = 60
"""A timer that can't fire, for want of room, is looked at again so much later."""

Posted = Callable[[list[Contacted]], None]
Moved = list[tuple[str, int]]
"""Triggers, and when their timers run out now; 0 = never."""


class Said(NamedTuple):
    """The events of one request. body: its JSON, the event itself or with a list of `events`."""

    events: Sequence[Event | TrackRequest]
    applied: list[Applied]
    body: bytes

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


class Watch:
    """Triggers of one shard. new_number: gives out the number of a decision; rng: its chance."""

    def __init__(
        self, state: ShardState, new_number: Callable[[], int], rng: np.random.Generator
    ) -> None:
        self._state = state
        self._new_number = new_number
        self._rng = rng
        self.knows_timers = False
        """Whether the timers were found in the ledgers; False again after the range changed."""
        self.fired = 0
        self.cancelled = 0
        self.suppressed: dict[str, int] = {}
        """Contacts that a trigger asked for and a rule forbade, by rule."""

    def observe(self, tenant: Tenant, said: Said, who: Who, decisions: list[Decision]) -> Moved:
        """What the events and predictions of one request lead to: changes of the ledger, and what
        it contacts. Once that is stored, hand what is returned to `moved`.

        Never raises: the events are applied, and a trigger that fails must not undo that.
        """
        matcher = tenant.documents.derived(matcher_of)
        if matcher.idle or who.row < 0:
            return []
        mark = who.ledger.mark()
        try:
            return self._observe(tenant, matcher, said, who, decisions)
        except Exception:
            LOG.exception("shard %s: the triggers failed on an event", self._state.shard_id)
            who.ledger.back_to(mark)
            return []

    def _observe(
        self, tenant: Tenant, matcher: Matcher, said: Said, who: Who, decisions: list[Decision]
    ) -> Moved:
        seen = said.seen(tenant)
        moved: Moved = []
        causes: list[tuple[Armed, Cause]] = []
        for event, applied in zip(seen, said.applied, strict=True):
            fresh = applied.time_s >= who.now_s - EVENT_AGE_S
            moved += self._move_timers(matcher, event, applied.item, fresh, who)
            for armed in matcher.at_once if fresh else ():
                if armed.begins(event):
                    causes.append((armed, Cause(armed.trigger_id, event.event, event.item)))
        for armed in matcher.predicted:
            if _predicted(armed, seen, decisions):
                causes.append((armed, Cause(armed.trigger_id)))
        for armed, cause in causes:
            self._contact(tenant, armed, cause, who)
        return moved

    def moved(self, key: bytes, moved: Moved) -> None:
        """Let the timers run as the ledger says, now that it is stored."""
        for trigger, due_s in moved:
            if due_s:
                self._state.timers.set(key, trigger, due_s)
            else:
                self._state.timers.cancel(key, trigger)
                self.cancelled += 1

    def _move_timers(
        self, matcher: Matcher, event: Seen, item: int, fresh: bool, who: Who
    ) -> Moved:
        """End, put off and start timers, by one event."""
        ledger, now_s = who.ledger, who.now_s
        moved: Moved = []
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
            if not self._has_room(who):
                self._suppress("no room for a timer")
                continue
            changed = ledger.change()
            changed.reach = who.reach
            changed.timers.append(Timer(trigger_id, now_s + armed.after_s, now_s, item))
            moved.append((trigger_id, now_s + armed.after_s))
        if moved and not ledger.read().timers:
            ledger.change().reach = None
        return moved

    def _has_room(self, who: Who) -> bool:
        """Whether a timer more may be started: an event must be applied whatever a ledger holds."""
        used = len(who.store.ledger(who.row)) + len(who.reach.person if who.reach else "")
        return (
            not self._state.timers.full
            and len(who.ledger.read().timers) < TIMERS_MAX
            and used <= LEDGER_BYTES_MAX - LEDGER_SPARE_BYTES
        )

    # Timers that run out.

    def tick(self, posted: Posted) -> int:
        """Fire what is due, a bounded part at a time; returns how many did.

        posted  told of what is to be sent, once it is logged
        """
        state = self._state
        if not self.knows_timers:
            # Not at the end of a replay: whoever takes over replays in several steps.
            state.find_timers()
            self.knows_timers = True
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

    def _fire(self, due: Due, posted: Posted) -> bool:
        """Let one timer fire; False if its person, or the timer, is no more."""
        state, now_s = self._state, int(self._state.now())
        row = state.store.find(due.key)
        opened = OpenLedger(state.store, row)
        ledger = opened.change()
        timer = next((t for t in ledger.timers if t.trigger == due.trigger), None)
        reach = ledger.reach
        if timer is None or reach is None:
            return False
        tenant = state.tenant(reach.tenant)
        ledger.timers.remove(timer)
        if not ledger.timers:
            ledger.reach = None
        armed = tenant.documents.derived(matcher_of).delayed.get(due.trigger)
        if armed is not None:
            item = tenant.catalogue.ids[timer.item] if timer.item >= 0 else ""
            who = Who(state.store, row, now_s, NO_CODES, self._rng, opened, due.key, {}, reach)
            self._contact(tenant, armed, Cause(due.trigger, "", item), who)
        packed = opened.packed(now_s) or b""
        waiting = state.rewards.waiting(reach.tenant, due.key, opened.opened, now_s)
        record = Fired(reach.tenant, due.key, now_s, due.trigger, packed, opened.contacted, waiting)
        state.fire(record)
        state.log(record)
        posted(opened.contacted)
        return True

    def _contact(self, tenant: Tenant, armed: Armed, cause: Cause, who: Who) -> None:
        """A contact that a trigger asks for, unless a rule or the policy says no."""
        state, rules = self._state, armed.rules
        if not state.outbox.has_room:
            self._suppress("the outbox is full")
            return
        number = self._new_number()
        prediction = rules.on_prediction
        chance = prediction.buy if prediction is not None else None
        choice = choose(tenant, armed.prepared, cause, who, number, chance)
        decision_id = f"{who.key[:8].hex()}{number:016x}"
        if choice.option is None:
            self._suppress(choice.suppressed_by)
            return
        expires_s = duration_s(rules.expires, "expires")
        message = message_of(
            choice.option, expires_s, rules.webhook, rules.traits, cause, decision_id, who
        )
        assert message is not None, "a trigger has a webhook, or is inApp alone"
        decision = describe(tenant, decision_id, choice, cause)
        decision.queued = True
        version = state.store.version(who.row)
        answer = msgspec.json.encode({"profileVersion": version, "decisions": [decision]})
        who.ledger.contacted.append(Contacted(number, answer, message))

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


def _predicted(armed: Armed, seen: list[Seen], decisions: list[Decision]) -> bool:
    """Whether what was predicted in this call reaches the trigger's thresholds."""
    if armed.starts is not None and not any(armed.starts.matches(event) for event in seen):
        return False
    prediction = armed.rules.on_prediction
    if prediction is None or prediction.leave is None:
        return True
    leave = next((d.no_action for d in decisions if d.no_action is not None), None)
    return leave is not None and prediction.leave.holds(leave)
