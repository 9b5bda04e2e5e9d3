"""Offers and their guardrails as documents, and what of them does not depend on the person."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from actors.books import MICROS
from actors.decisions import Rejected
from actors.documents import DocumentId, Documents, must_exist
from actors.messages import Name, Strict
from actors.surfaces.common import Cap, Seconds, Text
from actors.treatment.features import Arm, Arms, arms_of
from actors.treatment.policy import Policy, default_policy, policies
from cluster.errors import RequestError

if TYPE_CHECKING:
    from actors.catalogue import Catalogue

LEVELS_MAX = 32
PRICED_MAX = 4096
"""Items whose prices at all levels of an offer are remembered."""

Amount = Annotated[float, Meta(ge=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Spread(Strict):
    """How far apart groups of people may be in what they are asked to pay.

    by       the trait that tells the groups apart; often a protected one
    bound    of the mean share of the list price, between any two groups
    minimum  quotes that a group has had before it is compared
    """

    by: Name
    bound: Annotated[float, Meta(gt=0, le=1)]
    minimum: Annotated[int, Meta(ge=1, le=1_000_000)] = 30


class Guardrails(Strict):
    """What no offer may break, whatever its policy has learned.

    floor, ceiling  of the price itself
    max_discount    share of the list price; max_increase: above it
    min_margin      share of the price that remains after the item's cost
    protected       traits and context that must not move a price
    proxies         what stands for them, as a postal code does; kept out in the same way
    cap             offers that cost something, per person, over all offers of these guardrails
    """

    id: DocumentId | None = None
    description: Text = ""
    floor: Amount | None = None
    ceiling: Amount | None = None
    max_discount: Share | None = None
    max_increase: Share = 0.0
    min_margin: Share | None = None
    protected: tuple[Name, ...] = ()
    proxies: tuple[Name, ...] = ()
    spread: Spread | None = None
    cap: Cap | None = None


class Level(Strict):
    """One thing that may be offered: a discount, a price, a benefit, or nothing (the list price).

    cost   what a redemption costs beside the discount, as shipping does
    value  what a success is worth; without, the margin
    """

    id: Annotated[str, Meta(min_length=1, max_length=32)]
    discount: Share | None = None
    price: Amount | None = None
    benefit: Text | None = None
    cost: Amount = 0.0
    value: Amount | None = None


class Offer(Strict):
    """What may be offered on an item, within guardrails and a budget.

    baseline  the level for those who get no choice; without, the first
    features  names of traits and context by which the price may be chosen; None: all that the
              guardrails do not protect
    hold_s    how long the same person is asked the same price
    """

    levels: Annotated[tuple[Level, ...], Meta(min_length=1, max_length=LEVELS_MAX)]
    id: DocumentId | None = None
    description: Text = ""
    guardrails: DocumentId | None = None
    policy: DocumentId | None = None
    budget: DocumentId | None = None
    baseline: str | None = None
    features: tuple[Name, ...] | None = None
    hold_s: Seconds = 900
    cap: Cap | None = None
    rounding: Annotated[float, Meta(ge=0.000001, le=1000)] = 0.01
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] | None = None
    price_attribute: Name = "price"
    cost_attribute: Name = "cost"


def check_guardrails(rails: Guardrails, document_id: str, documents: Documents) -> None:
    """Raises RequestError if guardrails contradict themselves, or an offer that stands on them."""
    if rails.floor is not None and rails.ceiling is not None and rails.floor > rails.ceiling:
        raise RequestError(
            422, "the floor is above the ceiling", "floor", str(rails.floor), f"<= {rails.ceiling}"
        )
    for offer in documents.of("offers").values():
        if offer.guardrails == document_id:
            _check_features(offer, rails, "protected")


def check_offer(offer: Offer, document_id: str, documents: Documents) -> None:
    """Raises RequestError if an offer can't be used as it is."""
    for kind in ("guardrails", "policies", "budgets"):
        field = {"policies": "policy", "budgets": "budget"}.get(kind, kind)
        must_exist(documents, kind, getattr(offer, field), field)
    ids = [level.id for level in offer.levels]
    for i, level in enumerate(offer.levels):
        if level.discount is not None and level.price is not None:
            raise RequestError(
                422, "a level has a discount or a price", f"levels[{i}]", level.id, "one of them"
            )
        if ids.index(level.id) != i:
            raise RequestError(422, "ids of levels must differ", f"levels[{i}].id", level.id)
    if offer.baseline is not None and offer.baseline not in ids:
        raise RequestError(
            422, "the baseline is no level", "baseline", offer.baseline, ", ".join(ids)
        )
    rails = documents.get("guardrails", offer.guardrails) if offer.guardrails else None
    if rails is not None:
        _check_features(offer, rails, "features")


def _check_features(offer: Offer, rails: Guardrails, field: str) -> None:
    forbidden = {*rails.protected, *rails.proxies}
    for name in offer.features or ():
        if name in forbidden:
            raise RequestError(
                422,
                "a price must not depend on what guardrails protect",
                field,
                name,
                "features that are neither protected nor proxies",
            )


