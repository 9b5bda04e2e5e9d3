"""Clients, what they were told, and the check of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.sim.owner import MOVED, UNAVAILABLE, Owner
from tests.sim.world import Violation, World

RETRY_S = 0.3


class Client:
    """Writes its ids one after the other, each again until it is acknowledged; reads between."""

    def __init__(
        self, world: World, history: History, route: Callable[[], Owner | None], number: int
    ) -> None:
        self.world = world
        self.history = history
        self.route = route
        self.number = number
        self.next = 0
        self.attempt = 0
        self.level = "disk" if world.rng.random() < world.swarm.disk_level else "replica"
        world.at(world.rng.random(), self.go)

    @property
    def done(self) -> bool:
        return self.next >= self.world.swarm.ops

    def go(self) -> None:
        world = self.world
        if self.done and world.healed:
            return
        self.attempt += 1
        owner = self.route()
        if owner is not None:
            if world.rng.random() < 0.6:
                bound = self.history.bound()
                world.send(-2, owner.node.number, owner.run, self._read, owner, bound)
            if not self.done:
                one = (self.number, self.next)
                self.history.asked.add(one)
                world.send(-2, owner.node.number, owner.run, self._write, owner, one, self.attempt)
        world.at(RETRY_S * (0.5 + world.rng.random()), self._again, self.attempt)

    def _again(self, attempt: int) -> None:
        if attempt == self.attempt:
            self.go()

    def _write(self, owner: Owner, one: Any, attempt: int) -> None:
        level = self.level

        def answer(content: Any) -> None:
            self.world.send(owner.node.number, -2, self._written, one, content, level, attempt)

        owner.write(one, level, answer)

    def _written(self, one: Any, content: Any, level: str, attempt: int) -> None:
        if content in (MOVED, UNAVAILABLE):
            return
        self.history.acknowledge(one, level)
        if one == (self.number, self.next):
            self.next += 1
            self.world.at(self.world.rng.random() * self.world.swarm.think_s, self.go)

    def _read(self, owner: Owner, bound: tuple[tuple[Any, ...], frozenset[Any]]) -> None:
        def answer(content: Any) -> None:
            if content is not MOVED:
                self.world.send(owner.node.number, -2, self.history.saw, content, bound)

        owner.read(answer)


class History:
    """What was promised. Every check is linear in what it looks at."""

    def __init__(self) -> None:
        self.asked: set[Any] = set()
        self.acked: set[Any] = set()
        self.acked_on_disk: set[Any] = set()
        self.longest: tuple[Any, ...] = ()

    def acknowledge(self, one: Any, level: str) -> None:
        (self.acked if level == "replica" else self.acked_on_disk).add(one)

    def bound(self) -> tuple[tuple[Any, ...], frozenset[Any]]:
        """What a read that starts now must show: all that was read or acknowledged before."""
        return self.longest, frozenset(self.acked)

    def saw(self, content: tuple[Any, ...], bound: tuple[tuple[Any, ...], frozenset[Any]]) -> None:
        before, acked = bound
        if content[: len(before)] != before:
            raise Violation(f"a read went back: {before} was read before, then {content}")
        if not acked <= set(content):
            raise Violation(f"a read misses {sorted(acked - set(content))}, acknowledged before")
        shorter, longer = sorted((self.longest, content), key=len)
        if longer[: len(shorter)] != shorter:
            raise Violation(f"reads disagree: {shorter} and {longer}")
        self.longest = longer

    def check(self, where: str, ids: Iterable[Any], on_disk: bool) -> None:
        """ids  of one copy or memory; on_disk: whether what disk alone promised must be there"""
        order = list(ids)
        present = set(order)
        if len(order) != len(present):
            raise Violation(f"{where}: some id is there twice: {order}")
        promised = self.acked | self.acked_on_disk if on_disk else self.acked
        if not promised <= present:
            raise Violation(f"{where}: {sorted(promised - present)} is lost: {order}")
        if not present <= self.asked:
            raise Violation(f"{where}: nobody sent {sorted(present - self.asked)}")
        for client in {one[0] for one in order}:
            own = [one for one in order if one[0] == client and one in promised]
            if own != sorted(own):
                raise Violation(f"{where}: client {client} is out of order: {own}")
