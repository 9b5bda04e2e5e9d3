"""The people and the catalogue of the simulated shop: what anybody does with what is shown.

Tastes are sums of what tier, device and age of a person say and of what is the person's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.messages import Item
from tests.bench.treatments_rules import CHANNELS, PARTS, TEMPLATES

CATEGORIES, ITEMS = 12, 240
ARTICLES = 8
TIERS, DEVICES, AGES = ("student", "regular", "premium"), ("phone", "desktop", "tablet"), 4
THRIFT = {"student": 8.0, "regular": 5.0, "premium": 1.0}
ZONES = ("UTC", "Europe/Berlin", "America/New_York")

Floats = NDArray[np.float64]


def sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


class Person(NamedTuple):
    """Chances of one person; nobody but the simulation and the oracle knows them."""

    id: str
    traits: dict[str, str]
    articles: Floats
    items: Floats
    interest: Floats
    thrift: float
    wish: Floats
    parts: Floats
    opens: Floats
    annoyed: float


class Shop:
    """The catalogue, and how people of each kind differ."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.ids = [f"i{i:03d}" for i in range(ITEMS)]
        self.numbers = {item: i for i, item in enumerate(self.ids)}
        self.category = np.arange(ITEMS) % CATEGORIES
        self.price = np.round(rng.uniform(9, 48, ITEMS), 2)
        self.cost = np.round(self.price * rng.uniform(0.4, 0.65, ITEMS), 2)
        self.quality = rng.normal(0, 0.5, ITEMS)
        of_tier = (CATEGORIES, ARTICLES, len(PARTS), len(CHANNELS) * len(TEMPLATES))
        self.by_tier = [rng.normal(0, 0.9, (len(TIERS), n)) for n in of_tier]
        self.by_device = [rng.normal(0, 0.6, (len(DEVICES), n)) for n in of_tier]
        self.by_age = [rng.normal(0, 0.6, (AGES, n)) for n in of_tier]

    def items(self) -> list[Item]:
        return [
            Item(one, {"price": float(p), "cost": float(c), "category": f"c{k}"})
            for one, p, c, k in zip(self.ids, self.price, self.cost, self.category, strict=True)
        ]

    def person(self, number: int) -> Person:
        rng = self.rng
        tier, device, age = rng.integers(3), rng.integers(3), rng.integers(AGES)
        taste, article, part, message = (
            of_tier[tier] + of_device[device] + of_age[age] + rng.normal(0, 0.7, of_tier.shape[1])
            for of_tier, of_device, of_age in zip(
                self.by_tier, self.by_device, self.by_age, strict=True
            )
        )
        wanted = taste[self.category] + self.quality
        interest = np.exp(1.5 * wanted)
        traits = {
            "tier": TIERS[tier],
            "device": DEVICES[device],
            "age": f"a{age}",
            "gender": "fm"[rng.integers(2)],
            "timezone": ZONES[rng.integers(3)],
        }
        return Person(
            f"u{number}",
            traits,
            sigmoid(article - 1.0),
            sigmoid(wanted - 1.5),
            interest,
            float(THRIFT[TIERS[tier]] + rng.normal(0, 1.0)),
            0.4 * wanted - 1.2,
            sigmoid(part - 0.5),
            sigmoid(message - 1.0),
            float(sigmoid(rng.normal(-1.0, 1.0))),
        )
