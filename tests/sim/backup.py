"""A backup's process: the real `Backup`, with the disk and the network of the simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.replication_messages import Append, Beat, Fetch, Fetched, Reply, Request, Seal
from tests.sim.world import Batch, CopyDisk, Process, World

if TYPE_CHECKING:
    from tests.sim.owner import Owner


class BackupProcess(Process):
    """Follows an owner. One fsync at a time; what came meanwhile shares the next one."""

    def __init__(self, world: World, copy: CopyDisk) -> None:
        super().__init__(world, copy.node)
        self.copy = copy
        if not copy.lock(self):
            self.exit()
            return
        self.gate = world.rules.Backup(copy.sealed, *copy.end, world.clock(self.node))
        self.waiting: list[Callable[[], None]] = []
        self.syncing = False

    @property
    def now_s(self) -> float:
        return self.world.clock(self.node)

    def connect(self, owner: Owner) -> None:
        self.world.send(self.node.number, owner.node.number, owner.run, owner.linked, self)

    def receive(self, owner: Owner, request: Request, batch: Batch | None) -> None:
        gate = self.gate
        match request:
            case Seal():
                refused = gate.seal(request)
                if refused is not None:
                    self.reply(owner, refused)
                else:
                    self.sync(lambda: self.reply(owner, gate.sealed_at(request, self.now_s)))
            case Append():
                assert batch is not None
                outcome = gate.append(request)
                if outcome is True:
                    self.copy.log.append(batch)
                if isinstance(outcome, bool):
                    epoch, sent_s = request.epoch, request.sent_s
                    self.sync(lambda: self.reply(owner, gate.appended(epoch, sent_s, self.now_s)))
                else:
                    self.reply(owner, outcome)
            case Beat():
                self.reply(owner, gate.beat(request, self.now_s))
            case Fetch():
                refusal = gate.refusal(request.epoch)
                if refusal is not None:
                    self.reply(owner, refusal)
                    return
                found = batches_from(self.copy, request.next_seq, request.crc) or []
                fetched = Fetched(request.epoch, request.next_seq, len(found))
                self.reply(owner, fetched, tuple(found))

    def reply(self, owner: Owner, reply: Reply, batches: tuple[Batch, ...] = ()) -> None:
        self.world.send(
            self.node.number, owner.node.number, owner.run, owner.receive, self, reply, batches
        )

    def sync(self, then: Callable[[], None]) -> None:
        """Do `then` once all that was written by now, and the sealed epoch, are durable."""
        self.waiting.append(then)
        if not self.syncing:
            self._sync()

    def _sync(self) -> None:
        self.syncing = True
        due, self.waiting = self.waiting, []
        self.after(
            self.world.rng.expovariate(1 / self.world.swarm.sync_s),
            self._synced,
            len(self.copy.log),
            self.gate.sealed,
            due,
        )

    def _synced(self, length: int, sealed: int, due: list[Callable[[], None]]) -> None:
        self.syncing = False
        if self.world.fails("eio"):
            self.exit()
            return
        self.copy.synced = length
        self.copy.sealed = max(self.copy.sealed, sealed)
        if length:
            last = self.copy.log[length - 1]
            self.gate.durable(last.next_seq - 1, last.crc)
        for then in due:
            then()
        if self.waiting:
            self._sync()


def batches_from(copy: CopyDisk, next_seq: int, crc: int) -> list[Batch] | None:
    """The batches from `next_seq` on, if the one before has that crc; else None."""
    if (next_seq, crc) == (1, 0) or any(b.next_seq == next_seq and b.crc == crc for b in copy.log):
        return [batch for batch in copy.log if batch.first_seq >= next_seq]
    return None


def backup_of(world: World, copy_id: str) -> BackupProcess | None:
    """The process that follows with this copy, if one does."""
    copy = world.find_copy(copy_id)
    holder = copy.holder if copy is not None else None
    return holder if isinstance(holder, BackupProcess) and holder.alive else None
