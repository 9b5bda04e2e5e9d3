"""A simulated shop: people whose clicks and purchases follow a known model, five surfaces a call.

    python -m tests.bench.treatments --set simulated [--visits N]

Every visit is one decide call through `Shard.handle`: an article (policy), three products (the
engine, over the whole catalogue), a price, a layout of two slots, and whether, how and with what to
write. What a person answers depends on segment traits, which onehop is told, and on tastes of
their own, which it is not; answers are drawn, and go back as rewards and events.

Rewards are compared by their expectations under the model. The oracle knows the model and takes,
visit by visit, the best that the rules allow just then (`treatments_rules`), held prices
notwithstanding; it does not plan ahead. Uniform is the mean over what is allowed.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np

from actors.books import MICROS
from actors.people import Caller
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from tests.bench import treatments_rules as rules
from tests.bench.harness import Row
from tests.bench.treatments_people import ARTICLES, ITEMS, Person, Shop, sigmoid
from tests.bench.treatments_rules import CHANNELS, DAY_S, LEVELS, PARTS, SLOTS, TEMPLATES, Rules

VISITS = 200_000
VISITS_EACH = 25
LEARNING = 20
"""Visits of a person before those that are compared."""
START_S = 1_790_000_000
SHOWN = 3
SEEN = np.array([1.0, 0.7, 0.5])
"""How much of its chance is left of a product by its place."""
SLOT_SEEN = (1.0, 0.6)
CLICK = 5.0
"""What a click, an open, a used part of the page is worth, in currency; a sale: its margin."""
ANNOYED = -0.5
SURFACES = ("content", "product", "offer", "ui", "communication")
RELOADS = 0.15
BUDGET_PER_VISIT = 1.0
CALLER = Caller("s", "default")
LATENCY_CALLS = 2000

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Simulation:
    """One shard and its visitors. Rewards are kept by visit of a person and surface."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.shop = shop = Shop(self.rng)
        self.now_s = START_S
        config = Config(profiles_max=1 << 17, profile_bytes_max=1 << 28, items_max=1024)
        self.shard = Shard("0", KeyRange(0, HASH_SPACE), config, now=lambda: float(self.now_s))
        self.shard.put_items("default", _encode(shop.items()))
        prices = dict(zip(shop.ids, shop.price.tolist(), strict=True))
        self.rules = Rules(prices, dict(zip(shop.ids, shop.cost.tolist(), strict=True)))
        self._documents()
        self.alive = np.ones(ITEMS, np.bool_)
        self.page: dict[str, str] = {}
        self.clicked: dict[str, list[str]] = {}
        # [learned, oracle, uniform] by visit and surface; and how many visits.
        self.earned = np.zeros((3, VISITS_EACH, len(SURFACES)))
        self.visits = np.zeros(VISITS_EACH)
        self.decide_ns: list[int] = []

    def _documents(self) -> None:
        self._put("policies", "articles", surface="content")
        self._put("policies", "prices", surface="offer")
        self._put("policies", "page", surface="ui")
        self._put("policies", "reach", surface="communication", rewardMin=ANNOYED, rewardMax=1.0)
        cap = {"count": rules.CAP, "windowS": rules.CAP_S}
        self._put(
            "guardrails",
            "shop",
            floor=rules.FLOOR,
            ceiling=rules.CEILING,
            minMargin=rules.MARGIN,
            maxDiscount=rules.DISCOUNT,
            protected=["gender"],
            cap=cap,
        )
        self._put("budgets", "season", total=1e9)
        levels = [
            {"id": name, "cost": cost} | ({"discount": share} if share else {})
            for name, (share, cost) in LEVELS.items()
        ]
        self._put(
            "offers",
            "shop",
            levels=levels,
            guardrails="shop",
            policy="prices",
            budget="season",
            holdS=rules.HOLD_S,
        )
        parts = {name: {"component": name} for name in PARTS}
        self._put(
            "flags", "home", variants=parts, default=PARTS[0], slots=list(SLOTS), policy="page"
        )

    def _put(self, kind: str, document_id: str, **fields: Any) -> None:
        stored = self.shard.tenant("default").documents.checked(
            kind, document_id, _encode(fields), float(self.now_s)
        )
        self.shard.put_documents("default", [stored])

    def ask(self, op: Op, prefix: str = "", **fields: Any) -> Any:
        body = prefix.encode() + _encode(fields)
        status, answer = self.shard.handle(op, CALLER, body, perf_counter_ns())
        assert status == 200, answer
        return _decode(answer)

    def met(self, person: Person) -> None:
        """What is known of a person from the start: traits, consent."""
        rng = self.rng
        self.ask(Op.IDENTIFY, userId=person.id, traits=person.traits)
        self.rules.zones[person.id] = ZoneInfo(person.traits["timezone"])
        self.consent(person, bool(rng.random() < 0.85))
        if rng.random() < 0.03:
            self.ask(Op.SUPPRESS, userId=person.id)
            self.rules.suppressed.add(person.id)

    def consent(self, person: Person, granted: bool) -> None:
        self.ask(Op.CONSENTS_PUT, userId=person.id, consents={"marketing": granted})
        self.rules.consent[person.id] = granted

    def turn_over(self) -> None:
        """One item is taken down, and another, if one is down, comes back."""
        shop, down = self.shop, self.rules.down
        if len(down) > 8:
            back = min(down)
            self.shard.put_items("default", _encode([shop.items()[shop.numbers[back]]]))
            down.remove(back)
            self.alive[shop.numbers[back]] = True
        item = shop.ids[self.rng.choice(np.flatnonzero(self.alive))]
        self.shard.take_down("default", [item])
        down.add(item)
        self.alive[shop.numbers[item]] = False

    def grant(self, visits: float) -> None:
        """A further portion of the budget, for so many visits to come."""
        self.rules.granted += visits * BUDGET_PER_VISIT
        self.shard.grant("default", "season", round(self.rules.granted * MICROS))

    def request(self, person: Person, item: str, excluded: list[str]) -> dict[str, Any]:
        """A decide call with all five surfaces; the page's item is viewed in it."""
        events = [*self.clicked.pop(person.id, []), item]
        for one in events:
            self.rules.events[person.id].append((one, False))
        caps = [{"max": most, "per": f"PT{per_s}S"} for most, per_s in rules.CONTACT_CAPS]
        return {
            "userId": person.id,
            "events": [{"event": "Item Viewed", "properties": {"itemId": e}} for e in events],
            "decisions": [
                {
                    "surface": "content",
                    "policy": "articles",
                    "actions": [f"a{i}" for i in range(ARTICLES)],
                    "numResults": 1,
                    "excludedActions": excluded,
                },
                {"surface": "product", "numResults": SHOWN, "excludedActions": excluded},
                {"surface": "offer", "offerId": "shop", "itemId": item},
                {"surface": "ui", "flagKey": "home"},
                {
                    "surface": "communication",
                    "channels": CHANNELS,
                    "templates": TEMPLATES,
                    "policy": "reach",
                    "holdBack": True,
                    "requiresConsent": "marketing",
                    "frequencyCap": caps,
                    "quietHours": {
                        "start": f"{rules.QUIET_FROM:02d}:00",
                        "end": f"{rules.QUIET_UNTIL:02d}:00",
                    },
                },
            ],
        }

    def item_for(self, person: Person) -> str:
        """The page on which the person is: now and then the same as before."""
        last = self.page.get(person.id)
        if last is not None and last not in self.rules.down and self.rng.random() < 0.3:
            return last
        odds = person.interest * self.alive
        item = self.shop.ids[int(np.searchsorted(np.cumsum(odds), self.rng.random() * odds.sum()))]
        self.page[person.id] = item
        return item

    def visit(self, person: Person, number: int) -> None:
        """One visit, its place among the person's visits being `number`."""
        item = self.item_for(person)
        excluded = [f"a{self.rng.integers(ARTICLES)}", self.shop.ids[self.rng.integers(ITEMS)]]
        body = _encode(self.request(person, item, excluded))
        # What is allowed is asked before the decisions count themselves.
        levels = self.rules.levels(person.id, item, self.now_s)
        contact = self.rules.may_contact(person.id, self.now_s)
        bought = self.rules.bought(person.id)
        started_ns = perf_counter_ns()
        status, answer = self.shard.handle(Op.DECIDE, CALLER, body, started_ns)
        self.decide_ns.append(perf_counter_ns() - started_ns)
        assert status == 200, answer
        decided = _decode(answer)
        assert not decided["degraded"], decided
        made = decided["decisions"]
        self.rules.check(person.id, item, excluded, made, self.now_s)
        worth = (
            self._articles(person, made[0], excluded),
            self._products(person, made[1], {*bought, *excluded}),
            self._price(person, made[2], item, levels),
            self._layout(person, made[3]),
            self._message(person, made[4], contact),
        )
        self.earned[:, number] += np.transpose(worth)
        self.visits[number] += 1

    def reward(self, made: dict[str, Any], value: float, **slot: str) -> None:
        self.ask(Op.REWARD, made["decisionId"], value=value, **slot)

    # What comes of each decision: (learned, oracle, uniform), expected.

    def _articles(
        self, person: Person, made: dict[str, Any], excluded: list[str]
    ) -> tuple[float, float, float]:
        allowed = [i for i in range(ARTICLES) if f"a{i}" not in excluded]
        chance = person.articles[int(made["ranking"][0]["id"][1:])]
        if self.rng.random() < chance:
            self.reward(made, 1.0)
        chances = CLICK * person.articles[allowed]
        return CLICK * chance, chances.max(), chances.mean()

    def _products(
        self, person: Person, made: dict[str, Any], without: set[str]
    ) -> tuple[float, float, float]:
        numbers = [self.shop.numbers[entry["id"]] for entry in made["ranking"]]
        chances = person.items[numbers] * SEEN[: len(numbers)]
        for number in np.asarray(numbers)[self.rng.random(len(numbers)) < chances].tolist():
            self.clicked.setdefault(person.id, []).append(self.shop.ids[number])
        allowed = self.alive.copy()
        allowed[[self.shop.numbers[one] for one in without if one in self.shop.numbers]] = False
        left = person.items[allowed]
        best = np.sort(np.partition(left, -SHOWN)[-SHOWN:])[::-1]
        values = chances.sum(), best @ SEEN, left.mean() * SEEN.sum()
        return CLICK * float(values[0]), CLICK * float(values[1]), CLICK * float(values[2])

    def _price(
        self, person: Person, made: dict[str, Any], item: str, levels: list[str]
    ) -> tuple[float, float, float]:
        number = self.shop.numbers[item]
        # A shard frees what expired within a minute, so it may see less allowed than the rules do.
        taken = [entry["id"] for entry in made["ranking"]]
        gains = {}
        for level in {*levels, *taken}:
            share, cost = LEVELS[level]
            logit = person.wish[number] + person.thrift * share + (0.6 if cost else 0.0)
            margin = self.rules.price_of(item, level) - self.shop.cost[number] - cost
            gains[level] = float(sigmoid(logit)) * margin, float(sigmoid(logit))
        earned = 0.0
        for level in taken:
            earned, chance = gains[level]
            if self.rng.random() < chance:
                self._buys(person, made, item)
        found = [gains[level][0] for level in levels or taken] or [0.0]
        return earned, max(found), sum(found) / len(found)

    def _buys(self, person: Person, made: dict[str, Any], item: str) -> None:
        if "held" not in (made["ranking"][0].get("reason") or ""):
            self.reward(made, 1.0)
        properties = {"itemId": item, "quoteId": made.get("quoteId", "")}
        self.now_s += 5
        self.ask(Op.TRACK, userId=person.id, event="Item Purchased", properties=properties)
        self.rules.events[person.id].append((item, True))
        self.rules.redeem(person.id, item, self.now_s)

    def _layout(self, person: Person, made: dict[str, Any]) -> tuple[float, float, float]:
        earned = 0.0
        for slot, seen in zip(made["slots"], SLOT_SEEN, strict=True):
            chance = seen * person.parts[PARTS.index(slot["rewardActionId"])]
            earned += chance
            if self.rng.random() < chance:
                self.reward(made, 1.0, slotId=slot["id"])
        best = np.sort(person.parts)[::-1]
        top = best[0] * SLOT_SEEN[0] + best[1] * SLOT_SEEN[1]
        return CLICK * earned, CLICK * top, CLICK * float(best.mean()) * sum(SLOT_SEEN)

    def _message(
        self, person: Person, made: dict[str, Any], may: bool
    ) -> tuple[float, float, float]:
        if not may:
            return 0.0, 0.0, 0.0
        values = CLICK * (person.opens + ANNOYED * (1 - person.opens) * person.annoyed)
        earned = 0.0
        if made["send"]:
            channel, template = CHANNELS.index(made["channel"]), TEMPLATES.index(made["template"])
            option = channel * len(TEMPLATES) + template
            earned = float(values[option])
            if self.rng.random() < person.opens[option]:
                self.reward(made, 1.0)
            elif self.rng.random() < person.annoyed:
                self.reward(made, ANNOYED)
        return earned, max(0.0, float(values.max())), float(values.sum()) / (len(values) + 1)


