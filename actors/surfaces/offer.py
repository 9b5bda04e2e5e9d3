"""Offers and prices: a level is chosen among those that guardrails, caps and budgets leave.

Rules come first and decide what is eligible; the policy chooses among that, so its propensities are
exact. A price once quoted is held: the same person is asked the same until it expires.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from actors.books import MICROS, Priced, Reserved, Tally
from actors.decisions import Decision, Explanation, OfferSpec, Ranked, Rejected
from actors.ledger import Quote, expire, opened_by
from actors.surfaces.common import Cap, capped, count_up
from actors.surfaces.experiments import Arranged, arrange
from actors.surfaces.interface import Who
from actors.surfaces.offer_documents import Compiled, compile_offers
from actors.surfaces.offer_documents import Priced as Prices
from actors.surfaces.traits import features_for, known_of
from actors.tenant import Tenant
from cluster.errors import RequestError

QUOTES_MAX = 16
"""Prices that are held for one person at once; beyond it the baseline is offered, not held."""


class OfferPlan(NamedTuple):
    """An offer on an item, by its number; -1 = no item."""

    spec: OfferSpec
    offer: Compiled
    item: int

    def decide(self, tenant: Tenant, decision_id: str, who: Who, explain: bool) -> Decision:
        """Make the offer, or repeat the one that is held."""
        held = _held(self, who)
        if held is not None:
            return _repeated(self, tenant, decision_id, held)
        arranged = arrange(tenant, "offer", self.offer.offer_id, who)
        made = Making(self, tenant, decision_id, who, arranged)
        return made.decision(explain)

    def cheap(self, tenant: Tenant, decision_id: str, who: Who) -> Decision:
        """The price that is held; without one the list price, which is not held."""
        held = _held(self, who)
        if held is not None:
            return _repeated(self, tenant, decision_id, held)
        prices = self.offer.priced(tenant.catalogue, self.item)
        made = _blank(self, tenant, decision_id)
        if self.offer.baseline in prices.allowed:
            _fill(made, self, prices, self.offer.baseline)
        return made


def plan(tenant: Tenant, spec: OfferSpec, field: str) -> OfferPlan:
    """Check an offer that is asked for. Raises RequestError naming the field."""
    offers = tenant.documents.derived(compile_offers)
    offer = offers.get(spec.offer_id)
    if offer is None:
        wanted = "the id of a document put to /v1/offers"
        raise RequestError(422, "there is no such offer", f"{field}offerId", spec.offer_id, wanted)
    item = -1
    if spec.item_id is not None:
        item = tenant.catalogue.numbers.get(spec.item_id, -1)
        if item < 0:
            wanted = "the id of an item put before"
            raise RequestError(
                422, "the item is not in the catalogue", f"{field}itemId", spec.item_id, wanted
            )
    return OfferPlan(spec, offer, item)


class Making:
    """One offer while it is made."""

    def __init__(
        self, plan: OfferPlan, tenant: Tenant, decision_id: str, who: Who, arranged: Arranged
    ) -> None:
        self.plan = plan
        self.offer = plan.offer
        self.tenant = tenant
        self.who = who
        self.arranged = arranged
        self.known = known_of(who)
        self.prices = plan.offer.priced(tenant.catalogue, plan.item)
        self.decision_ = _blank(plan, tenant, decision_id)
        self.decision_.rejected = list(self.prices.rejected)
        self.decision_.experiment = arranged.assignment
        self.decision_.holdout = arranged.holdout

    def decision(self, explain: bool) -> Decision:
        """Choose a level, hold its price, and write down why."""
        made = self.decision_
        eligible = self._eligible()
        if not eligible:
            made.reasons.append("no level is within the guardrails")
            return made
        fixed = self._fixed(eligible)
        if fixed is not None:
            _fill(made, self.plan, self.prices, fixed)
            chosen = fixed
        else:
            chosen = self._choose(eligible, explain)
        self._hold(chosen)
        return made

    def _eligible(self) -> list[int]:
        """Levels that may be offered; the others are rejected by name of the rule."""
        now_s, offer, prices = self.who.now_s, self.offer, self.prices
        ledger = self.who.ledger.read()
        spent_out = None
        for cap, name in self._caps():
            if capped(cap, ledger, name, now_s):
                spent_out = f"cap: {cap.count} within {cap.window_s} s"
        free = None
        if offer.offer.budget is not None:
            free = self.tenant.books.free(offer.offer.budget, now_s) - sum(
                effect.micros
                for effect in self.who.ledger.effects
                if isinstance(effect, Reserved) and effect.budget == offer.offer.budget
            )
        eligible = []
        for level in prices.allowed:
            cost = prices.costs[level]
            if cost > 0 and spent_out is not None:
                self._reject(level, spent_out)
            elif cost > 0 and free is not None and cost > free:
                self._reject(level, "budget: not enough is left of this shard's portion")
            else:
                eligible.append(level)
        return self._fair(eligible)

    def _fair(self, eligible: list[int]) -> list[int]:
        """Levels that do not drive groups of people further apart than the bound."""
        spread = self.offer.rails.spread
        segment = self._segment()
        if spread is None or segment is None or self.prices.list_micros <= 0:
            return eligible
        tallies = self.tenant.books.spreads.get(self.offer.guardrails_id, {})
        mine = tallies.get(segment, Tally())
        others = [
            tally.total / tally.n
            for name, tally in tallies.items()
            if name != segment and tally.n >= spread.minimum
        ]
        if not others or mine.n + 1 < spread.minimum:
            return eligible
        low, high = max(others) - spread.bound * 1e6, min(others) + spread.bound * 1e6
        fair, nearest, least = [], -1, float("inf")
        for level in eligible:
            mean = (mine.total + self._share_ppm(level)) / (mine.n + 1)
            beyond = max(low - mean, mean - high, 0.0)
            if beyond == 0.0:
                fair.append(level)
            if beyond < least:
                nearest, least = level, beyond
        # Where other groups moved, what leads back towards them is all that is left.
        fair = fair or ([nearest] if nearest >= 0 else [])
        for level in eligible:
            if level not in fair:
                self._reject(level, f"spread: {spread.by} more than {spread.bound} apart")
        return fair

    def _fixed(self, eligible: list[int]) -> int | None:
        """A level that is not up to the policy: holdout, an experiment's arm, no room to hold."""
        baseline = self.offer.baseline if self.offer.baseline in eligible else eligible[0]
        if self.arranged.holdout is not None:
            return baseline
        if len(self.who.ledger.read().quotes) >= QUOTES_MAX:
            expire(self.who.ledger.change(), self.who.now_s)
            if len(self.who.ledger.read().quotes) >= QUOTES_MAX:
                self.decision_.reasons.append(f"{QUOTES_MAX} prices are held already")
                free = [level for level in eligible if self.prices.costs[level] == 0]
                return free[0] if free else baseline
        arm = self.arranged.arm
        if arm is not None:
            for level in eligible:
                if self.offer.levels[level].id == arm:
                    return level
            self.decision_.reasons.append(f"experiment: {arm} is not eligible")
            return baseline
        return None

    def _choose(self, eligible: list[int], explain: bool) -> int:
        offer, made = self.offer, self.decision_
        policy = self.arranged.policy or offer.policy
        features = features_for(self.who, offer.offer.features, offer.forbidden)
        left_out = sorted(offer.forbidden & self.known.keys())
        if left_out:
            made.reasons.append(f"left out as protected: {', '.join(left_out)}")
        arms = offer.arms._replace(values=self.prices.values)
        remembered = self.who.ledger.read().memories.get(policy.id, b"")
        choice = self.tenant.treatment.choose(
            policy,
            features,
            arms,
            self.who.rng,
            eligible=np.array(eligible, np.int32),
            remembered=remembered,
            baseline=() if policy.spec.baseline else (offer.levels[offer.baseline].id,),
        )
        made.policy_id, made.mode = policy.id, policy.spec.mode
        level = int(choice.order[0])
        _fill(made, self.plan, self.prices, level)
        entry = made.ranking[0]
        entry.score = float(choice.scores[0])
        entry.probability = float(choice.propensities[0])
        entry.reason = "explored" if choice.explored else None
        if explain:
            parts = self.tenant.treatment.explain(policy, features, arms, level, remembered)
            entry.explanation = Explanation(parts)
        number = int(made.decision_id[16:], 16)
        self.who.ledger.opened.append(opened_by(policy, number, arms.ids, choice))
        return level

    def _hold(self, level: int) -> None:
        """Hold the price, reserve what it may cost, and count it."""
        made, prices, offer = self.decision_, self.prices, self.offer
        now_s, ledger = self.who.now_s, self.who.ledger
        segment = self._segment()
        if segment is not None and prices.list_micros > 0:
            effect = Priced(offer.guardrails_id, segment, round(self._share_ppm(level)))
            ledger.effects.append(effect)
        if len(ledger.read().quotes) >= QUOTES_MAX:
            return
        cost, expires_s = prices.costs[level], now_s + offer.offer.hold_s
        reserved = 0
        if cost > 0:
            for cap, name in self._caps():
                count_up(cap, ledger, name, now_s)
            if offer.offer.budget is not None:
                reserved = cost
                ledger.effects.append(Reserved(offer.offer.budget, cost, expires_s))
        quote = Quote(
            made.decision_id,
            offer.offer_id,
            offer.levels[level].id,
            self.plan.spec.item_id or "",
            prices.micros[level],
            expires_s,
            reserved,
            0,
            offer.offer.budget or "",
            self.tenant.name,
        )
        ledger.change().quotes.append(quote)
        made.quote_id, made.expires_at = made.decision_id, expires_s

    def _caps(self) -> Iterator[tuple[Cap, str]]:
        """Caps on what costs something, and under which names they are counted."""
        if self.offer.offer.cap is not None:
            yield self.offer.offer.cap, f"offers/{self.offer.offer_id}"
        if self.offer.rails.cap is not None:
            yield self.offer.rails.cap, f"guardrails/{self.offer.guardrails_id}"

    def _segment(self) -> str | None:
        spread = self.offer.rails.spread
        value = self.known.get(spread.by) if spread is not None else None
        return None if value is None else str(value)[:64]

    def _share_ppm(self, level: int) -> float:
        return 1e6 * self.prices.micros[level] / self.prices.list_micros

    def _reject(self, level: int, rule: str) -> None:
        self.decision_.rejected.append(Rejected(self.offer.levels[level].id, rule))


