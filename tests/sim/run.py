"""One run: faults for a while, then everything heals, and then all must end well."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from cluster.ownership import Copy
from cluster.replication import Link, Standing
from tests.sim.backup import BackupProcess, backup_of
from tests.sim.history import Client, History
from tests.sim.owner import Owner
from tests.sim.world import CopyDisk, Process, Rules, Violation, World

LIVENESS_S = 60.0
CARE_S = 0.5


class Run(World):
    """A world with clients, a coordinator that may be wrong, and faults."""

    def __init__(self, seed: int, rules: Rules | None = None) -> None:
        super().__init__(seed, rules or Rules())
        self.history = History()
        self.heard_s = 0.0
        self.last_owner: Process | None = None
        self.foreign = False
        """Whether a backup's copy was taken over: what the disk alone promised may be lost then."""
        self.answered_epoch = 0
        first = self.new_copy(self.nodes[0])
        first.served = True
        claim = self.claim
        self.table = self.table.with_claim(replace(claim, owner=Copy(first.copy_id, "n0")))
        self.start_owner(first)
        self.clients = [
            Client(self, self.history, self.route, number) for number in range(self.swarm.clients)
        ]
        self.at(CARE_S, self.care)
        for kind in self.swarm.rates:
            self.schedule(kind)
        self.at(self.FAULTS_S, self.heal)

    def play(self) -> None:
        """Raises Violation."""
        self.run(self.FAULTS_S + LIVENESS_S, self.finished)
        if not all(client.done for client in self.clients):
            where = [f"{c.number}:{c.next}/{self.swarm.ops}" for c in self.clients]
            raise Violation(
                f"not all was acknowledged {LIVENESS_S} s after the last fault: {where}"
            )
        owner = self.owner_now()
        assert owner is not None
        on_disk = not self.foreign
        self.history.check("memory", owner.ids, on_disk)
        for copy in (self.claim.owner, self.claim.backup):
            disk = self.find_copy(copy.copy_id) if copy is not None else None
            if disk is None:
                raise Violation(f"copy {copy} of the claim is gone")
            ids = [one for batch in disk.log[: disk.synced] for one in batch.ids]
            self.history.check(f"copy {disk.copy_id}", ids, on_disk)

    def finished(self) -> bool:
        if not self.healed or not all(client.done for client in self.clients):
            return False
        owner = self.owner_now()
        return (
            owner is not None
            and owner.primary is not None
            and owner.primary.standing is Standing.PAIRED
            and owner.primary.link is Link.LIVE
            and owner.primary.acked_seq == owner.last_seq
        )

    # What others ask.

    def route(self) -> Owner | None:
        """Where a client sends: to an owner, also to one that is none any more."""
        owners = [p for n in self.nodes for p in n.processes if isinstance(p, Owner)]
        now = self.owner_now()
        if now is not None and self.rng.random() < 0.6:
            return now
        return self.rng.choice(owners) if owners else None

    def owner_now(self) -> Owner | None:
        """The owner that the table names, if it is in place."""
        for node in self.nodes:
            for process in node.processes:
                if (
                    isinstance(process, Owner)
                    and process.primary is not None
                    and process.primary.epoch == self.claim.epoch
                    and process.copy.copy_id == self.claim.owner.copy_id
                ):
                    return process
        return None

    def backup_of(self, copy_id: str) -> BackupProcess | None:
        return backup_of(self, copy_id)

    def answered(self, owner: Process, epoch: int) -> None:
        """An answer leaves. No answer may leave an owner after one of its successor's did."""
        if epoch < self.answered_epoch and owner is not self.last_owner:
            raise Violation(f"epoch {epoch} answered after epoch {self.answered_epoch} did")
        self.answered_epoch, self.last_owner = max(epoch, self.answered_epoch), owner

    # The coordinator: it knows late, and is sometimes wrong.

    def start_owner(self, copy: CopyDisk) -> None:
        own = copy.copy_id == self.claim.owner.copy_id
        self.foreign = self.foreign or not own
        self.heard_s = self.now_s
        Owner(self, copy, own)

    def care(self) -> None:
        self.at(CARE_S, self.care)
        owner = self.owner_now()
        if owner is not None and owner.alive:
            self.send(-1, owner.node.number, owner.run, self.ping, owner)
        hasty = not self.healed and self.rng.random() < self.swarm.impatient
        patience_s = self.rng.random() * 3.0 if hasty else 3.0
        if self.now_s - self.heard_s > patience_s:
            self.replace_owner()
        self.keep_backup(owner)
        self.clean()

    def ping(self, owner: Owner) -> None:
        self.send(owner.node.number, -1, self.pong)

    def pong(self) -> None:
        self.heard_s = self.now_s

    def replace_owner(self) -> None:
        claim = self.claim
        own = self.find_copy(claim.owner.copy_id)
        backup = self.find_copy(claim.backup.copy_id) if claim.backup else None
        if own is not None and own.node.up and (backup is None or self.rng.random() < 0.6):
            if isinstance(own.holder, Owner) and self.rng.random() < 0.8:
                own.holder.exit()
            self.start_owner(own)
        elif backup is not None and backup.node.up:
            self.start_owner(backup)

    def keep_backup(self, owner: Owner | None) -> None:
        """See to it that the backup runs, or that there will be one."""
        claim = self.claim
        if claim.backup is not None:
            copy = self.find_copy(claim.backup.copy_id)
            if copy is not None and copy.node.up and self.backup_of(copy.copy_id) is None:
                BackupProcess(self, copy)
            return
        if owner is None or not owner.serving:
            return
        candidate = owner.backup_id
        made = self.find_copy(candidate) if candidate is not None else None
        usable = made is not None and made.made_for == claim.epoch and made.holder is not None
        if candidate is None or not usable or self.rng.random() < 0.1:
            others = [n for n in self.nodes if n.up and n is not owner.node]
            if not others:
                return
            copy = self.new_copy(self.rng.choice(others))
            BackupProcess(self, copy)
            candidate = copy.copy_id
        elif made is not None and made.node.up and self.backup_of(candidate) is None:
            BackupProcess(self, made)
        self.send(-1, owner.node.number, owner.run, owner.follow, candidate, claim.epoch)

    def clean(self) -> None:
        """Remove copies that neither the claim names, nor a swap under way may name: one that was
        made for an epoch can be recruited by the owner of that epoch only."""
        for node in self.nodes:
            for copy in list(node.copies.values()):
                held = copy.holder is not None and copy.holder.alive
                useless = self.claim.epoch > copy.made_for and not self.claim.names(copy.copy_id)
                if node.up and useless and not held and self.rng.random() < 0.2:
                    del node.copies[copy.copy_id]

    # Faults.

    def schedule(self, kind: str) -> None:
        rate = self.swarm.rates[kind]
        if rate:
            self.at(self.rng.expovariate(rate), self.fault, kind)

    def fault(self, kind: str) -> None:
        if self.healed:
            return
        getattr(self, f"fault_{kind}", lambda: None)()
        self.schedule(kind)

    def a_process(self) -> Process | None:
        found = [process for node in self.nodes for process in node.processes]
        return self.rng.choice(found) if found else None

    def fault_kill(self) -> None:
        process = self.a_process()
        if process is not None:
            process.exit()

    def fault_backup(self) -> None:
        """A backup's process dies; or another shard's claim changes."""
        if self.claim.backup is not None and self.rng.random() < 0.7:
            process = self.backup_of(self.claim.backup.copy_id)
            if process is not None:
                process.exit()
        self.version += 1

    def fault_power(self) -> None:
        node = self.rng.choice(self.nodes)
        for process in list(node.processes):
            process.exit()
        for copy in node.copies.values():
            copy.power_failure(self.rng)
        node.up = False
        self.at(self.rng.random() * 5, partial(setattr, node, "up", True))

    def fault_stop(self) -> None:
        process = self.a_process()
        if process is not None:
            process.stopped_until_s = self.now_s + self.rng.random() * 6

    def fault_cut(self) -> None:
        node = self.rng.choice(self.nodes).number
        for other in range(-2, len(self.nodes)):
            if self.rng.random() < 0.7:
                for_s = self.rng.random() * 5
                self.block(node, other, for_s)
                self.block(other, node, for_s)

    def fault_oneway(self) -> None:
        ends = range(-2, len(self.nodes))
        source, target = self.rng.sample(ends, 2)
        self.block(source, target, self.rng.random() * 5)

    def fault_reset(self) -> None:
        owner = self.owner_now()
        if owner is not None:
            owner.run(owner.reset)

    def fault_move(self) -> None:
        """Somebody believes that the owner is dead: any copy may be asked to take over."""
        backup = self.find_copy(self.claim.backup.copy_id) if self.claim.backup else None
        if backup is not None and backup.node.up and self.rng.random() < 0.7:
            self.start_owner(backup)
            return
        copies = [copy for node in self.nodes if node.up for copy in node.copies.values()]
        if copies:
            self.start_owner(self.rng.choice(copies))

    def heal(self) -> None:
        self.healed = True
        self.blocked.clear()
        for node in self.nodes:
            node.up = True
            for process in node.processes:
                process.stopped_until_s = min(process.stopped_until_s, self.now_s)


def play(seed: int, rules: Rules | None = None) -> Run:
    """The run of a seed, to its end. Raises Violation."""
    run = Run(seed, rules)
    run.play()
    return run
