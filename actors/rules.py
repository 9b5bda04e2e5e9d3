"""What is asked of a ranking beyond its order: filters, promotions, pins, diversity, rotation.

A decision without rules never comes here. One with rules ranks more than it needs and fills the
places one by one, best first, so that every place holds the best item the rules leave for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.decisions import RankingSpec, Rejected
from actors.engine.interface import Ranking
from actors.filters import Mask
from actors.tenant import Tenant

POOL_MAX = 1000
"""Items that are ranked to choose from."""
NEW_EVENTS = 10
"""An item with fewer events is new: exploration may show it."""

_NO_CHANCES: NDArray[np.float32] = np.zeros(0, np.float32)

Rank = Callable[[NDArray[np.int32] | None, int], Ranking]


class Place(NamedTuple):
    """One filled place: the item's number, what was computed of it, and why it stands there."""

    item: int
    score: float
    probability: float | None
    reason: str | None


class Rules(NamedTuple):
    """A spec's rules, checked: masks are bool [n] over all item numbers.

    allowed     which items may be shown at all; None = all that are alive
    promotions  (name, mask, share of the places)
    pins        item number by place, from 0
    """

    allowed: Mask | None
    promotions: list[tuple[str, Mask, float]]
    pins: dict[int, int]


def check_rules(tenant: Tenant, spec: RankingSpec, field: str) -> Rules | None:
    """The rules of a spec, None if it has none. Raises RequestError naming the rule's field."""
    ruled = spec.filter or spec.promotions or spec.diversity or spec.pins
    if not ruled and spec.rotation == 0.0 and spec.exploration == 0.0:
        return None
    values = spec.filter_values
    allowed = None
    if spec.filter is not None:
        allowed = tenant.passing(spec.filter, values, f"{field}filter")
    promotions = [
        (
            promotion.name,
            tenant.passing(promotion.filter, values, f"{field}promotions[{i}].filter"),
            promotion.percent_promoted_items / 100,
        )
        for i, promotion in enumerate(spec.promotions)
    ]
    numbers, alive = tenant.catalogue.numbers, tenant.catalogue.alive
    pins = {
        pin.position - 1: numbers[pin.id]
        for pin in spec.pins
        if pin.id in numbers and alive[numbers[pin.id]]
    }
    return Rules(allowed, promotions, pins)


