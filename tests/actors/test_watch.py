"""Triggers and timers of a shard in simulated time: what fires, once, and what stops it."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors import records
from actors.messages import Item
from actors.outbox import Message
from actors.people import person_key
from actors.shard import Shard
from cluster.config import Config
from cluster.errors import RequestError
from cluster.frames import Op
from tests.actors.list_journal import ListJournal
from tests.actors.receiver import SECRET
from tests.actors.test_shard import EVERYTHING, SERVER, SMALL, Clock, ask

CART = {
    "onEvent": "Item Added",
    "onInactivity": "PT30M",
    "exitOn": ["Order Completed"],
    "channels": ["email"],
    "webhook": "esp",
}
WEBHOOK = {"url": "https://esp.example/hook", "secret": SECRET}


def put(shard: Shard, kind: str, document_id: str, document: dict[str, Any]) -> None:
    documents = shard.tenant("default").documents
    content = msgspec.json.encode(document)
    stored = documents.checked(kind, document_id, content, shard.now())
    shard.put_documents("default", [stored])


def watching(config: Config = SMALL, **triggers: dict[str, Any]) -> Shard:
    shard = Shard("0", EVERYTHING, config, epoch=3, now=Clock())
    shard.journal = ListJournal()  # type: ignore[assignment]
    shard.put_items(
        "default",
        msgspec.json.encode(
            [Item(f"i{n}", {"category": "shoe" if n else "hat"}) for n in range(3)]
        ),
    )
    put(shard, "webhooks", "esp", WEBHOOK)
    for trigger_id, trigger in triggers.items():
        put(shard, "triggers", trigger_id, trigger)
    return shard


def reborn(shard: Shard) -> Shard:
    """The shard that its log makes: kill -9 and a restart, without a disk."""
    log, clock = cast(Any, shard.journal), shard.now
    again = Shard("0", EVERYTHING, shard.config, epoch=4, now=clock)
    for record in log.records:
        again.replay(records.decode(record))
    copy = ListJournal()
    copy.records += log.records
    again.journal = copy  # type: ignore[assignment]
    again.pulse()
    return again


def passed(shard: Shard, seconds: float) -> None:
    """Time goes by, and the shard looks at its timers as it does."""
    shard.now.now_s += seconds  # type: ignore[attr-defined]
    shard.pulse()


def track(shard: Shard, event: str, person: str = "ada", **properties: Any) -> int:
    body = {"userId": person, "event": event, "properties": properties}
    return ask(shard, Op.TRACK, body)[0]


def messages(shard: Shard) -> list[Message]:
    return shard.outbox.entries()


def data(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(message.body)["data"]
    return found


def test_a_cart_that_is_left_leads_to_one_message() -> None:
    shard = watching(cart=CART)
    track(shard, "Item Added", itemId="i1")
    passed(shard, 1799)
    assert messages(shard) == []
    passed(shard, 1)
    (message,) = messages(shard)
    assert data(message)["userId"] == "ada"
    assert data(message)["itemId"] == "i1"
    assert data(message)["trigger"] == "cart"
    assert message.webhook == "esp"
    passed(shard, 100_000)
    assert len(messages(shard)) == 1
    # And there is a decision that says why.
    status, decision = ask(shard, Op.DECISION_GET, message.message_id.encode())
    assert status == 200
    assert (decision["surface"], decision["trigger"]) == ("communication", "cart")
    assert decision["send"]


def test_every_event_puts_the_timer_off_and_the_exit_ends_it() -> None:
    shard = watching(cart=CART)
    track(shard, "Item Added", itemId="i1")
    for _ in range(5):
        passed(shard, 1000)
        track(shard, "Item Viewed", itemId="i2")
    assert messages(shard) == []
    track(shard, "Order Completed")
    passed(shard, 10_000)
    assert messages(shard) == []
    assert len(shard.timers) == 0
    assert shard.store.ledger(0) == b""


def test_a_search_without_result_and_a_pause_on_a_product_fire_at_once() -> None:
    shard = watching(
        search={"onEvent": {"event": "Searched", "filter": "results = 0"}, "channels": ["inApp"]},
        pause={
            "onEvent": {"event": "Dwelled", "filter": "ms > 20000 AND category = 'shoe'"},
            "channels": ["push"],
            "webhook": "esp",
        },
    )
    track(shard, "Searched", query="tea", results=3)
    track(shard, "Dwelled", itemId="i1", ms=5000)
    track(shard, "Dwelled", itemId="i0", ms=30000)
    assert messages(shard) == []
    # An alias of Segment's is the same event.
    track(shard, "Products Searched", query="teee", results=0)
    track(shard, "Dwelled", itemId="i1", ms=30000)
    assert [(m.channel, m.webhook) for m in messages(shard)] == [("inApp", ""), ("push", "esp")]


def test_a_repeated_message_id_triggers_once() -> None:
    shard = watching(search={"onEvent": "Searched", "channels": ["inApp"]})
    body = {"userId": "ada", "event": "Searched", "messageId": "m1"}
    assert ask(shard, Op.TRACK, body)[0] == 200
    assert ask(shard, Op.TRACK, body)[1]["duplicate"]
    assert len(messages(shard)) == 1
    assert ask(reborn(shard), Op.TRACK, body)[1]["duplicate"]
    assert len(messages(reborn(shard))) == 1


def test_history_triggers_nothing_but_still_ends_a_timer() -> None:
    shard = watching(cart=CART)
    old = {"userId": "ada", "timestamp": (shard.now() - 7200) * 1000}
    ask(shard, Op.TRACK, old | {"event": "Item Added", "properties": {"itemId": "i1"}})
    assert len(shard.timers) == 0
    track(shard, "Item Added", itemId="i1")
    ask(shard, Op.TRACK, old | {"event": "Order Completed"})
    assert len(shard.timers) == 0


def test_consent_suppression_and_caps_hold() -> None:
    rules = {"channels": ["email"], "webhook": "esp", "requiresConsent": "marketing"}
    cap = {"frequencyCap": {"max": 2, "per": "P1D"}}
    shard = watching(search={"onEvent": "Searched"} | rules | cap)

    def sent() -> int:
        before = len(messages(shard))
        track(shard, "Searched")
        return len(messages(shard)) - before

    assert sent() == 0
    status, answer = ask(shard, Op.CONSENTS_PUT, {"userId": "ada", "consents": {"marketing": True}})
    assert (status, answer) == (200, {"consents": {"marketing": True}})
    assert [sent(), sent(), sent()] == [1, 1, 0]
    passed(shard, 86_399)
    assert sent() == 0
    passed(shard, 1)
    assert sent() == 1
    passed(shard, 86_400)
    ask(shard, Op.SUPPRESS, {"userId": "ada", "until": (shard.now() + 100) * 1000})
    assert sent() == 0
    passed(shard, 100)
    assert sent() == 1
    ask(shard, Op.CONSENTS_PUT, {"userId": "ada", "consents": {"marketing": False}})
    passed(shard, 200_000)
    assert sent() == 0
    assert shard.watch.suppressed == {
        "no consent: marketing": 2,
        "frequency cap: 2 per P1D": 2,
        "suppressed": 1,
    }


def test_a_suppression_that_no_date_can_name_is_refused_and_changes_nothing() -> None:
    shard = watching()
    status, answer = ask(shard, Op.SUPPRESS, {"userId": "ada", "until": 3.577796543867906e16})
    assert (status, answer["field"], answer["title"]) == (422, "until", "that never ends")
    assert len(shard.store) == 0


def test_quiet_hours_put_the_message_off_to_the_morning_of_the_person() -> None:
    shard = watching(
        search={
            "onEvent": "Searched",
            "channels": ["email"],
            "webhook": "esp",
            "quietHours": {"start": "22:00", "end": "08:00", "timezone": "UTC"},
        }
    )
    traits = {"timezone": "Asia/Kolkata"}
    ask(shard, Op.IDENTIFY, {"userId": "ada", "traits": traits})
    track(shard, "Searched")
    track(shard, "Searched", "bob")
    now_s = shard.now()  # 14:13 in London, 19:43 in Kolkata
    ada, bob = messages(shard)
    assert (ada.due_s, bob.due_s) == (now_s, now_s)
    passed(shard, 4 * 3600)  # 18:13 and 23:43
    track(shard, "Searched")
    track(shard, "Searched", "bob")
    ada, bob = messages(shard)[2:]
    assert data(ada)["sendAt"] == "2026-09-22T02:30:00Z"
    assert bob.due_s == shard.now()


def test_a_forgotten_person_gets_nothing() -> None:
    shard = watching(cart=CART, search={"onEvent": "Searched", "channels": ["inApp"]})
    track(shard, "Item Added", itemId="i1")
    track(shard, "Searched")
    assert len(messages(shard)) == 1
    assert ask(shard, Op.PROFILE_DELETE, {"userId": "ada"})[0] == 200
    assert messages(shard) == []
    passed(shard, 10_000)
    assert messages(shard) == messages(reborn(shard)) == []


def test_a_trigger_that_was_deleted_or_switched_off_fires_no_more() -> None:
    shard = watching(cart=CART)
    track(shard, "Item Added", itemId="i1")
    put(shard, "triggers", "cart", CART | {"enabled": False})
    passed(shard, 10_000)
    assert messages(shard) == []
    assert len(shard.timers) == 0
    assert shard.store.ledger(0) == b""


def test_while_the_outbox_is_full_timers_wait_and_events_say_so() -> None:
    shard = watching(
        msgspec.structs.replace(SMALL, outbox_bytes_max=1 << 18),
        cart=CART,
        search={"onEvent": "Searched", "channels": ["inApp"]},
    )
    track(shard, "Item Added", "bob", itemId="i1")
    while shard.outbox.has_room:
        track(shard, "Searched")
    before = len(messages(shard))
    track(shard, "Searched")
    assert shard.watch.suppressed == {"the outbox is full": 1}
    passed(shard, 1800)
    assert len(messages(shard)) == before
    assert len(shard.timers) == 1
    ask(shard, Op.PROFILE_DELETE, {"userId": "ada"})
    passed(shard, 1)
    assert len(messages(shard)) == 1


def test_leaving_is_predicted_by_the_engine_in_the_same_call() -> None:
    threshold = {"above": 0.0}
    shard = watching(
        leaving={"onPrediction": {"leave": threshold}, "channels": ["inApp"]},
        never={"onPrediction": {"leave": {"above": 1.0}}, "channels": ["inApp"]},
    )
    event = {"event": "Item Viewed", "properties": {"itemId": "i1"}}
    request = {"userId": "ada", "events": [event], "decisions": [{"surface": "product"}]}
    _, answer = ask(shard, Op.DECIDE, request)
    assert answer["decisions"][0]["noAction"] is not None
    assert [data(m)["trigger"] for m in messages(shard)] == ["leaving"]


def test_a_purchase_is_predicted_by_the_policy_that_learned_from_rewards() -> None:
    trigger = {"onEvent": "Searched", "channels": ["inApp"], "policy": "reach"}
    likely = trigger | {"onPrediction": {"buy": {"above": 0.5}}}
    shard = watching()
    put(shard, "policies", "reach", {"surface": "communication", "learnOn": "reward"})
    put(shard, "triggers", "search", trigger)

    def search(person: str, plan: str) -> list[Message]:
        ask(shard, Op.IDENTIFY, {"userId": person, "traits": {"plan": plan}})
        track(shard, "Searched", person)
        return [m for m in messages(shard) if m.key == person_key(SERVER, person, None)]

    # Who has the one plan buys, who has the other never does.
    for n in range(100):
        (message,) = search(f"u{n}", ["free", "gold"][n % 2])
        reward = msgspec.json.encode({"value": float(n % 2)})
        assert ask(shard, Op.REWARD, message.message_id.encode() + reward)[0] == 200
    put(shard, "triggers", "search", likely)
    assert sum(len(search(f"gold{n}", "gold")) for n in range(30)) > 25
    assert sum(len(search(f"free{n}", "free")) for n in range(30)) < 5
    assert shard.watch.suppressed.keys() == {"the predicted success is out of bounds"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"onEvent": None, "onInactivity": None, "exitOn": []}, "onEvent"),
        ({"onInactivity": "30 minutes"}, "onInactivity"),
        ({"onInactivity": None}, "exitOn"),
        ({"onEvent": {"event": "Searched", "filter": "results ="}}, "onEvent.filter"),
        ({"webhook": "nowhere"}, "webhook"),
        ({"frequencyCap": {"max": 0, "per": "P1D"}}, "frequencyCap.max"),
        ({"frequencyCap": {"max": 1, "per": "1 day"}}, "frequencyCap.per"),
        ({"quietHours": {"start": "22:00", "end": "25:00"}}, "quietHours.end"),
        (
            {"quietHours": {"start": "22:00", "end": "08:00", "timezone": "X"}},
            "quietHours.timezone",
        ),
        ({"channels": []}, "channels"),
        ({"channels": ["a", "a"]}, "channels"),
        ({"delays": ["PT0S", "PT1H"]}, "policy"),
        ({"holdBack": True}, "policy"),
        ({"onInactivity": None, "exitOn": [], "onPrediction": {"buy": {}}}, "policy"),
        ({"webhook": None}, "webhook"),
        ({"onPredicion": {}}, ""),
    ],
)
def test_a_trigger_that_can_not_work_is_refused_by_field(change: Any, field: str) -> None:
    shard = watching()
    wanted = {k: v for k, v in (CART | change).items() if v is not None}
    with pytest.raises(RequestError) as refused:
        put(shard, "triggers", "cart", wanted)
    assert refused.value.field == field
    assert shard.tenant("default").documents.of("triggers") == {}


class Timeline(RuleBasedStateMachine):
    """Carts of three people, told to a shard and to the plainest model; the shard may die at any
    point between two requests and comes back from its log."""

    people = st.sampled_from(["ada", "bob", "cy"])

    @initialize()
    def begin(self) -> None:
        self.shard = watching(cart=CART)
        self.due: dict[str, float] = {}
        self.sent: list[tuple[str, float]] = []

    @rule(person=people)
    def add(self, person: str) -> None:
        track(self.shard, "Item Added", person, itemId="i1")
        self.due[person] = self.shard.now() + 1800

    @rule(person=people)
    def view(self, person: str) -> None:
        track(self.shard, "Item Viewed", person, itemId="i2")
        if person in self.due:
            self.due[person] = self.shard.now() + 1800

    @rule(person=people)
    def buy(self, person: str) -> None:
        track(self.shard, "Order Completed", person)
        self.due.pop(person, None)

    @rule(seconds=st.integers(1, 2000))
    def wait(self, seconds: int) -> None:
        passed(self.shard, seconds)
        for person, due_s in list(self.due.items()):
            if due_s <= self.shard.now():
                self.sent.append((person, self.shard.now()))
                del self.due[person]

    @rule()
    def die(self) -> None:
        self.shard = reborn(self.shard)

    @invariant()
    def each_fired_once(self) -> None:
        self.shard.timers.check()
        self.shard.outbox.check()
        assert len(self.shard.timers) == len(self.due)
        found = [(data(m)["userId"], m.due_s) for m in messages(self.shard)]
        assert sorted(found) == sorted(self.sent)


Timeline.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestTimeline = Timeline.TestCase
