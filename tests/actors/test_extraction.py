"""What a successor has of a shard is what the shard had of the successor's people, and no more."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from actors import records
from actors.books import MICROS
from actors.extraction import Successor, take_range
from actors.messages import Item
from actors.shard import Shard
from cluster.errors import Unavailable
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange, place
from tests.actors.list_journal import ListJournal
from tests.actors.receiver import SECRET
from tests.actors.surfaces.shop import CONFIG, SERVER, Shop, key_of

PEOPLE = [f"u{n}" for n in range(60)]
HALVES = [KeyRange(0, HASH_SPACE // 2), KeyRange(HASH_SPACE // 2, HASH_SPACE)]
OFFER = {"surface": "offer", "offerId": "spring", "itemId": "p0"}
CART = {
    "onEvent": "Item Added",
    "onInactivity": "PT30M",
    "exitOn": ["Order Completed"],
    "channels": ["email"],
    "webhook": "esp",
}
BUDGET = 2000 * MICROS


class Busy:
    """A shop in which everything happens that a shard remembers."""

    def __init__(self, seed: int, names: Sequence[str] = ("Mine", "Yours")) -> None:
        self.rng = random.Random(seed)
        self.names = names
        self.shop = Shop(seed)
        self.shop.shard.learns = False
        self.shop.put("policies", "mine", surface="content", rewardWindowS=600)
        self.shop.put("budgets", "b", total=2000)
        levels = [{"id": "half", "discount": 0.5}]
        self.shop.put("offers", "spring", levels=levels, budget="b", holdS=3000)
        self.shop.put("webhooks", "esp", url="https://esp.example/hook", secret=SECRET)
        self.shop.put("triggers", "cart", **CART)
        self.shop.shard.grant("default", "b", BUDGET)
        self.quotes: dict[str, str] = {}
        self.decided: list[tuple[str, str]] = []
        self.number = 10_000 * seed

    def happen(self, times: int) -> None:
        for _ in range(times):
            person = self.rng.choice(PEOPLE)
            self.number += 1
            message_id = f"m{self.number}"
            self.rng.choice(
                (self.track, self.track, self.decide, self.offer, self.identify, self.forget)
            )(person, message_id)
            self.shop.now_s += self.rng.choice((0, 1, 20))
            self.shop.shard.pulse()

    def track(self, person: str, message_id: str) -> None:
        event = self.rng.choice((*self.names, "Item Viewed", "Item Added"))
        properties = {"itemId": f"p{self.rng.randrange(8)}"}
        self.ask(Op.TRACK, userId=person, event=event, properties=properties, messageId=message_id)

    def decide(self, person: str, message_id: str) -> None:
        events = [{"event": "Item Viewed", "properties": {"itemId": "p1"}}]
        content = {"surface": "content", "policy": "mine", "actions": ["a", "b"]}
        answer = self.ask(
            Op.DECIDE, userId=person, decisions=[content], events=events, messageId=message_id
        )
        self.decided.append((person, answer["decisions"][0]["decisionId"]))
        if self.rng.random() < 0.3:
            reward = self.decided[-1][1].encode() + b'{"value":1.0}'
            assert self.shop.shard.handle(Op.REWARD, SERVER, reward, 0)[0] == 200

    def offer(self, person: str, message_id: str) -> None:
        quote = self.quotes.pop(person, None)
        if quote is not None and self.rng.random() < 0.5:
            properties = {"itemId": "p0", "quoteId": quote}
            self.ask(Op.TRACK, userId=person, event="Item Purchased", properties=properties)
            return
        made = self.ask(Op.DECIDE, userId=person, decisions=[OFFER], messageId=message_id)
        self.quotes[person] = made["decisions"][0]["quoteId"]

    def identify(self, person: str, message_id: str) -> None:
        self.ask(Op.IDENTIFY, userId=person, traits={"n": self.number}, messageId=message_id)

    def forget(self, person: str, message_id: str) -> None:
        if self.rng.random() < 0.2:
            self.quotes.pop(person, None)
            self.shop.shard.handle(
                Op.PROFILE_DELETE, SERVER, msgspec.json.encode({"userId": person}), 0
            )
        elif self.rng.random() < 0.3:
            shard = self.shop.shard
            shard.forget_by_rule(records.Evicted(int(self.shop.now_s) - 300, 0, 3, 1))

    def ask(self, op: Op, **fields: Any) -> dict[str, Any]:
        return self.shop.ask(op, **fields)


def successor_of(source: Shop, key_range: KeyRange) -> Shard:
    shard = Shard("n", key_range, CONFIG, now=lambda: source.now_s)
    shard.learns = False
    return shard


def shadow_of(source: Shop) -> Shard:
    """What a successor reads from the source's files."""
    shadow = source.replayed()
    shadow.now = lambda: source.now_s
    return shadow


def logged(shard: Shard) -> ListJournal:
    journal = ListJournal()
    shard.journal = journal  # type: ignore[assignment]
    return journal


def profile(shard: Shard, person: str) -> Any:
    status, body = shard.handle(Op.PROFILE_GET, SERVER, msgspec.json.encode({"userId": person}), 0)
    return status, msgspec.json.decode(body)


