"""Handoffs under faults: the real driver, gate and claims, over simulated shards, network, store.

One seed is one world. Clients write ids to keys and retry until they are acknowledged; a
coordinator hands ranges over and is killed at any moment; shards crash and come back from what was
durable; messages get lost, or only their answers; the store applies or not and does not say.
Then everything heals, and `judge` looks: every acknowledged id is there once, at the one owner.
"""

import asyncio
import random
from collections.abc import Mapping
from itertools import pairwise

from msgspec.structs import replace

from actors.handoff import Handoff
from cluster.errors import Unavailable
from cluster.handoff import FREEZE_S_MAX, Admission, Gate, claim_again
from cluster.keys import HASH_SPACE, KeyRange
from cluster.ownership import (
    Claim,
    Copy,
    EpochStore,
    NotEntitled,
    Table,
    change,
    claim_of,
    take_over,
)

BUGS = (
    "resumes without a claim",
    "swaps whatever the epochs",
    "target is ready early",
    "ids stay behind",
    "serves while frozen",
    "acknowledges before the log",
    "starts without a claim",
)
FAULTS_S = 6.0
Entry = tuple[str, int]
"""(id, position)"""


class Store:
    """A table with compare-and-swap; each call may fail, having happened or not."""

    def __init__(self, world: "World", table: Table) -> None:
        self.version, self.table = 1, table
        self._world = world

    async def read(self) -> tuple[int, Table | None]:
        await self._world.travel()
        seen = self.version, self.table
        await self._world.travel()
        return seen

    async def swap(self, version: int, table: Table) -> bool:
        await self._world.travel()
        done = version == self.version
        if done:
            self.version, self.table = version + 1, table
        await self._world.travel()
        return done


