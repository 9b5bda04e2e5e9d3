"""What the surfaces of one tenant count on one shard: budgets, price spreads, experiments.

Changed by effects only. An effect is decided once, logged with the call that caused it, and applied
again by replay without a clock. Counts of shards add up to those of the cluster. Money is in
integer units of 1e-6, so that no sum drifts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actors.comparison import Compared

MICROS = 1_000_000
BUCKET_S = 60
"""Reservations are released together with those of the same minute."""


class _Effect(msgspec.Struct, array_like=True, frozen=True):
    """Base of effects. New fields go to the end, with a default."""


class Reserved(_Effect, frozen=True, tag="r"):
    """A quote holds back a part of a budget until `until_s`."""

    budget: str
    micros: int
    until_s: int


class Redeemed(_Effect, frozen=True, tag="e"):
    """A quote was taken: what it held back is spent."""

    budget: str
    micros: int
    until_s: int


class Priced(_Effect, frozen=True, tag="p"):
    """A price was quoted to a segment: its share of the list price, in parts per million."""

    guardrails: str
    segment: str
    share_ppm: int


class Exposed(_Effect, frozen=True, tag="x"):
    """A person saw a variant of an experiment for the first time."""

    experiment: str
    variant: str


class Scored(_Effect, frozen=True, tag="y"):
    """The outcome of an exposed person grew from `before` to `after`."""

    experiment: str
    variant: str
    before: float
    after: float


Effect = Reserved | Redeemed | Priced | Exposed | Scored


class Budget(msgspec.Struct, array_like=True):
    """A shard's portion of a budget. spent + reserved <= granted, always.

    reserved  by minute in which it is released, numbered from 1970
    """

    granted: int = 0
    spent: int = 0
    reserved: dict[int, int] = {}

    def used(self, now_s: int) -> int:
        """What is spent, or held back for quotes that are valid."""
        first = now_s // BUCKET_S
        return self.spent + sum(n for minute, n in self.reserved.items() if minute >= first)


class Tally(msgspec.Struct, array_like=True):
    """Numbers that were seen: how many, their sum, and the sum of their squares."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0


class Books(msgspec.Struct, array_like=True):
    """All counts of one tenant on one shard.

    spreads      by guardrails and segment: shares of the list price, in parts per million
    experiments  by experiment and variant: outcomes per exposed person
    compared     by policy: what its last versions earned, and what they would have; no effects,
                 the closing of a decision counts itself
    New fields go to the end, with a default: yesterday's snapshots are shorter.
    """

    budgets: dict[str, Budget] = {}
    spreads: dict[str, dict[str, Tally]] = {}
    experiments: dict[str, dict[str, Tally]] = {}
    compared: dict[str, list[Compared]] = {}

    def apply(self, effects: list[Effect], now_s: int) -> None:
        """Count what happened."""
        for effect in effects:
            match effect:
                case Reserved():
                    book = self._budget(effect.budget, now_s)
                    minute = effect.until_s // BUCKET_S
                    book.reserved[minute] = book.reserved.get(minute, 0) + effect.micros
                case Redeemed():
                    book = self._budget(effect.budget, now_s)
                    minute = effect.until_s // BUCKET_S
                    book.reserved[minute] = book.reserved.get(minute, 0) - effect.micros
                    book.spent += effect.micros
                case Priced():
                    tally = _tally(self.spreads, effect.guardrails, effect.segment)
                    tally.n += 1
                    tally.total += effect.share_ppm
                    tally.squares += effect.share_ppm**2
                case Exposed():
                    _tally(self.experiments, effect.experiment, effect.variant).n += 1
                case Scored():
                    tally = _tally(self.experiments, effect.experiment, effect.variant)
                    tally.total += effect.after - effect.before
                    tally.squares += effect.after**2 - effect.before**2

    def free(self, budget: str, now_s: int) -> int:
        """What may still be promised of a budget here, in micros."""
        book = self.budgets.get(budget)
        return 0 if book is None else book.granted - book.used(now_s)

    def grant(self, budget: str, granted: int, now_s: int) -> int:
        """Set what was granted in all, but not below what is used; returns what it is now."""
        book = self._budget(budget, now_s)
        book.granted = max(granted, book.used(now_s))
        return book.granted

    def check(self, now_s: int) -> None:
        """Prove that no budget is overspent. Raises AssertionError: only a bug can break it."""
        for name, book in self.budgets.items():
            assert 0 <= book.used(now_s) <= book.granted, (name, book)
            assert all(micros >= 0 for micros in book.reserved.values()), (name, book)

    def _budget(self, name: str, now_s: int) -> Budget:
        """A budget's book, without the reservations that have run out."""
        book = self.budgets.get(name)
        if book is None:
            book = self.budgets[name] = Budget()
        first = now_s // BUCKET_S
        # The clock may step back, and what was released must not count again.
        for minute in [minute for minute in book.reserved if minute < first]:
            del book.reserved[minute]
        return book


def _tally(tallies: dict[str, dict[str, Tally]], name: str, part: str) -> Tally:
    return tallies.setdefault(name, {}).setdefault(part, Tally())


def merged(parts: list[Any]) -> dict[str, Tally]:
    """Tallies of several shards, added up."""
    total: dict[str, Tally] = {}
    for part in parts:
        for name, tally in part.items():
            kept = total.setdefault(name, Tally())
            kept.n += tally.n
            kept.total += tally.total
            kept.squares += tally.squares
    return total
