"""An owner's process: the real `Takeover`, `Primary` and `change` on simulated disk and network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from cluster.ownership import Claim, Copy, NotEntitled, change, drop_backup, recruit
from cluster.replication import LEASE_S, Link, Primary, Standing
from cluster.replication_messages import Action, CatchUp, Reply, Seal, Sealed, Swap, TakeIn
from cluster.takeover import Step
from tests.sim.backup import BackupProcess, backup_of, batches_from
from tests.sim.world import SHARD, Batch, CopyDisk, Process, Store, Violation, World

TICK_S = 0.25
MOVED = "moved"
UNAVAILABLE = "unavailable"

Answer = Callable[[Any], None]


class Waiting(NamedTuple):
    """An answer that waits. level: "replica", "disk", or "read" (all that may be told)."""

    seq: int
    level: str
    content: Any
    answer: Answer


class Owner(Process):
    """Takes a copy over, then serves: appends ids to a list, and lets it be read."""

    def __init__(self, world: World, copy: CopyDisk, own: bool) -> None:
        super().__init__(world, copy.node)
        self.copy = copy
        self.own = own
        self.takeover = world.rules.Takeover(copy.served)
        self.primary: Primary | None = None
        self.store = Store(world, self)
        self.ids: list[Any] = []
        self.known: set[Any] = set()
        self.pending: list[Any] = []
        self.syncing = False
        self.last_seq = 0
        self.waiting: deque[Waiting] = deque()
        self.peer: BackupProcess | None = None
        self.backup_id: str | None = None
        """The copy on the link: the backup's, or a candidate's."""
        self.linking = 0
        if own:
            if isinstance(copy.holder, BackupProcess):
                copy.holder.exit()
            if not copy.lock(self):
                self.exit()
                return
        self.spawn(self.take())

    @property
    def now_s(self) -> float:
        return self.world.clock(self.node)

    @property
    def serving(self) -> bool:
        return self.primary is not None and self.takeover.step is Step.SERVE

    # Becoming the owner.

    async def take(self) -> None:
        copy = Copy(self.copy.copy_id, self.node.node_id)
        make = partial(self.world.rules.take_over, copy=copy)
        try:
            claim = await change(self.store, SHARD, make, self.store.pause)
        except NotEntitled:
            self.takeover.claimed(False)
            self.exit()
            return
        self.takeover.claimed(True)
        if self.world.rules.replays_early:
            self.replay()
        await self.store.sleep(self.world.rng.random() * 0.2)
        lease_s = LEASE_S if self.own else self.seal(claim.epoch)
        self.copy.served |= self.world.rules.forgets_waiting
        await self.store.sleep(self.world.rng.random() * 0.2)
        if not self.world.rules.replays_early:
            self.replay()
        await self.store.sleep(self.world.rng.random() * 0.2)
        if isinstance(self.copy.holder, BackupProcess):
            self.copy.holder.exit()
        if not self.copy.lock(self):
            self.exit()
            return
        self.copy.sealed = claim.epoch
        self.takeover.sealed(lease_s, self.now_s)
        next_seq, crc = self.copy.end
        if self.world.rules.remembers_ids:
            self.known = set(self.ids)
        self.last_seq = next_seq - 1
        self.takeover.replayed()
        self.primary = self.world.rules.Primary(
            claim.epoch, claim.backup is not None, next_seq, crc
        )
        self.backup_id = claim.backup.copy_id if claim.backup else None
        self.wait()

    def replay(self) -> None:
        self.ids = [one for batch in self.copy.log for one in batch.ids]

    def seal(self, epoch: int) -> float:
        """Seal through the backup's process on this copy, or end it; returns how long a lease of
        its may last."""
        holder = self.copy.holder
        if not isinstance(holder, BackupProcess) or not holder.alive:
            return LEASE_S
        if holder.stopped_until_s <= self.world.now_s and self.world.rng.random() < 0.8:
            request = Seal(epoch)
            if holder.gate.seal(request) is not None:
                return LEASE_S
            sealed = holder.gate.sealed_at(request, self.now_s)
            assert isinstance(sealed, Sealed)
            return sealed.lease_s
        holder.exit()
        return LEASE_S

    def wait(self) -> None:
        wait_s = self.takeover.wait_s(self.now_s)
        if self.takeover.step is Step.SERVE:
            self.copy.served = True
            self.tick()
        else:
            self.after(wait_s + 1e-6, self.wait)

    # Driving the primary.

    def tick(self) -> None:
        assert self.primary is not None
        self.act(self.primary.tick(self.now_s))
        self.link()
        self.flush()
        self.after(TICK_S, self.tick)

    def link(self) -> None:
        """Try to reach the backup or candidate, if it is not."""
        assert self.primary is not None
        if self.primary.link is Link.DOWN and self.backup_id is not None:
            process = backup_of(self.world, self.backup_id)
            if process is not None:
                source, target = self.node.number, process.node.number
                self.world.send(source, target, process.run, process.connect, self)

    def linked(self, peer: BackupProcess) -> None:
        primary = self.primary
        if primary is None or primary.link is not Link.DOWN or peer.copy.copy_id != self.backup_id:
            return
        self.peer = peer
        self.linking += 1
        self.act(primary.linked(self.now_s))

    def reset(self) -> None:
        """The connection breaks."""
        if self.primary is not None:
            self.primary.unlinked()
            self.flush()

    def follow(self, candidate: str, epoch: int) -> None:
        """The coordinator names a candidate, which was made for the owner of that epoch."""
        primary = self.primary
        if primary is None or not self.serving or primary.standing is not Standing.ALONE:
            return
        if epoch != primary.epoch:
            return
        if candidate != self.backup_id:
            primary.follow()
            self.backup_id = candidate
        self.link()

    def receive(self, peer: BackupProcess, reply: Reply, batches: tuple[Batch, ...]) -> None:
        if self.primary is None or peer is not self.peer:
            return
        for action in self.primary.receive(reply, self.now_s):
            if isinstance(action, TakeIn):
                self.take_in(batches)
            else:
                self.act([action])
        self.flush()

    def take_in(self, batches: tuple[Batch, ...]) -> None:
        primary = self.primary
        assert primary is not None
        for batch in batches:
            self.copy.log.append(batch)
            self.ids += batch.ids
            self.known |= set(batch.ids)
        # The real driver starts nothing else before the sync.
        self.copy.synced = len(self.copy.log)
        next_seq, crc = self.copy.end
        self.last_seq = next_seq - 1
        self.act(primary.took_in(next_seq, crc, self.now_s))

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, CatchUp):
                self.after(self.world.rng.random() * 0.05, self.catch_up, action, self.linking)
            elif isinstance(action, Swap):
                self.spawn(self.swap(action.recruit))
            elif not isinstance(action, TakeIn):
                self.ask(action, None)

    def ask(self, request: Any, batch: Batch | None) -> None:
        if self.peer is not None:
            source, target = self.node.number, self.peer.node.number
            self.world.send(source, target, self.peer.run, self.peer.receive, self, request, batch)

    def catch_up(self, action: CatchUp, linking: int) -> None:
        primary = self.primary
        assert primary is not None
        if linking != self.linking or primary.link is not Link.CATCHING_UP:
            return
        batches = batches_from(self.copy, action.next_seq, action.crc)
        if batches is None:
            self.act(primary.diverged())
            return
        for batch in batches:
            self.ask(
                primary.append(
                    batch.first_seq, len(batch.ids), batch.previous, batch.crc, self.now_s
                ),
                batch,
            )
        self.act(primary.caught_up())

    async def swap(self, recruits: bool) -> None:
        primary = self.primary
        assert primary is not None
        epoch, copy_id = primary.epoch, self.copy.copy_id
        if self.world.rules.drops_by_itself and not recruits:
            self.act(primary.swapped(self.now_s))
            return

        def make(claim: Claim) -> Claim:
            if not recruits:
                return drop_backup(claim, epoch, copy_id)
            assert self.peer is not None
            return recruit(claim, epoch, copy_id, Copy(self.backup_id or "", ""))

        try:
            await change(self.store, SHARD, make, self.store.pause)
        except NotEntitled:
            primary.deposed()
        else:
            self.act(primary.swapped(self.now_s))
            if not recruits:
                self.backup_id = None
        self.flush()

    # Serving.

    def write(self, one: Any, level: str, answer: Answer) -> None:
        primary = self.primary
        if primary is None or not self.serving:
            answer(MOVED)
            return
        if one not in self.known:
            offered = level == "disk" or primary.replicates
            if not (primary.met and offered and primary.may_answer(self.now_s)):
                answer(UNAVAILABLE)
                return
            self.ids.append(one)
            self.known.add(one)
            self.pending.append(one)
            self.last_seq += 1
            self.write_batch()
        self.waiting.append(Waiting(self.last_seq, level, one, answer))
        self.flush()

    def read(self, answer: Answer) -> None:
        if not self.serving:
            answer(MOVED)
            return
        self.waiting.append(Waiting(self.last_seq, "read", tuple(self.ids), answer))
        self.flush()

    def write_batch(self) -> None:
        if self.syncing or not self.pending:
            return
        primary = self.primary
        assert primary is not None
        self.syncing = True
        next_seq, crc = self.copy.end
        ids, self.pending = tuple(self.pending), []
        new_crc = hash((crc, primary.epoch, next_seq, ids))
        batch = Batch(primary.epoch, next_seq, ids, crc, new_crc)
        self.copy.log.append(batch)
        request = primary.written(next_seq, len(ids), crc, new_crc, self.now_s)
        if request is not None:
            self.ask(request, batch)
        self.after(self.world.rng.expovariate(1 / self.world.swarm.sync_s), self.synced)

    def synced(self) -> None:
        assert self.primary is not None
        if self.world.fails("eio"):
            self.exit()
            return
        self.syncing = False
        self.copy.synced = len(self.copy.log)
        self.primary.durable(self.copy.end[0] - 1)
        self.write_batch()
        self.flush()

    def flush(self) -> None:
        """Answer what may be answered now."""
        primary = self.primary
        assert primary is not None
        if primary.standing is Standing.DEPOSED:
            claim = self.world.claim
            if (claim.epoch, claim.owner.copy_id) == (primary.epoch, self.copy.copy_id):
                raise Violation(f"the owner of epoch {claim.epoch} was deposed by nobody")
            self.exit()
            return
        if not primary.may_answer(self.now_s):
            return
        kept: deque[Waiting] = deque()
        for one in self.waiting:
            if one.level == "replica" and not primary.replicates:
                one.answer(UNAVAILABLE)
            elif one.seq <= (primary.local_seq if one.level == "disk" else primary.acked_seq):
                self.world.answered(self, primary.epoch)
                one.answer(one.content)
            else:
                kept.append(one)
        self.waiting = kept
