"""A world of one seed: virtual time, a network, nodes with disks and processes, the epoch store.

All randomness comes from the seed, all waiting is on the scheduler: a seed always gives the same
run. Swarm parameters: each seed draws which faults it has, and how often.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Coroutine, Generator
from itertools import count
from typing import Any, NamedTuple

from cluster.errors import Unavailable
from cluster.keys import HASH_SPACE, KeyRange
from cluster.ownership import Claim, Copy, Table, claim_of, take_over
from cluster.replication import Backup, Primary
from cluster.takeover import Takeover

SHARD = "0"


class Violation(Exception):
    """A promise was broken."""


class Batch(NamedTuple):
    """A batch of the log as it lies in a copy: one id per record."""

    epoch: int
    first_seq: int
    ids: tuple[Any, ...]
    previous: int
    crc: int

    @property
    def next_seq(self) -> int:
        return self.first_seq + len(self.ids)


class CopyDisk:
    """The files of one copy. What is not synced survives a kill, not a power failure."""

    def __init__(self, copy_id: str, node: Node) -> None:
        self.copy_id = copy_id
        self.node = node
        self.log: list[Batch] = []
        self.synced = 0
        self.sealed = 0
        self.served = False
        self.made_for = 0
        """The epoch whose owner may recruit it."""
        self.holder: Process | None = None
        """Who holds the folder's lock; a process that is stopped holds it still."""

    @property
    def end(self) -> tuple[int, int]:
        """(next_seq, crc)."""
        return (self.log[-1].next_seq, self.log[-1].crc) if self.log else (1, 0)

    def lock(self, process: Process) -> bool:
        if self.holder is not None and self.holder.alive and self.holder is not process:
            return False
        self.holder = process
        # Recovery reads what is there and makes it durable before anything follows.
        self.synced = len(self.log)
        return True

    def power_failure(self, rng: random.Random) -> None:
        """Of what was not synced, any first part survives; a torn batch is cut at recovery."""
        del self.log[rng.randint(self.synced, len(self.log)) :]
        self.synced = len(self.log)


class Promise:
    """Something that a coroutine awaits. Only the first outcome counts."""

    then: Callable[[Any, Exception | None], None] | None = None

    def __await__(self) -> Generator[Promise, Any, Any]:
        return (yield self)

    def settle(self, value: Any = None, error: Exception | None = None) -> None:
        then, self.then = self.then, None
        if then is not None:
            then(value, error)


class Process:
    """Something that runs on a node and can be killed or stopped."""

    def __init__(self, world: World, node: Node) -> None:
        self.world = world
        self.node = node
        self.alive = True
        self.stopped_until_s = 0.0
        node.processes.append(self)

    def exit(self) -> None:
        if self.alive:
            self.alive = False
            self.node.processes.remove(self)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that awaits promises of this world."""
        self._step(work, None, None)

    def _step(self, work: Coroutine[Any, Any, None], value: Any, error: Exception | None) -> None:
        try:
            promise: Promise = work.send(value) if error is None else work.throw(error)
        except StopIteration:
            return
        promise.then = lambda value, error: self.run(self._step, work, value, error)

    def after(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        """Do `act` later, in this process: not if it has died, later if it is stopped."""
        self.world.at(delay_s, self.run, act, *args)

    def run(self, act: Callable[..., None], *args: Any) -> None:
        if not self.alive:
            return
        if self.stopped_until_s > self.world.now_s:
            self.world.at(self.stopped_until_s - self.world.now_s, self.run, act, *args)
        else:
            act(*args)


class Node:
    """A machine: its disk's copies, its processes, its clock."""

    def __init__(self, number: int, skew_s: float) -> None:
        self.number = number
        self.node_id = f"n{number}"
        self.up = True
        self.copies: dict[str, CopyDisk] = {}
        self.processes: list[Process] = []
        self.skew_s = skew_s


class Swarm(NamedTuple):
    """What this seed has of everything. Rates are faults per second of the fault phase."""

    nodes: int
    clients: int
    ops: int
    delay_s: float
    slow: float
    loss: float
    double: float
    sync_s: float
    rates: dict[str, float]
    think_s: float
    disk_level: float
    impatient: float

    @classmethod
    def draw(cls, rng: random.Random) -> Swarm:
        kinds = ("kill", "power", "stop", "cut", "oneway", "reset", "eio", "move", "backup")
        rates = {kind: rng.choice((0.0, 0.0, 0.3, 1.0)) for kind in kinds}
        return cls(
            nodes=rng.choice((2, 3, 3, 4)),
            clients=rng.randint(1, 3),
            ops=rng.randint(4, 16),
            delay_s=rng.choice((0.001, 0.005, 0.03)),
            slow=rng.choice((0.0, 0.02, 0.1, 0.3)),
            loss=rng.choice((0.0, 0.0, 0.02, 0.1)),
            double=rng.choice((0.0, 0.05)),
            sync_s=rng.choice((0.001, 0.01, 0.1)),
            rates=rates,
            think_s=rng.choice((0.05, 0.5, 1.0)),
            disk_level=rng.choice((0.0, 0.0, 0.5, 1.0)),
            impatient=rng.choice((0.0, 0.5)),
        )