def _held(plan: OfferPlan, who: Who) -> Quote | None:
    """The price that is held for the person on this offer and item."""
    item_id = plan.spec.item_id or ""
    for quote in who.ledger.read().quotes:
        same = quote.offer == plan.offer.offer_id and quote.item == item_id
        if same and quote.expires_s > who.now_s and not quote.redeemed_s:
            return quote
    return None


def _repeated(plan: OfferPlan, tenant: Tenant, decision_id: str, quote: Quote) -> Decision:
    made = _blank(plan, tenant, decision_id)
    made.reasons.append("the price is held")
    made.quote_id, made.expires_at = quote.quote_id, quote.expires_s
    made.ranking = [Ranked(quote.level, 0.0, 1.0, "held")]
    listed = plan.offer.priced(tenant.catalogue, plan.item).list_micros
    _show_price(made, quote.price, listed)
    for level in plan.offer.levels:
        if level.id == quote.level:
            made.benefit = level.benefit
    return made


def _blank(plan: OfferPlan, tenant: Tenant, decision_id: str) -> Decision:
    return Decision(
        decision_id,
        "offer",
        plan.offer.policy.id,
        tenant.treatment.version,
        [],
        [],
        reasons=[],
        offer_id=plan.offer.offer_id,
        item_id=plan.spec.item_id,
        currency=plan.offer.offer.currency,
    )


def _fill(made: Decision, plan: OfferPlan, prices: Prices, level: int) -> None:
    one = plan.offer.levels[level]
    made.ranking = [Ranked(one.id, 0.0, 1.0)]
    made.benefit = one.benefit
    _show_price(made, prices.micros[level], prices.list_micros)


def _show_price(made: Decision, micros: int, list_micros: int) -> None:
    if micros < 0:
        return
    made.price = micros / MICROS
    if list_micros > 0:
        made.list_price = list_micros / MICROS
        made.discount = round(1 - micros / list_micros, 6)
