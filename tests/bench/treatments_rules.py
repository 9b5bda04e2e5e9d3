"""What a shop must never do, checked by plain dicts: nothing here is onehop's own code.

`Rules` is told of every fact (an item is bought, a consent withdrawn, a budget granted) and sees
every decision. It also says what is allowed just now, so that an oracle can choose among it.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

DAY_S = 86_400
FLOOR, CEILING, MARGIN, DISCOUNT = 6.0, 42.0, 0.25, 0.3
CAP, CAP_S = 5, 7 * DAY_S
HOLD_S = 900
CONTACT_CAPS = ((1, DAY_S), (4, 7 * DAY_S))
QUIET_FROM, QUIET_UNTIL = 21, 8
LEVELS: dict[str, tuple[float, float]] = {
    # level: share off the list price, what it costs beside that
    "list": (0.0, 0.0),
    "ten": (0.1, 0.0),
    "twenty": (0.2, 0.0),
    "half": (0.5, 0.0),
    "shipping": (0.0, 2.0),
}
PARTS = ("search", "news", "deals", "recent", "brands")
SLOTS = ("hero", "side")
CHANNELS = ("email", "push")
TEMPLATES = ("short", "long")
ROUNDING = 1e-6
HALF_CENT = 0.005 + 1e-9
RING = 50
"""Events that a profile keeps by default; a purchase before those is not known any more."""


class Quoted(NamedTuple):
    """A price that is held."""

    quote_id: str
    price: float
    expires_s: int
    cost: float


class Rules:
    """Facts, and what broke a rule. Prices, costs and budgets are in currency, times in seconds."""

    def __init__(self, prices: dict[str, float], costs: dict[str, float]) -> None:
        self.prices, self.costs = prices, costs
        self.down: set[str] = set()
        self.events: dict[str, deque[tuple[str, bool]]] = defaultdict(partial(deque, maxlen=RING))
        self.consent: dict[str, bool] = {}
        self.suppressed: set[str] = set()
        self.zones: dict[str, ZoneInfo] = {}
        self.contacts: dict[str, list[int]] = defaultdict(list)
        self.quotes: dict[str, dict[str, Quoted]] = defaultdict(dict)
        self.counted: dict[str, tuple[int, int]] = {}
        self.granted = self.spent = self.reserved = 0.0
        self._waiting: list[tuple[int, str, float]] = []
        self._redeemed: set[str] = set()
        self.seen = 0
        self.violations: Counter[str] = Counter()
        self.examples: list[str] = []
        self.bitten: Counter[str] = Counter()

    # What is allowed now.

    def price_of(self, item: str, level: str) -> float:
        return round(self.prices[item] * (1 - LEVELS[level][0]), 2)

    def cost_of(self, item: str, level: str) -> float:
        return self.prices[item] - self.price_of(item, level) + LEVELS[level][1]

    def broken(self, item: str, level: str, price: float) -> str:
        """The guardrail that a price breaks, "" if none does."""
        listed = self.prices[item]
        if price < FLOOR - ROUNDING:
            return "floor"
        if price > CEILING + ROUNDING:
            return "ceiling"
        if price < listed * (1 - DISCOUNT) - ROUNDING:
            return "discount"
        if price - self.costs[item] - LEVELS[level][1] < MARGIN * price - ROUNDING:
            return "margin"
        return ""

    def levels(self, person: str, item: str, now_s: int) -> list[str]:
        """Levels that guardrails, cap and budget leave."""
        self._release(now_s)
        free = self.granted - self.spent - self.reserved
        capped = self._count(person, now_s)[1] >= CAP
        allowed = []
        for level in LEVELS:
            cost = self.cost_of(item, level)
            if self.broken(item, level, self.price_of(item, level)):
                continue
            if cost > ROUNDING and (capped or cost > free):
                self.bitten["capped" if capped else "over_budget"] += 1
                continue
            allowed.append(level)
        return allowed

    def bought(self, person: str) -> set[str]:
        """What the person bought, as far back as a profile's events go."""
        return {item for item, purchased in self.events[person] if purchased}

    def may_contact(self, person: str, now_s: int) -> bool:
        if person in self.suppressed or not self.consent.get(person, False):
            return False
        return not _too_many([*self.contacts[person], self.send_at(person, now_s)])

    def send_at(self, person: str, now_s: int) -> int:
        """The first second from now on that is in no quiet hour where the person is."""
        local = datetime.fromtimestamp(now_s, self.zones[person])
        if QUIET_UNTIL <= local.hour < QUIET_FROM:
            return now_s
        day = local + timedelta(days=int(local.hour >= QUIET_FROM))
        return int(day.replace(hour=QUIET_UNTIL, minute=0, second=0, microsecond=0).timestamp())

    # What happens.

    def redeem(self, person: str, item: str, now_s: int) -> None:
        """The person pays the price that is held."""
        quote = self.quotes[person].pop(item, None)
        if quote is not None and quote.expires_s > now_s and quote.cost > ROUNDING:
            self._redeemed.add(quote.quote_id)
            self.reserved -= quote.cost
            self.spent += quote.cost

    def check(
        self, person: str, item: str, excluded: list[str], made: list[dict[str, Any]], now_s: int
    ) -> None:
        """Look at the decisions of one call: content, product, offer, ui, communication."""
        content, product, offer, ui, contact = made
        self.seen += len(made)
        for entry in content["ranking"]:
            self._check(entry["id"] not in excluded, "excluded", entry)
            self._propensity(entry["probability"])
        bought = self.bought(person)
        shown = [entry["id"] for entry in product["ranking"]]
        self._check(len(set(shown)) == len(shown), "repeated", shown)
        for one in shown:
            self._check(one not in excluded, "excluded", one)
            self._check(one not in self.down, "taken down", one)
            self._check(one not in bought, "bought", one)
        self._offer(person, item, offer, now_s)
        filled = [slot["rewardActionId"] for slot in ui["slots"]]
        self._check([slot["id"] for slot in ui["slots"]] == list(SLOTS), "slots", ui)
        self._check(len(set(filled)) == len(filled) and set(filled) <= set(PARTS), "layout", filled)
        for slot in ui["slots"]:
            self._propensity(slot["probability"])
        self._contact(person, contact, now_s)

    def _offer(self, person: str, item: str, offer: dict[str, Any], now_s: int) -> None:
        self._release(now_s)
        if not offer["ranking"]:
            return
        entry, price = offer["ranking"][0], offer["price"]
        level = entry["id"]
        self._propensity(entry["probability"])
        exact = self.prices[item] * (1 - LEVELS[level][0])
        self._check(abs(price - exact) < HALF_CENT, "price", offer)
        broken = self.broken(item, level, price)
        self._check(not broken, broken, offer)
        held = self.quotes[person].get(item)
        if held is not None and held.expires_s > now_s:
            self.bitten["held"] += 1
            same = abs(price - held.price) < ROUNDING and offer["quoteId"] == held.quote_id
            self._check(same, "hold", (held, offer))
            return
        cost = self.prices[item] - price + LEVELS[level][1]
        quote_id = offer.get("quoteId", "")
        expires_s = int(offer.get("expiresAt", now_s))
        if quote_id:
            self._check(expires_s == now_s + HOLD_S, "expiry", offer)
            self.quotes[person][item] = Quoted(quote_id, price, expires_s, cost)
        if cost > ROUNDING:
            self._check(bool(quote_id), "not held", offer)
            since_s, count = self._count(person, now_s)
            self.counted[person] = since_s, count + 1
            self._check(count < CAP, "cap", (person, count, offer))
            self.reserved += cost
            heapq.heappush(self._waiting, (expires_s, quote_id, cost))
        spare = self.granted - self.spent - self.reserved
        self._check(spare > -1e-3, "budget", (spare, offer))

    def _contact(self, person: str, contact: dict[str, Any], now_s: int) -> None:
        if "propensity" in contact:
            self._propensity(contact["propensity"])
        if not contact["send"]:
            return
        at_s = int(datetime.fromisoformat(contact["sendAt"]).timestamp())
        local = datetime.fromtimestamp(at_s, self.zones[person])
        self._check(at_s >= now_s, "past", contact)
        self._check(QUIET_UNTIL <= local.hour < QUIET_FROM, "quiet hours", (str(local), contact))
        self._check(self.consent.get(person, False), "consent", (person, contact))
        self._check(person not in self.suppressed, "suppressed", (person, contact))
        self._check(contact["channel"] in CHANNELS, "channel", contact)
        self.contacts[person] = [*self.contacts[person], at_s][-12:]
        self._check(not _too_many(self.contacts[person]), "contact cap", (person, contact))

    def _propensity(self, propensity: float) -> None:
        self._check(0.0 < propensity <= 1.0 + 1e-9, "propensity", propensity)

    def _check(self, holds: bool, rule: str, seen: object) -> None:
        if not holds:
            self.violations[rule] += 1
            if len(self.examples) < 10:
                self.examples.append(f"{rule}: {seen}")

    def _count(self, person: str, now_s: int) -> tuple[int, int]:
        """Since when offers are counted, and how many there were."""
        since_s, count = self.counted.get(person, (now_s, 0))
        return (since_s, count) if since_s + CAP_S > now_s else (now_s, 0)

    def _release(self, now_s: int) -> None:
        """Quotes that ran out without a purchase cost nothing."""
        while self._waiting and self._waiting[0][0] <= now_s:
            _, quote_id, cost = heapq.heappop(self._waiting)
            if quote_id not in self._redeemed:
                self.reserved -= cost


def _too_many(times: Iterable[int]) -> bool:
    """Whether some window holds more contacts than its cap."""
    known = list(times)
    return any(
        sum(first <= at_s < first + per_s for at_s in known) > most
        for most, per_s in CONTACT_CAPS
        for first in known
    )