class Rules:
    """The protocol under test. A planted bug is a subclass that breaks one thing."""

    Backup = Backup
    Primary = Primary
    Takeover = Takeover
    take_over = staticmethod(take_over)
    remembers_ids = True
    """Whether ids of the log are known again after a replay."""
    replays_early = False
    """Whether the log is read when the claim is won, before the seal."""
    forgets_waiting = False
    """Whether a copy counts as served from before its first owner has waited for the lease."""
    drops_by_itself = False
    """Whether an owner goes on alone without asking the store."""


class World:
    """Time, network, nodes and the store of one run."""

    FAULTS_S = 10.0

    def __init__(self, seed: int, rules: Rules) -> None:
        self.rules = rules
        self.rng = random.Random(seed)
        self.swarm = Swarm.draw(self.rng)
        self.now_s = 0.0
        self.steps = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self.copy_numbers = count()
        rng = self.rng
        self.nodes = [Node(i, rng.uniform(0, 1000)) for i in range(self.swarm.nodes)]
        self.blocked: dict[tuple[int, int], float] = {}
        self.version = 0
        self.table = Table((claim_of(SHARD, KeyRange(0, HASH_SPACE), 1, Copy("-")),), 50)
        self.healed = False

    # Time.

    def at(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._queue, (self.now_s + delay_s, next(self._numbers), act, args))

    def run(self, until_s: float, done: Callable[[], bool]) -> None:
        """Until that time, or until `done`."""
        while self._queue and not done():
            if self._queue[0][0] > until_s:
                self.now_s = until_s
                return
            self.now_s, _, act, args = heapq.heappop(self._queue)
            self.steps += 1
            act(*args)

    def clock(self, node: Node) -> float:
        """A node's monotonic clock: no two have the same zero."""
        return self.now_s + node.skew_s

    # Network. Number -1 is where store and coordinator are, -2 is where the clients are.

    def send(self, source: int, target: int, act: Callable[..., None], *args: Any) -> None:
        """Call `act` at the target after a delay; or never, or twice."""
        rng, swarm = self.rng, self.swarm
        if source == target:
            self.at(0.0001, act, *args)
            return
        if self.blocked.get((source, target), 0.0) > self.now_s:
            return
        if swarm.loss and not self.healed and rng.random() < swarm.loss:
            return
        self.at(self.delay_s(), act, *args)
        if swarm.double and not self.healed and rng.random() < swarm.double:
            self.at(self.delay_s(), act, *args)

    def delay_s(self) -> float:
        if not self.healed and self.rng.random() < self.swarm.slow:
            return self.rng.random() * 2.0
        return self.rng.expovariate(1 / self.swarm.delay_s)

    def fails(self, kind: str) -> bool:
        """Whether this operation fails."""
        rate = self.swarm.rates[kind]
        return not self.healed and rate > 0 and self.rng.random() < 0.01 * rate

    def answered(self, owner: Process, epoch: int) -> None:
        """An answer leaves the owner of that epoch."""
        raise NotImplementedError

    def block(self, source: int, target: int, for_s: float) -> None:
        self.blocked[source, target] = self.now_s + for_s

    # The epoch store: one linearizable document.

    def swap(self, version: int, table: Table) -> bool:
        if version != self.version:
            return False
        self.table, self.version = table, version + 1
        return True

    @property
    def claim(self) -> Claim:
        return self.table.claims[0]

    def new_copy(self, node: Node) -> CopyDisk:
        copy = CopyDisk(f"c{next(self.copy_numbers)}", node)
        copy.made_for = self.claim.epoch
        node.copies[copy.copy_id] = copy
        return copy

    def find_copy(self, copy_id: str) -> CopyDisk | None:
        for node in self.nodes:
            if copy_id in node.copies:
                return node.copies[copy_id]
        return None


class Store:
    """The epoch store as a process reaches it: over the network, with answers that may be lost."""

    TIMEOUT_S = 1.0

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    async def read(self) -> tuple[int, Table | None]:
        world = self._world
        answer: tuple[int, Table] = await self._call(lambda: (world.version, world.table))
        return answer

    async def swap(self, version: int, table: Table) -> bool:
        done: bool = await self._call(lambda: self._world.swap(version, table))
        return done

    async def pause(self) -> None:
        await self.sleep(0.2)

    async def sleep(self, for_s: float) -> None:
        promise = Promise()
        self._process.after(for_s, promise.settle)
        await promise

    async def _call(self, act: Callable[[], Any]) -> Any:
        promise = Promise()
        world, number = self._world, self._process.node.number

        def serve() -> None:
            world.send(-1, number, promise.settle, act())

        world.send(number, -1, serve)
        world.at(self.TIMEOUT_S, promise.settle, None, Unavailable("no answer"))
        return await promise
