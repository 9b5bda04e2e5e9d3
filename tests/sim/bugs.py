"""Planted bugs, each one change to the protocol: the simulation must find every one of them."""

from __future__ import annotations

from msgspec.structs import replace

from cluster import replication, takeover
from cluster.ownership import Claim, Copy
from cluster.replication import Standing
from cluster.replication_messages import Action, Appended, Beat, Gap, Rejected, Reply, Seal, Sealed
from tests.sim.world import Rules


class NoFence(Rules):
    """A backup lets in whatever epoch comes."""

    class Backup(replication.Backup):
        def seal(self, request: Seal) -> Rejected | None:
            self.sealed = request.epoch
            return None

        def refusal(self, epoch: int) -> Rejected | Gap | None:
            return None

        def appended(self, epoch: int, sent_s: float, now_s: float) -> Appended | Rejected:
            return super().appended(max(epoch, self.sealed), sent_s, now_s)


class ReplayBeforeSeal(Rules):
    """What the owner before appends between the replay and the seal is not known."""

    replays_early = True


class AckBeforeLog(Rules):
    """An answer leaves when the batch was handed to the disk, not when it is on it."""

    class Primary(replication.Primary):
        @property
        def acked_seq(self) -> int:
            return self.next_seq - 1


class DedupeInMemory(Rules):
    """After a restart, no id is known any more."""

    remembers_ids = False


class AckBeforeBackup(Rules):
    """The own disk is enough."""

    class Primary(replication.Primary):
        @property
        def acked_seq(self) -> int:
            return self.local_seq


class LeaseNotWaitedOut(Rules):
    """A new owner answers while the one before may still."""

    class Takeover(takeover.Takeover):
        def sealed(self, lease_s: float, now_s: float) -> None:
            super().sealed(0.0, now_s)


class WaitForgotten(Rules):
    """Who takes a copy over after a first taker died takes it for the owner's old copy."""

    forgets_waiting = True


class LeaseFromReceipt(Rules):
    """A lease counts from when its grant arrives, not from when it was asked for."""

    class Primary(replication.Primary):
        def receive(self, reply: Reply, now_s: float) -> list[Action]:
            if isinstance(reply, Appended):
                reply = replace(reply, sent_s=now_s)
            return super().receive(reply, now_s)


class LeaseNotChecked(Rules):
    """An owner answers whatever its lease says."""

    class Primary(replication.Primary):
        def may_answer(self, now_s: float) -> bool:
            return self.standing is not Standing.DEPOSED


class StaleRejection(Rules):
    """A rejection of an earlier epoch deposes the owner of this one."""

    class Primary(replication.Primary):
        def receive(self, reply: Reply, now_s: float) -> list[Action]:
            if isinstance(reply, Rejected):
                reply = replace(reply, epoch=self.epoch)
            return super().receive(reply, now_s)


class AnyCopy(Rules):
    """Whoever has some copy may take over."""

    @staticmethod
    def take_over(claim: Claim, copy: Copy) -> Claim:
        return replace(claim, epoch=claim.epoch + 1, owner=copy, backup=None)


class RecruitEarly(Rules):
    """A candidate is named before it has caught up."""

    class Primary(replication.Primary):
        def caught_up(self) -> list[Action]:
            actions = super().caught_up()
            self._goal_seq = 0
            return actions or self._join()


class AnswersWhileRecruiting(Rules):
    """Until the swap is known to have happened, the own disk is enough."""

    class Primary(replication.Primary):
        @property
        def acked_seq(self) -> int:
            alone = self.standing in (Standing.JOINING, Standing.RECRUITING)
            return self.local_seq if alone else super().acked_seq


class BackupAcksFirst(Rules):
    """A backup says durable before it is."""

    class Backup(replication.Backup):
        def sealed_at(self, request: Seal, now_s: float) -> Sealed | Rejected:
            self.durable(self.next_seq - 1, self.crc)
            return super().sealed_at(request, now_s)

        def beat(self, request: Beat, now_s: float) -> Appended | Rejected | Gap:
            self.durable(self.next_seq - 1, self.crc)
            return super().beat(request, now_s)


class DropsByItself(Rules):
    """An owner that does not hear from its backup goes on alone, without asking the store."""

    drops_by_itself = True


BUGS: dict[str, type[Rules]] = {
    "no-fence": NoFence,
    "replay-before-seal": ReplayBeforeSeal,
    "ack-before-log": AckBeforeLog,
    "dedupe-in-memory": DedupeInMemory,
    "ack-before-backup": AckBeforeBackup,
    "lease-not-waited-out": LeaseNotWaitedOut,
    "wait-forgotten": WaitForgotten,
    "lease-from-receipt": LeaseFromReceipt,
    "lease-not-checked": LeaseNotChecked,
    "stale-rejection": StaleRejection,
    "any-copy": AnyCopy,
    "recruit-early": RecruitEarly,
    "answers-while-recruiting": AnswersWhileRecruiting,
    "backup-acks-first": BackupAcksFirst,
    "drops-by-itself": DropsByItself,
}