class Priced(NamedTuple):
    """The levels of an offer for one item. micros, costs int64 [n]; values float32 [n].

    allowed   indices of levels within the guardrails; rejected tells of the others
    costs     what a redemption takes from the budget, in micros
    micros    prices; -1 where an item has no price
    """

    list_micros: int
    micros: list[int]
    costs: list[int]
    values: NDArray[np.float32]
    allowed: list[int]
    rejected: list[Rejected]


class Compiled:
    """An offer, ready to be decided. Prices are computed once per item and catalogue version."""

    def __init__(self, offer_id: str, offer: Offer, documents: Documents) -> None:
        self.offer_id = offer_id
        self.offer = offer
        self.guardrails_id = offer.guardrails or ""
        rails = documents.get("guardrails", offer.guardrails) if offer.guardrails else None
        self.rails: Guardrails = rails or Guardrails()
        found = documents.derived(policies).get(offer.policy) if offer.policy else None
        self.policy: Policy = found or default_policy(f"offer.{offer_id}", "offer")
        self.levels = offer.levels
        ids = [level.id for level in self.levels]
        self.baseline = ids.index(offer.baseline) if offer.baseline else 0
        self.arms: Arms = arms_of([Arm(level.id, _features(level)) for level in self.levels])
        self.forbidden = frozenset((*self.rails.protected, *self.rails.proxies))
        self._priced: dict[int, Priced] = {}
        self._version = -1

    def priced(self, catalogue: Catalogue, item: int) -> Priced:
        """The levels for an item, by number; -1 = no item."""
        if catalogue.version != self._version or len(self._priced) > PRICED_MAX:
            self._priced.clear()
            self._version = catalogue.version
        found = self._priced.get(item)
        if found is None:
            found = self._priced[item] = self._price(catalogue, item)
        return found

    def _price(self, catalogue: Catalogue, item: int) -> Priced:
        offer = self.offer
        listed = _number(catalogue, offer.price_attribute, item)
        cost = _number(catalogue, offer.cost_attribute, item)
        micros, costs, values, allowed, rejected = [], [], [], [], []
        for i, level in enumerate(self.levels):
            price = _price_of(level, listed, offer.rounding)
            micros.append(-1 if price is None else round(price * MICROS))
            spent = level.cost
            if price is not None and listed is not None:
                spent += max(listed - price, 0.0)
            costs.append(round(spent * MICROS))
            margin = (price or 0.0) - (cost or 0.0) - level.cost
            values.append(max(margin, 0.0) if level.value is None else level.value)
            broken = self._broken(level, price, listed, cost)
            if broken is None:
                allowed.append(i)
            else:
                rejected.append(Rejected(level.id, broken))
        return Priced(
            -1 if listed is None else round(listed * MICROS),
            micros,
            costs,
            np.array(values, np.float32),
            allowed,
            rejected,
        )

    def _broken(
        self, level: Level, price: float | None, listed: float | None, cost: float | None
    ) -> str | None:
        """The guardrail that a level breaks on an item, None if none does."""
        rails = self.rails
        if price is None:
            needs = level.discount is not None or rails != Guardrails()
            return "the item has no price" if needs else None
        if rails.floor is not None and price < rails.floor:
            return f"floor: {price} < {rails.floor}"
        if rails.ceiling is not None and price > rails.ceiling:
            return f"ceiling: {price} > {rails.ceiling}"
        if listed is not None and price > listed * (1 + rails.max_increase) + 1e-9:
            return f"maxIncrease: {price} > {rails.max_increase} above {listed}"
        if rails.max_discount is not None:
            if listed is None:
                return "maxDiscount: the item has no list price"
            if price < listed * (1 - rails.max_discount) - 1e-9:
                return f"maxDiscount: {price} < {1 - rails.max_discount:g} of {listed}"
        if rails.min_margin is not None:
            if cost is None:
                return "minMargin: the item has no cost"
            if price - cost - level.cost < rails.min_margin * price - 1e-9:
                return f"minMargin: {price} - {cost + level.cost:g} < {rails.min_margin} of {price}"
        return None


def compile_offers(documents: Documents) -> dict[str, Compiled]:
    """All offers, ready to be decided."""
    return {
        offer_id: Compiled(offer_id, offer, documents)
        for offer_id, offer in documents.of("offers").items()
    }


def _features(level: Level) -> dict[str, str | float | bool | None]:
    return {"discount": level.discount, "price": level.price, "benefit": level.benefit}


def _price_of(level: Level, listed: float | None, rounding: float) -> float | None:
    """The price at a level, rounded to the nearest multiple; None if it can't be known."""
    if level.price is not None:
        return level.price
    if listed is None or not level.discount:
        return listed
    return round(round(listed * (1 - level.discount) / rounding) * rounding, 6)


def _number(catalogue: Catalogue, attribute: str, item: int) -> float | None:
    column = catalogue.columns.get(attribute)
    if item < 0 or column is None or not column.is_number[item]:
        return None
    value = float(column.numbers[item])
    return value if math.isfinite(value) and value >= 0.0 else None