class Shard:
    """One shard: a durable log, and what a process holds. Both a source and a target."""

    def __init__(self, world: "World", shard_id: str, key_range: KeyRange) -> None:
        self.world = world
        self.shard_id = shard_id
        self.key_range = key_range
        self.log: list[Entry] = []
        """Durable."""
        self.life = 0
        self.gate: Gate | None = None
        self.known: set[str] = set()
        self.behind: list[Entry] = []
        """Applied and not durable yet."""
        self.copied: dict[str, int] = {}
        self.moved = asyncio.Event()
        self.fsync = asyncio.Lock()

    def crash(self) -> None:
        """The process is gone; the log stays."""
        self.life += 1
        self.gate = None
        self.known, self.behind, self.copied = set(), [], {}
        self.moved.set()
        self.moved = asyncio.Event()
        self.fsync = asyncio.Lock()

    async def start(self) -> None:
        """Own the range again, as every owner that starts does: claim, then replay."""
        life = self.life
        copy = Copy(self.shard_id)
        try:
            if self.world.bug == "starts without a claim":
                epoch = self.world.store.table.claim(self.shard_id).epoch
            else:
                claim = await change(
                    self.world.store, self.shard_id, lambda c: take_over(c, copy), self.world.pause
                )
                epoch = claim.epoch
        except NotEntitled:
            return
        if life == self.life and self.gate is None:
            self._open(epoch)

    def _open(self, epoch: int) -> None:
        self.known = {entry[0] for entry in self.log}
        self.gate = Gate(epoch)
        asyncio.get_running_loop().create_task(self._watch(self.life, self.gate))

    async def _watch(self, life: int, gate: Gate) -> None:
        while life == self.life:
            await asyncio.sleep(0.05)
            if gate.must_claim(asyncio.get_running_loop().time()):
                await self._claim_again(gate)

    async def _claim_again(self, gate: Gate) -> None:
        epoch, copy_id, life = gate.epoch, self.shard_id, self.life
        if self.world.bug == "resumes without a claim":
            gate.claim()
            gate.claimed(epoch)
            self._wake()
            return
        gate.claim()
        try:
            claim = await change(
                self.world.store,
                self.shard_id,
                lambda c: claim_again(c, epoch, copy_id),
                self.world.pause,
            )
        except NotEntitled:
            gate.deposed()
        else:
            if life == self.life:
                gate.claimed(claim.epoch)
        self._wake()

    def _wake(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()

    # Clients.

    async def write(self, entry: Entry) -> str:
        """Returns "ok" or "moved". Raises Unavailable."""
        life = self.life
        while True:
            gate = self.gate
            if gate is None:
                raise Unavailable("down")
            if entry[1] not in self.key_range:
                return "moved"
            admission = gate.admission
            if admission is Admission.SERVE or self.world.bug == "serves while frozen":
                break
            if admission is not Admission.HOLD:
                return admission.value
            await self.moved.wait()
            if life != self.life:
                raise Unavailable("crashed")
        if entry[0] not in self.known:
            self.known.add(entry[0])
            self.behind.append(entry)
            if self.world.bug == "acknowledges before the log":
                asyncio.get_running_loop().create_task(self._sync(life))
                return "ok"
        # A repeat waits as well: what it saw must not be lost after it told of it.
        await self._sync(life)
        return "ok"

    async def _sync(self, life: int) -> None:
        async with self.fsync:
            count = len(self.behind)
            if count:
                await asyncio.sleep(self.world.rng.uniform(0.0005, 0.02))
            if life != self.life:
                raise Unavailable("crashed")
            self.log += self.behind[:count]
            del self.behind[:count]

    # As a source.

    async def freeze(self, handoff: str, epoch: int) -> int:
        life = await self._reach()
        gate = self.gate
        if gate is None:
            raise Unavailable("down")
        gate.freeze(handoff, epoch, asyncio.get_running_loop().time())
        await self._sync(life)
        last = len(self.log)
        await self.world.travel()
        return last

    async def resume(self, handoff: str) -> None:
        await self._reach()
        gate = self.gate
        if gate is not None and gate.gating == "frozen" and gate.handoff == handoff:
            # The shard's own work: it ends whether or not who asked for it is still there.
            await asyncio.shield(asyncio.create_task(self._claim_again(gate)))

    async def release(self, handoff: str) -> None:
        await self._reach()
        if self.gate is not None and self.gate.handoff == handoff:
            self.gate.deposed()
            self._wake()

    # As a target.

    async def copy(self) -> None:
        life = await self._reach()
        self.log, self.copied = [], dict.fromkeys(self.world.sources_of[self.shard_id], 0)
        await self._follow(life, None)

    async def lag(self) -> int:
        life = await self._reach()
        await self._follow(life, None)
        return sum(len(self.world.shards[s].log) - n for s, n in self.copied.items())

    async def finish(self, last_seqs: Mapping[str, int]) -> None:
        life = await self._reach()
        if self.world.bug != "target is ready early":
            await self._follow(life, last_seqs)
        await self.world.travel()

    async def serve(self, epoch: int) -> None:
        await self._reach()
        table = self.world.store.table
        named = [c for c in table.claims if (c.shard_id, c.epoch) == (self.shard_id, epoch)]
        if self.gate is None and named:
            self._open(epoch)
            if self.world.bug == "ids stay behind":
                self.known = set()

    async def discard(self) -> None:
        await self._reach()
        self.log, self.copied = [], {}

    async def _follow(self, life: int, last_seqs: Mapping[str, int] | None) -> None:
        """Take in what the sources' logs have by now, or up to these sequences."""
        if not self.copied:
            raise Unavailable("it has forgotten what it copied")
        for shard, at in list(self.copied.items()):
            source = self.world.shards[shard]
            stop = len(source.log) if last_seqs is None else last_seqs[shard]
            while at < stop:
                part = source.log[at : min(stop, at + 20)]
                if not part:
                    raise Unavailable("the source has less than it said")
                await asyncio.sleep(self.world.rng.uniform(0.0005, 0.01))
                if life != self.life or shard not in self.copied:
                    raise Unavailable("crashed")
                self.log += [entry for entry in part if entry[1] in self.key_range]
                at += len(part)
                self.copied[shard] = at

    async def _reach(self) -> int:
        await self.world.travel()
        return self.life


class World:
    """All of it, from one seed."""

    def __init__(self, seed: int, bug: str = "") -> None:
        assert not bug or bug in BUGS
        self.rng = random.Random(seed)
        self.bug = bug
        self.faulty = True
        self.loss = self.rng.choice((0.0, 0.02, 0.1))
        self.crash_every_s = self.rng.choice((0.0, 0.3, 1.0))
        self.kill_share = self.rng.choice((0.0, 0.3))
        edges = (0, HASH_SPACE // 2, HASH_SPACE)
        ranges = [KeyRange(a, b) for a, b in pairwise(edges)]
        self.shards = {f"{i}": Shard(self, f"{i}", r) for i, r in enumerate(ranges)}
        self.sources_of: dict[str, list[str]] = {}
        claims = tuple(claim_of(s, shard.key_range, 1, Copy(s)) for s, shard in self.shards.items())
        self.store = Store(self, Table(claims, 50))
        self.acked: list[Entry] = []
        self.sent: list[Entry] = []
        self.outcomes: list[str] = []

    async def travel(self) -> None:
        """One way through the network."""
        await asyncio.sleep(self.rng.expovariate(1 / 0.002))
        if self.faulty and self.rng.random() < self.loss:
            await asyncio.sleep(self.rng.choice((0.0, 0.1, 1.5)))
            raise Unavailable("lost")

    async def pause(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.005, 0.05))

    async def run(self) -> None:
        for shard in self.shards.values():
            shard._open(1)
        clients = [asyncio.create_task(self._client(number)) for number in range(4)]
        others = [asyncio.create_task(work) for work in (self._coordinate(), self._crash())]
        await asyncio.sleep(FAULTS_S)
        self.faulty = False
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._start_all()
        async with asyncio.timeout(60):
            await asyncio.gather(*clients)
        # Who was not told of a swap finds out when its freeze is over.
        await asyncio.sleep(2 * FREEZE_S_MAX)

    async def _start_all(self) -> None:
        for claim in self.store.table.claims:
            shard = self.shards[claim.shard_id]
            if shard.gate is not None and shard.gate.gating == "gone":
                # Deposed by a claim for itself, of a life before: such a process leaves.
                shard.crash()
            if shard.gate is None:
                await shard.start()

    async def _client(self, number: int) -> None:
        count = 0
        while self.faulty or count < 10:
            entry = (f"{number}-{count}", self.rng.randrange(HASH_SPACE))
            self.sent.append(entry)
            known = self.store.table
            while True:
                owner = next(c for c in known.claims if entry[1] in c.range).shard_id
                try:
                    await self.travel()
                    async with asyncio.timeout(1.0):
                        said = await self.shards[owner].write(entry)
                    await self.travel()
                except (Unavailable, TimeoutError):
                    said = "unknown"
                if said == "ok":
                    break
                await self.pause()
                if self.rng.random() < 0.7:
                    known = self.store.table
            self.acked.append(entry)
            count += 1
            await asyncio.sleep(self.rng.expovariate(1 / 0.01))

    async def _crash(self) -> None:
        while self.crash_every_s:
            await asyncio.sleep(self.rng.expovariate(1 / self.crash_every_s))
            shard = self.rng.choice(list(self.shards.values()))
            shard.crash()
            asyncio.get_running_loop().create_task(self._restart(shard))

    async def _restart(self, shard: Shard) -> None:
        await asyncio.sleep(self.rng.uniform(0.01, 0.5))
        named = any(claim.shard_id == shard.shard_id for claim in self.store.table.claims)
        if named and shard.gate is None:
            await shard.start()

    async def _coordinate(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(self.rng.uniform(0.05, 0.4))
            await self._start_all()
            number += 1
            handoff = self._plan(number)
            task = asyncio.create_task(handoff.run())
            if self.rng.random() < self.kill_share:
                # The coordinator dies, and its successor knows nothing of the handoff.
                await asyncio.sleep(self.rng.uniform(0.0, 0.3))
                task.cancel()
            try:
                handed = await task
                self.outcomes.append(handed.step.value)
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise

    def _plan(self, number: int) -> Handoff:
        """A random split, merge, move or shift of one to three neighbours."""
        table = self.store.table
        size = self.rng.randint(1, min(3, len(table.claims)))
        at = self.rng.randrange(len(table.claims) - size + 1)
        sources = table.claims[at : at + size]
        start, stop = sources[0].range.start, sources[-1].range.stop
        parts = self.rng.randint(1, 3)
        cuts = sorted(self.rng.sample(range(start + 1, stop), parts - 1)) if parts > 1 else []
        edges = [start, *cuts, stop]
        claims: dict[str, Claim] = {}
        for part in range(parts):
            name = f"h{number}.{part}"
            key_range = KeyRange(edges[part], edges[part + 1])
            self.shards[name] = Shard(self, name, key_range)
            self.sources_of[name] = [c.shard_id for c in sources]
            claims[name] = claim_of(name, key_range, 0, Copy(name))
        store: EpochStore = self.store
        if self.bug == "swaps whatever the epochs":
            store = _Careless(self.store)
        return Handoff(
            f"h{number}",
            {c.shard_id: c.epoch for c in sources},
            {c.shard_id: self.shards[c.shard_id] for c in sources},
            claims,
            {name: self.shards[name] for name in claims},
            store,
            self.pause,
            self.pause,
        )


class _Careless:
    """A store as a driver sees it that does not look at epochs: each is what it was."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._epochs = {c.shard_id: c.epoch for c in store.table.claims}

    async def read(self) -> tuple[int, Table | None]:
        version, table = await self._store.read()
        assert table is not None
        return version, replace(
            table,
            claims=tuple(
                replace(c, epoch=self._epochs.get(c.shard_id, c.epoch)) for c in table.claims
            ),
        )

    async def swap(self, version: int, table: Table) -> bool:
        return await self._store.swap(version, table)


def judge(world: World) -> list[str]:
    """What is wrong at the end; nothing if all is right."""
    wrong = []
    owners: dict[str, list[str]] = {}
    for claim in world.store.table.claims:
        shard = world.shards[claim.shard_id]
        if shard.gate is None or shard.gate.gating != "open":
            wrong.append(f"shard {claim.shard_id} does not serve")
        for entry in (*shard.log, *shard.behind):
            owners.setdefault(entry[0], []).append(claim.shard_id)
    for entry in world.acked:
        found = owners.get(entry[0], [])
        if len(found) != 1:
            wrong.append(f"acknowledged {entry[0]} is there {len(found)} times: {found}")
    for entry in world.sent:
        if len(owners.get(entry[0], [])) > 1:
            wrong.append(f"{entry[0]} counts {len(owners[entry[0]])} times")
    serving = {
        name for name, shard in world.shards.items() if shard.gate and shard.gate.gating == "open"
    }
    named = {claim.shard_id for claim in world.store.table.claims}
    for name in serving - named:
        wrong.append(f"shard {name} serves without a claim")
    return wrong
