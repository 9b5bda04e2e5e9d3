"""How an owner and its backup keep one log, and who may answer: state machines without I/O.

Pure: no clock, no sockets, no files. A driver feeds in what happened and does what comes back; the
same machines run under `actors/replicator.py`, `actors/backup.py` and the simulation of tests/sim.

    Primary    the owner's side: what is acknowledged, when an answer may leave, joining, dropping
    Backup     a copy's gate: lets in only the newest epoch, only the next batch; grants leases
               (`takeover` is how the holder of a copy becomes the owner)

An answer leaves only if what it saw is durable wherever a successor may come from (`acked_seq`)
and no successor can be answering yet (`may_answer`): alone, the lock on the copy's folder sees to
that; with a backup, a lease that it grants, checked after the answer was computed.
Times are seconds of the caller's own monotonic clock; none is ever compared with another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from cluster.errors import IllegalTransition
from cluster.replication_messages import (
    Action,
    Append,
    Appended,
    Beat,
    CatchUp,
    Fetch,
    Fetched,
    Gap,
    Rejected,
    Reply,
    Seal,
    Sealed,
    Swap,
    TakeIn,
)

LEASE_S = 3.0
HEARTBEAT_S = 1.0
# Below the lease: an owner that loses its backup shall go on before it must fall silent.
SILENCE_S = 2.0


class Backup:
    """The gate of one copy.

    sealed    the highest epoch that was durably sealed
    next_seq  where the durable log ends, later also what is not durable yet; crc: of its last batch
    now_s     a predecessor may have granted a lease just before it ended
    """

    def __init__(self, sealed: int, next_seq: int, crc: int, now_s: float) -> None:
        self.sealed = sealed
        self.next_seq = next_seq
        self.crc = crc
        self.durable_seq = next_seq - 1
        self._durable_crc = crc
        self.lease_until_s = now_s + LEASE_S

    def seal(self, request: Seal) -> Rejected | None:
        """From now on nothing below this epoch gets in. None: answer `sealed_at` once the epoch
        and all that was let in are durable."""
        if request.epoch < self.sealed:
            return Rejected(request.epoch, self.sealed)
        self.sealed = request.epoch
        return None

    def sealed_at(self, request: Seal, now_s: float) -> Sealed | Rejected:
        """The answer to a seal, when it is durable."""
        if request.epoch < self.sealed:
            return Rejected(request.epoch, self.sealed)
        lease_s = max(0.0, self.lease_until_s - now_s)
        # Not what was let in since: the owner takes for durable what it is told here.
        end = (self.durable_seq + 1, self._durable_crc)
        return Sealed(request.epoch, *end, lease_s, request.sent_s)

    def append(self, request: Append) -> Rejected | Gap | bool:
        """True: write it, then tell `durable`. False: it is here already, answer `beat`'s way."""
        refused = self.refusal(request.epoch)
        if refused is not None:
            return refused
        # One epoch is one owner's life, so what it sends twice is the same.
        if request.first_seq + request.count <= self.next_seq:
            return False
        if request.first_seq != self.next_seq or request.previous != self.crc:
            return Gap(request.epoch, self.next_seq)
        self.next_seq += request.count
        self.crc = request.crc
        return True

    def durable(self, seq: int, crc: int) -> None:
        """All up to `seq` is on the disk; crc: of the batch that ends there."""
        if seq > self.durable_seq:
            self.durable_seq, self._durable_crc = seq, crc

    def appended(self, epoch: int, sent_s: float, now_s: float) -> Appended | Rejected:
        """The answer to an append that is durable, or to a beat: it grants a lease."""
        if epoch < self.sealed:
            return Rejected(epoch, self.sealed)
        self.lease_until_s = max(self.lease_until_s, now_s + LEASE_S)
        return Appended(epoch, self.durable_seq, sent_s)

    def beat(self, request: Beat, now_s: float) -> Appended | Rejected | Gap:
        refused = self.refusal(request.epoch)
        if refused is not None:
            return refused
        if request.next_seq > self.next_seq:
            return Gap(request.epoch, self.next_seq)
        return self.appended(request.epoch, request.sent_s, now_s)

    def refusal(self, epoch: int) -> Rejected | Gap | None:
        """Why a request of `epoch` can't be served; None if it can."""
        if epoch < self.sealed:
            return Rejected(epoch, self.sealed)
        if epoch > self.sealed:
            # It must seal first, or an epoch between could still get in.
            return Gap(epoch, self.next_seq)
        return None


class Standing(StrEnum):
    """What the table says of this owner, as far as it knows."""

    ALONE = "alone"
    JOINING = "joining"  # a candidate follows; answers wait for it already
    RECRUITING = "recruiting"  # the swap that names it is under way: it may have happened
    PAIRED = "paired"
    DROPPING = "dropping"  # the swap that drops it is under way
    DEPOSED = "deposed"


class Link(StrEnum):
    """The way to the backup, or to a candidate."""

    DOWN = "down"
    SEALING = "sealing"
    FETCHING = "fetching"
    CATCHING_UP = "catching up"
    LIVE = "live"