def run(simulation: Simulation, visits: int) -> list[Person]:
    """So many visits: about one a day per person, some followed by another within minutes."""
    rng = simulation.rng
    people = [simulation.shop.person(i) for i in range(max(visits // VISITS_EACH, 1))]
    shape = (len(people), VISITS_EACH)
    soon = rng.random(shape) < RELOADS
    gaps = np.where(soon, rng.uniform(60, 800, shape), rng.uniform(0.5, 1.5, shape) * DAY_S)
    gaps[:, 0] = rng.uniform(0, DAY_S, len(people))
    times = (START_S + np.cumsum(gaps, axis=1)).astype(np.int64).ravel()
    for done, at in enumerate(np.argsort(times, kind="stable").tolist()):
        person, number = people[at // VISITS_EACH], at % VISITS_EACH
        simulation.now_s = max(simulation.now_s, int(times[at]))
        simulation.shard.pulse()
        if done % 100 == 0:
            simulation.turn_over()
            simulation.grant(100)
        if number == 0:
            simulation.met(person)
        elif rng.random() < 0.01:
            simulation.consent(person, not simulation.rules.consent[person.id])
        simulation.visit(person, number)
    return people


def five_over_product(simulation: Simulation, people: list[Person]) -> tuple[float, float]:
    """p50 in us of a call with five surfaces and of one with product alone, in turns; 20 calls in
    a second, so that a minute's quiet hours are worked out once, as where people come."""
    found: tuple[list[int], list[int]] = ([], [])
    for i in range(2 * LATENCY_CALLS):
        person = people[simulation.rng.integers(len(people))]
        simulation.now_s += i % 20 == 0
        simulation.shard.pulse()
        request = simulation.request(person, simulation.item_for(person), ["a0", "i000"])
        if i % 2:
            request["decisions"] = request["decisions"][1:2]
        body = _encode(request)
        started_ns = perf_counter_ns()
        status, answer = simulation.shard.handle(Op.DECIDE, CALLER, body, started_ns)
        found[i % 2].append(perf_counter_ns() - started_ns)
        assert status == 200, answer
    return float(np.median(found[0])) / 1e3, float(np.median(found[1])) / 1e3


def simulated(visits: int, seed: int) -> Row:
    """The whole run as one row. Prints what broke a rule, if anything did."""
    simulation = Simulation(seed)
    people = run(simulation, visits)
    after = simulation.earned[:, LEARNING:].sum(axis=1) / simulation.visits[LEARNING:].sum()
    first = simulation.earned[:, 0].sum(axis=1)
    learned, oracle, uniform = after.sum(axis=1)
    for example in simulation.rules.examples:
        print("violation", example)
    row: Row = {
        "set": "simulated",
        "oracle_share": float(learned / oracle),
        "uniform_share": float(uniform / oracle),
        "first_visit_share": float(first[0] / first[1]),
        "oracle_per_visit": float(oracle),
        "violations": simulation.rules.violations.total(),
        "decisions": simulation.rules.seen,
        "decide_us_p50": float(np.median(simulation.decide_ns)) / 1e3,
    }
    row |= {f"{name}_share": float(after[0, i] / after[1, i]) for i, name in enumerate(SURFACES)}
    row |= dict(sorted(simulation.rules.bitten.items()))
    five_us, product_us = five_over_product(simulation, people)
    row |= {
        "five_us_p50": five_us,
        "product_us_p50": product_us,
        "five_over_product": five_us / product_us,
    }
    return row