def of_range(shard: Shard, key_range: KeyRange) -> dict[str, Any]:
    """Everything that a shard holds about the people of a range."""
    inside = [person for person in PEOPLE if place(key_of(person)) in key_range]
    opened, closed, _ = shard.rewards.decisions.entries()
    encode = msgspec.json.encode
    return {
        "profiles": {person: profile(shard, person) for person in inside},
        "decisions": {
            number: record
            for number, record in shard.decisions.entries()
            if record.key and place(record.key) in key_range
        },
        "open": {one.number: encode(one) for one in opened if one.place in key_range},
        "closed": {
            one.number: encode(one) for one in closed if one.arms and one.place in key_range
        },
        "messages": {
            one.message_id: encode(one)
            for one in shard.outbox.entries()
            if place(one.key) in key_range
        },
        "erased": [one for one in shard.tombstones.entries() if place(one[0]) in key_range],
        "answers": {
            (tenant, message_id): answered
            for tenant, message_id, answered in shard.dedupe.entries()
            if answered.key and place(answered.key) in key_range
        },
    }


@pytest.mark.parametrize("seed", range(4))
def test_halves_that_copied_and_followed_a_shard_have_all_of_it(seed: int) -> None:
    busy = Busy(seed)
    source = busy.shop
    busy.happen(150)
    source.shard.followed = True
    followers = []
    for key_range in HALVES:
        half = successor_of(source, key_range)
        heir = key_range.start == 0
        numbers = take_range(half, shadow_of(source), heir)
        journal = logged(half)
        followers.append((half, Successor(half, heir, numbers), journal))
    begin = len(source.journal.records)
    busy.names = ("Mine", "New", "Newer")
    busy.happen(250)
    for encoded in source.journal.records[begin:]:
        for _, successor, _ in followers:
            successor.apply(records.decode(encoded))
    now_s = int(source.now_s)
    budgets = [half.tenant("default").books.budgets["b"] for half, _, _ in followers]
    whole = source.tenant.books.budgets["b"]
    assert sum(one.granted for one in budgets) == whole.granted == BUDGET
    assert sum(one.spent for one in budgets) == whole.spent
    assert sum(one.used(now_s) for one in budgets) == whole.used(now_s)
    for half, _, _ in followers:
        half.store.check()
        half.tenant("default").books.check(now_s)
        assert of_range(half, half.key_range) == of_range(source.shard, half.key_range)
        assert len(half.store) == sum(place(key) in half.key_range for key in keys_of(source.shard))


def keys_of(shard: Shard) -> list[bytes]:
    return [key for key in map(key_of, PEOPLE) if shard.store.find(key) >= 0]


def test_a_half_is_the_same_after_a_replay_of_its_own_log() -> None:
    busy = Busy(9)
    source = busy.shop
    busy.happen(100)
    source.shard.followed = True
    halves = [successor_of(source, HALVES[1]) for _ in range(2)]
    all_numbers = [take_range(half, shadow_of(source), heir=False) for half in halves]
    journal = logged(halves[0])
    successor = Successor(halves[0], False, all_numbers[0])
    begin = len(source.journal.records)
    busy.happen(100)
    for encoded in source.journal.records[begin:]:
        successor.apply(records.decode(encoded))
    for encoded in journal.records:
        halves[1].replay(records.decode(encoded))
    assert of_range(halves[1], HALVES[1]) == of_range(halves[0], HALVES[1])
    assert halves[1].tenant("default").books == halves[0].tenant("default").books


def test_shards_that_numbered_their_events_differently_become_one() -> None:
    sources = [Busy(1, ("Mine", "Yours")), Busy(2, ("Theirs", "Yours", "Mine"))]
    for busy, key_range in zip(sources, HALVES, strict=True):
        # Each has people of its own half only, as two shards of a cluster do.
        inside = [person for person in PEOPLE if place(key_of(person)) in key_range]
        busy.rng = Picky(busy.rng, inside)
        busy.happen(120)
    whole = successor_of(sources[1].shop, KeyRange(0, HASH_SPACE))
    for busy in sources:
        take_range(whole, shadow_of(busy.shop), heir=True)
    for busy, key_range in zip(sources, HALVES, strict=True):
        ours, theirs = of_range(whole, key_range), of_range(busy.shop.shard, key_range)
        assert {n: one._replace(events=[]) for n, one in ours.pop("decisions").items()} == {
            n: one._replace(events=[]) for n, one in theirs.pop("decisions").items()
        }
        assert ours == theirs
    books = whole.tenant("default").books
    assert books.budgets["b"].granted == 2 * BUDGET


class Picky(random.Random):
    """Chooses among some people only, and otherwise as another does."""

    def __init__(self, rng: random.Random, people: list[str]) -> None:
        super().__init__()
        self._rng, self._people = rng, people

    def choice(self, seq: Any) -> Any:
        return self._rng.choice(self._people if seq is PEOPLE else seq)

    def random(self) -> float:
        return self._rng.random()

    def randrange(self, *args: Any) -> int:
        return self._rng.randrange(*args)


def test_a_record_about_an_item_waits_until_the_item_is_known() -> None:
    source = Shop()
    half = successor_of(source, KeyRange(0, HASH_SPACE))
    successor = Successor(half, True, take_range(half, shadow_of(source), True))
    source.shard.put_items("default", msgspec.json.encode([Item("new")]))
    source.ask(Op.TRACK, userId="ada", event="Item Viewed", properties={"itemId": "new"})
    record = records.decode(source.journal.records[-1])
    assert successor.lacks(record)
    half.put_items("default", msgspec.json.encode([Item("new")]))
    assert not successor.lacks(record)
    successor.apply(record)
    assert profile(half, "ada")[1]["eventsTotal"] == 1


def test_what_names_rows_of_the_source_is_refused() -> None:
    source = Shop()
    half = successor_of(source, KeyRange(0, HASH_SPACE))
    successor = Successor(half, True, take_range(half, shadow_of(source), True))
    with pytest.raises(Unavailable, match="Swept"):
        successor.apply(records.Swept(0, 0))