class Filling:
    """Fills the places of one decision. `rank` ranks candidates under the spec's own exclusions.

    candidates  int32 [n] item numbers, or None for the whole catalogue
    rng         for rotation and exploration
    """

    def __init__(
        self,
        tenant: Tenant,
        spec: RankingSpec,
        rules: Rules,
        candidates: NDArray[np.int32] | None,
        rank: Rank,
        rng: np.random.Generator,
    ) -> None:
        self._tenant = tenant
        self._spec = spec
        self._rules = rules
        self._whole = candidates is None
        self._rank = rank
        self._rng = rng
        self.rejected: list[Rejected] = []
        self._taken = set(rules.pins.values())
        self._shown: dict[int, int] = {}
        self.no_action = 0.0
        self._pool = self._ranked(candidates)

    def fill(self) -> list[Place]:
        """The places, best first; fewer than asked for if the rules leave too few."""
        places: list[Place] = []
        promoted = [0] * len(self._rules.promotions)
        explored = 0
        # A random start makes a share below one place come true now and then.
        chance = self._rng.random() if self._spec.exploration else 0.0
        fresh = self._fresh()
        for position in range(self._spec.num_results):
            place = self._pinned(position)
            if place is None:
                place = self._promoted(position, promoted)
            if place is None and math.floor((position + 1) * self._spec.exploration + chance):
                due = math.floor((position + 1) * self._spec.exploration + chance) > explored
                place = next(fresh, None) if due else None
                explored += place is not None
            if place is None:
                place = self._best(None, None)
            if place is None:
                break
            for i, (_, mask, _) in enumerate(self._rules.promotions):
                promoted[i] += bool(mask[place.item])
            self._count_shown(place.item)
            places.append(place)
        return places

    def _ranked(self, candidates: NDArray[np.int32] | None) -> list[Place]:
        """All that may be shown, best first, the order rotated if the spec says so."""
        ranking = self._rank(candidates, POOL_MAX)
        self.no_action = ranking.no_action
        allowed = self._rules.allowed
        if allowed is not None:
            keep = allowed[ranking.items]
            self._reject(ranking.items[~keep], "filter")
            chances_left = (
                ranking.probabilities[keep] if len(ranking.probabilities) else _NO_CHANCES
            )
            ranking = Ranking(ranking.items[keep], ranking.scores[keep], chances_left)
        if self._whole:
            ranking = self._topped_up(ranking)
        items, scores = ranking.items.tolist(), ranking.scores.tolist()
        chances: list[float | None] = list(ranking.probabilities.tolist()) or [None] * len(items)
        pool = [Place(*entry, None) for entry in zip(items, scores, chances, strict=True)]
        if self._spec.rotation and len(pool) > 1:
            # Gumbel noise on the scores draws an order in proportion to exp(score / scale)
            # (Plackett-Luce), so what was best stays likely to stand first.
            head = np.array(scores[: 3 * self._spec.num_results])
            noise = self._rng.gumbel(size=len(pool)) * self._spec.rotation * float(head.std())
            order = np.argsort(-(np.array(scores) + noise), kind="stable")
            pool = [pool[i] for i in order.tolist()]
        return pool

    def _topped_up(self, ranking: Ranking) -> Ranking:
        """With popular items that the rules ask for, if the ranking alone has too few of them."""
        wanted: list[NDArray[np.int32]] = []
        masks = [(self._rules.allowed, self._spec.num_results)] + [
            (mask, math.ceil(share * self._spec.num_results))
            for _, mask, share in self._rules.promotions
        ]
        for mask, count in masks:
            if mask is not None and np.count_nonzero(mask[ranking.items]) < count:
                joint = mask if self._rules.allowed is None else mask & self._rules.allowed
                wanted.append(self._tenant.popular(joint, POOL_MAX // 2))
        if not wanted:
            return ranking
        return self._rank(np.unique(np.concatenate([ranking.items, *wanted])), POOL_MAX)

    def _pinned(self, position: int) -> Place | None:
        item = self._rules.pins.get(position)
        if item is None:
            return None
        ranking = self._rank(np.array([item], np.int32), 1)
        if not len(ranking.items):
            return Place(item, 0.0, None, "pinned")
        chance = float(ranking.probabilities[0]) if len(ranking.probabilities) else None
        return Place(item, float(ranking.scores[0]), chance, "pinned")

    def _promoted(self, position: int, promoted: list[int]) -> Place | None:
        """The best item of a promotion that has had less than its share up to this place."""
        for i, (name, mask, share) in enumerate(self._rules.promotions):
            if promoted[i] < math.floor((position + 1) * share):
                place = self._best(mask, f"promoted: {name}")
                if place is not None:
                    return place
        return None

    def _best(self, mask: Mask | None, reason: str | None) -> Place | None:
        """The first of the pool that is left and fits."""
        for place in self._pool:
            if place.item in self._taken or (mask is not None and not mask[place.item]):
                continue
            if not self._fits(place.item):
                self._taken.add(place.item)
                self._reject(np.array([place.item]), "diversity")
                continue
            self._taken.add(place.item)
            return place._replace(reason=reason)
        return None

    def _fresh(self) -> Iterator[Place]:
        """New items that may be shown, at random."""
        if not self._spec.exploration:
            return
        catalogue = self._tenant.catalogue
        new = catalogue.alive[: catalogue.n] != 0
        new &= self._tenant.engine.counts[: catalogue.n] < NEW_EVENTS
        if self._rules.allowed is not None:
            new &= self._rules.allowed
        if not self._whole:
            mine = np.zeros(catalogue.n, np.bool_)
            mine[[place.item for place in self._pool]] = True
            new &= mine
        found = np.flatnonzero(new).astype(np.int32)
        ranking = self._rank(self._rng.permutation(found)[:POOL_MAX], POOL_MAX)
        order = self._rng.permutation(len(ranking.items)).tolist()
        for i in order:
            item = int(ranking.items[i])
            if item not in self._taken and self._fits(item):
                self._taken.add(item)
                chance = float(ranking.probabilities[i]) if len(ranking.probabilities) else None
                yield Place(item, float(ranking.scores[i]), chance, "explored")

    def _fits(self, item: int) -> bool:
        diversity = self._spec.diversity
        if diversity is None:
            return True
        value = self._value(item)
        return value == 0 or self._shown.get(value, 0) < diversity.max

    def _count_shown(self, item: int) -> None:
        if self._spec.diversity is not None:
            value = self._value(item)
            self._shown[value] = self._shown.get(value, 0) + 1

    def _value(self, item: int) -> int:
        """The code of the item's value of the diversity attribute; 0 = it has none."""
        assert self._spec.diversity is not None
        column = self._tenant.catalogue.columns.get(self._spec.diversity.by)
        return int(column.codes[item]) if column is not None else 0

    def _reject(self, items: NDArray[np.int32], rule: str) -> None:
        # Of the whole catalogue nearly everything is left out; only named candidates are told of.
        if not self._whole:
            ids = self._tenant.catalogue.ids
            self.rejected += [Rejected(ids[item], rule) for item in items.tolist()]