S, L = Standing, Link
STANDINGS: Mapping[tuple[Standing, str], Standing] = {
    (S.ALONE, "follow"): S.JOINING,
    (S.JOINING, "leave"): S.ALONE,
    (S.JOINING, "swap"): S.RECRUITING,
    (S.RECRUITING, "won"): S.PAIRED,
    (S.PAIRED, "swap"): S.DROPPING,
    (S.DROPPING, "won"): S.ALONE,
} | {(standing, "deposed"): S.DEPOSED for standing in S}
"""(standing, event) -> standing. A swap is won, or else the owner is deposed."""
LINKS: Mapping[tuple[Link, str], Link] = {
    (L.DOWN, "linked"): L.SEALING,
    (L.SEALING, "sealed"): L.CATCHING_UP,
    (L.SEALING, "ahead"): L.FETCHING,
    (L.FETCHING, "fetched"): L.SEALING,
    (L.CATCHING_UP, "caught up"): L.LIVE,
} | {
    (link, event): after
    for link in L
    for event, after in (("gap", L.SEALING), ("unlinked", L.DOWN))
    if link is not L.DOWN or event == "unlinked"
}
"""(link, event) -> link. "gap": a batch was refused, or the epoch is a new one."""


class Primary:
    """An owner that serves. Methods that return actions: the driver does them, in order.

    epoch             of the claim
    paired            whether the claim names a backup
    next_seq, crc     where the log ends, all of it durable
    """

    def __init__(self, epoch: int, paired: bool, next_seq: int, crc: int) -> None:
        self.epoch = epoch
        self.standing = S.PAIRED if paired else S.ALONE
        self.link = L.DOWN
        self.met = not paired
        """Whether it may write. A backup may hold what was acknowledged and is lost here."""
        self.next_seq = next_seq
        self.crc = crc
        self.local_seq = next_seq - 1
        self.backup_seq = 0
        self.lease_until_s = float("-inf")
        self.heard_s = float("-inf")
        self._goal_seq = 0
        self._asked_s = float("-inf")
        self._ticked_s = float("-inf")

    # What may be told to whom.

    @property
    def acked_seq(self) -> int:
        """All up to here may be acknowledged, and what was read may be told."""
        if self.standing is S.ALONE:
            return self.local_seq
        return min(self.local_seq, self.backup_seq)

    def may_answer(self, now_s: float) -> bool:
        """Whether nobody else can own the range at this moment."""
        if self.standing is S.DEPOSED:
            return False
        return self.standing is S.ALONE or now_s < self.lease_until_s

    @property
    def replicates(self) -> bool:
        """Whether `acked_seq` means two copies, on two nodes, that may both take over."""
        return self.standing in (S.PAIRED, S.DROPPING)

    # The log.

    def written(
        self, first_seq: int, count: int, previous: int, crc: int, now_s: float
    ) -> Append | None:
        """A batch is on its way to the own disk; returns what to send with its bytes, if any."""
        if not self.met:
            raise IllegalTransition(f"batch {first_seq} was written before the backup was asked")
        if first_seq != self.next_seq or previous != self.crc:
            raise IllegalTransition(f"batch {first_seq} does not follow {self.next_seq - 1}")
        self.next_seq, self.crc = first_seq + count, crc
        if self.link is not L.LIVE:
            return None
        return self.append(first_seq, count, previous, crc, now_s)

    def append(self, first_seq: int, count: int, previous: int, crc: int, now_s: float) -> Append:
        """What to send with a batch, also one of earlier."""
        return Append(self.epoch, first_seq, count, previous, crc, now_s)

    def durable(self, seq: int) -> None:
        """The own disk has all up to `seq`."""
        self.local_seq = max(self.local_seq, seq)

    # The link.

    def follow(self) -> None:
        """Another backup, or candidate, is on the link from now on: what the one before said
        counts no more."""
        if self.standing is not S.ALONE:
            raise IllegalTransition(f"a candidate can't join an owner that is {self.standing}")
        self._move_link("unlinked")
        self.backup_seq = 0
        self.lease_until_s = float("-inf")

    def linked(self, now_s: float) -> list[Action]:
        """There is a connection."""
        self._move_link("linked")
        self.heard_s = now_s
        return self._seal(now_s)

    def unlinked(self) -> None:
        """The connection is gone. A backup that the claim names stays one."""
        self._move_link("unlinked")
        if self.standing is S.JOINING:
            self._move("leave")

    def caught_up(self) -> list[Action]:
        """All batches up to this turn were sent; the next ones are sent as they are written."""
        self._move_link("caught up")
        self.met = True
        if self.standing is S.ALONE:
            # Answers wait for the candidate from now on: as soon as the claim names it, it may
            # take over, and must know by then whatever anybody was told.
            self._move("follow")
            self._goal_seq = self.local_seq
        return self._join()

    def seeding(self, now_s: float) -> None:
        """A new copy has taken a piece of a snapshot: it lives, whatever its beats wait for."""
        self.heard_s = now_s

    def seeded(self, now_s: float) -> list[Action]:
        """A new copy has taken a snapshot to begin with: where does it end now?"""
        if self.link is not L.CATCHING_UP:
            return []
        self._move_link("gap")
        return self._seal(now_s)

    def took_in(self, next_seq: int, crc: int, now_s: float) -> list[Action]:
        """The log ends there now, all of it durable."""
        self._move_link("fetched")
        self.next_seq, self.crc = next_seq, crc
        self.local_seq = next_seq - 1
        return self._seal(now_s)

    def diverged(self) -> list[Action]:
        """The backup's log is not a part of ours: it can't be caught up."""
        self.unlinked()
        return self._drop()

    def receive(self, reply: Reply, now_s: float) -> list[Action]:
        """A reply of the backup. One to another epoch than ours is old: it deposes nobody."""
        if reply.epoch != self.epoch or self.standing is S.DEPOSED:
            return []
        if isinstance(reply, Rejected):
            self._move("deposed")
            return []
        if self.link is L.DOWN:
            return []
        self.heard_s = now_s
        match reply:
            case Appended():
                self.backup_seq = max(self.backup_seq, reply.seq)
                self.lease_until_s = max(self.lease_until_s, reply.sent_s + LEASE_S)
                return self._join()
            case Sealed():
                return self._on_sealed(reply, now_s)
            case Gap():
                if self.link in (L.SEALING, L.FETCHING):
                    return []
                self._move_link("gap")
                return self._seal(now_s)
            case Fetched():
                if self.link is not L.FETCHING or reply.next_seq != self.next_seq:
                    return []
                return [TakeIn()] if reply.batches else self.diverged()

    def _on_sealed(self, reply: Sealed, now_s: float) -> list[Action]:
        if self.link is not L.SEALING:
            return []
        if reply.next_seq > self.next_seq:
            if self.met:
                return self.diverged()
            # Written there and lost here, in a crash: it may have been acknowledged.
            self._move_link("ahead")
            return [Fetch(self.epoch, self.next_seq, self.crc)]
        self._move_link("sealed")
        self.backup_seq = reply.next_seq - 1
        return [CatchUp(reply.next_seq, reply.crc)]

    # Time, and the table.

    def tick(self, now_s: float) -> list[Action]:
        """To be called several times per HEARTBEAT_S."""
        if self.standing is S.DEPOSED:
            return []
        if now_s - self._ticked_s > HEARTBEAT_S:
            # It was us who stood still: what the backup said meanwhile is not read yet.
            self.heard_s = max(self.heard_s, now_s - HEARTBEAT_S)
        self._ticked_s = now_s
        if self.link is not L.DOWN and now_s - self.heard_s > SILENCE_S:
            self.unlinked()
        if self.link is L.DOWN:
            return self._drop() if now_s - self.heard_s > SILENCE_S else []
        if now_s - self._asked_s < HEARTBEAT_S:
            return []
        if self.link is L.SEALING:
            return self._seal(now_s)
        self._asked_s = now_s
        if self.link is L.FETCHING:
            return [Fetch(self.epoch, self.next_seq, self.crc)]
        # While it catches up, it lacks what it was not sent yet.
        sent_seq = self.next_seq if self.link is L.LIVE else 0
        return [Beat(self.epoch, sent_seq, now_s)]

    def swapped(self, now_s: float) -> list[Action]:
        """The swap is done. (If it can't be, the claim is another's: tell `deposed`.)"""
        self._move("won")
        self.epoch += 1
        if self.standing is S.ALONE:
            self._move_link("unlinked")
            self.backup_seq = 0
            self.met = True
            return []
        return self._seal_anew(now_s)

    def reclaimed(self, now_s: float) -> list[Action]:
        """The owner claimed its range again, and has the next epoch for it."""
        self.epoch += 1
        return self._seal_anew(now_s)

    def deposed(self) -> None:
        """The table names another: never acknowledge, leave."""
        self._move("deposed")

    def _join(self) -> list[Action]:
        if self.standing is S.JOINING and self.backup_seq >= self._goal_seq:
            self._move("swap")
            return [Swap(recruit=True)]
        return []

    def _drop(self) -> list[Action]:
        if self.standing is not S.PAIRED:
            return []
        self._move("swap")
        return [Swap(recruit=False)]

    def _seal_anew(self, now_s: float) -> list[Action]:
        if self.link is L.DOWN:
            return []
        self._move_link("gap")
        return self._seal(now_s)

    def _seal(self, now_s: float) -> list[Action]:
        self._asked_s = now_s
        return [Seal(self.epoch, now_s)]

    def _move(self, event: str) -> None:
        after = STANDINGS.get((self.standing, event))
        if after is None:
            raise IllegalTransition(f"{event} while {self.standing}")
        self.standing = after

    def _move_link(self, event: str) -> None:
        after = LINKS.get((self.link, event))
        if after is None:
            raise IllegalTransition(f"{event} while the link is {self.link}")
        self.link = after
