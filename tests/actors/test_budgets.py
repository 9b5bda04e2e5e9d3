"""Budgets in portions: whatever dies or is lost, no more is spent than there is."""

from __future__ import annotations

import asyncio
import random

import pytest

from actors.books import MICROS, Books, Redeemed, Reserved
from actors.budget_desk import BudgetDesk, Standing
from actors.documents import Documents
from actors.kinds import KINDS
from cluster.errors import Unavailable

TOTAL = 1000


def documents(total: float, portion: float | None = None) -> dict[str, Documents]:
    made = Documents(KINDS)
    body = b'{"total": %g' % total + (b', "portion": %g}' % portion if portion else b"}")
    made.apply(made.checked("budgets", "b", body, 0))
    return {"t": made}


class Shard:
    """Spends of its portion; what it logged is all that outlives it."""

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator
        self.log: list[tuple[str, int, int]] = []
        self.books = Books()
        self.now_s = 0
        self.quotes: list[tuple[int, int]] = []
        self.unreachable = 0.0

    async def budgets(self, tenant: str) -> dict[str, Standing]:
        if self.generator.random() < self.unreachable:
            raise Unavailable("no way there")
        every = self.books.budgets.items()
        return {name: Standing(one.granted, one.used(self.now_s)) for name, one in every}

    async def grant(self, tenant: str, budget: str, granted: int) -> int:
        if self.generator.random() < self.unreachable:
            raise Unavailable("lost on the way there")
        granted = self.books.grant(budget, granted, self.now_s)
        self.log.append(("grant", granted, self.now_s))
        if self.generator.random() < self.unreachable:
            raise Unavailable("the answer is lost")
        return granted

    def quote(self, micros: int) -> bool:
        """As a decision does: only what is free here is promised."""
        if micros > self.books.free("b", self.now_s):
            return False
        until_s = self.now_s + 600
        self.books.apply([Reserved("b", micros, until_s)], self.now_s)
        self.log.append(("reserve", micros, until_s))
        self.quotes.append((micros, until_s))
        return True

    def redeem(self) -> None:
        valid = [quote for quote in self.quotes if quote[1] > self.now_s]
        if valid:
            micros, until_s = self.generator.choice(valid)
            self.quotes.remove((micros, until_s))
            self.books.apply([Redeemed("b", micros, until_s)], self.now_s)
            self.log.append(("redeem", micros, until_s))

    def die(self) -> None:
        """Comes back as its log says; replay has the times of the records, not a clock."""
        self.books = Books()
        for what, number, at_s in self.log:
            if what == "grant":
                self.books.grant("b", number, at_s)
            elif what == "reserve":
                self.books.apply([Reserved("b", number, at_s)], at_s - 600)
            else:
                self.books.apply([Redeemed("b", number, at_s)], at_s - 600)

    @property
    def spent(self) -> int:
        return sum(number for what, number, _ in self.log if what == "redeem")


async def live(seed: int, shards: int, rounds: int, unreachable: float) -> list[Shard]:
    generator = random.Random(seed)
    every = {f"{i}": Shard(generator) for i in range(shards)}
    for shard in every.values():
        shard.unreachable = unreachable
    desk, told = BudgetDesk(), documents(TOTAL)
    for _ in range(rounds):
        await desk.round(told, every)
        for shard in every.values():
            shard.now_s += generator.choice([1, 30, 400])
            for _ in range(generator.randrange(40)):
                shard.quote(generator.randrange(1, 2 * MICROS))
                if generator.random() < 0.5:
                    shard.redeem()
            if generator.random() < 0.1:
                shard.die()
            shard.books.check(shard.now_s)
        if generator.random() < 0.05:
            desk = BudgetDesk()
            # A successor waits for all shards before it serves, and so hears of all grants.
            for shard in every.values():
                shard.unreachable = 0.0
            await desk.round(documents(0), every)
            for shard in every.values():
                shard.unreachable = unreachable
    return list(every.values())


@pytest.mark.parametrize("seed", range(12))
def test_many_shards_that_die_and_answers_that_are_lost_never_overspend(seed: int) -> None:
    shards = asyncio.run(live(seed, shards=1 + seed, rounds=150, unreachable=0.2 * (seed % 3)))
    spent = sum(shard.spent for shard in shards)
    held = sum(shard.books.budgets["b"].used(shard.now_s) for shard in shards)
    assert spent <= held <= TOTAL * MICROS
    # And what can be spent is spent: little lies idle on some shard while others have none.
    assert held >= 0.9 * TOTAL * MICROS


def test_what_a_quote_held_back_is_free_again_when_it_expires() -> None:
    books = Books()
    books.grant("b", 100, 0)
    books.apply([Reserved("b", 80, 600)], 0)
    assert books.free("b", 599) == 20
    assert books.free("b", 661) == 100
    books.apply([Reserved("b", 100, 1300)], 700)
    books.apply([Redeemed("b", 100, 1300)], 710)
    assert (books.free("b", 5000), books.budgets["b"].spent) == (0, 100)
    books.check(5000)


def test_a_portion_is_what_the_document_says_and_no_more() -> None:
    async def act() -> None:
        shards = {name: Shard(random.Random(1)) for name in "ab"}
        desk = BudgetDesk()
        await desk.round(documents(100, portion=5), shards)
        assert [s.books.budgets["b"].granted for s in shards.values()] == [5 * MICROS] * 2
        assert desk.granted("t", "b") == 10 * MICROS

    asyncio.run(act())


def test_a_lowered_budget_takes_back_what_is_not_used() -> None:
    async def act() -> None:
        shards = {name: Shard(random.Random(1)) for name in "ab"}
        desk = BudgetDesk()
        await desk.round(documents(100, portion=50), shards)
        assert shards["a"].quote(30 * MICROS)
        await desk.round(documents(40, portion=50), shards)
        await desk.round(documents(40, portion=50), shards)
        assert desk.granted("t", "b") == 40 * MICROS
        assert shards["a"].books.budgets["b"].granted >= 30 * MICROS

    asyncio.run(act())


def test_what_a_lost_log_was_granted_counts_as_spent() -> None:
    async def act() -> None:
        shards = {name: Shard(random.Random(1)) for name in "ab"}
        desk, told = BudgetDesk(), documents(100, portion=50)
        await desk.round(told, shards)
        assert shards["a"].quote(50 * MICROS)
        shards["a"].redeem()
        shards["a"] = Shard(random.Random(2))
        for _ in range(5):
            await desk.round(told, shards)
        new = shards["a"].books.budgets.get("b")
        granted = new.granted if new else 0
        assert granted + shards["b"].books.budgets["b"].granted <= 50 * MICROS

    asyncio.run(act())
