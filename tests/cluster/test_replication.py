"""The replication machines one step at a time; what they do together is tests/sim's."""

from __future__ import annotations

import pytest

from cluster.errors import IllegalTransition
from cluster.replication import (
    LEASE_S,
    LINKS,
    SILENCE_S,
    STANDINGS,
    Backup,
    Link,
    Primary,
    Standing,
)
from cluster.replication_messages import (
    Append,
    Appended,
    Beat,
    CatchUp,
    Fetch,
    Fetched,
    Gap,
    Rejected,
    Seal,
    Sealed,
    Swap,
    TakeIn,
)
from cluster.takeover import STEPS, Step, Takeover


def live_primary(now_s: float = 10.0) -> Primary:
    """An owner of epoch 5 with a backup, in step at sequence 7."""
    primary = Primary(5, True, 8, 77)
    primary.linked(now_s)
    assert primary.receive(Sealed(5, 8, 77, 0.0, now_s), now_s) == [CatchUp(8, 77)]
    assert primary.caught_up() == []
    primary.receive(Appended(5, 7, now_s), now_s)
    return primary


def test_every_state_can_be_reached_and_what_is_not_in_the_table_raises() -> None:
    reached = {Standing.ALONE, Standing.PAIRED} | set(STANDINGS.values())
    assert reached == set(Standing)
    assert set(LINKS.values()) == set(Link)
    assert {Step.CLAIM} | set(STEPS.values()) == set(Step)
    primary = Primary(5, False, 1, 0)
    for act in (
        lambda: primary.swapped(0.0),
        lambda: primary.caught_up(),
        lambda: primary.written(3, 1, 0, 9, 0.0),
        lambda: Primary(5, True, 1, 0).follow(),
        lambda: Takeover(True).replayed(),
    ):
        with pytest.raises(IllegalTransition):
            act()
    assert (primary.standing, primary.link, primary.epoch) == (Standing.ALONE, Link.DOWN, 5)


def test_a_pair_acknowledges_what_both_have() -> None:
    primary = live_primary()
    assert primary.written(8, 2, 77, 88, 10.1) == Append(5, 8, 2, 77, 88, 10.1)
    assert primary.acked_seq == 7
    primary.durable(9)
    assert primary.acked_seq == 7
    primary.receive(Appended(5, 9, 10.1), 10.2)
    assert primary.acked_seq == 9


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    primary = live_primary()
    primary.receive(Appended(5, 7, 11.0), 12.9)
    assert primary.may_answer(11.0 + LEASE_S - 0.01)
    assert not primary.may_answer(11.0 + LEASE_S)


def test_an_owner_may_not_write_before_its_backup_was_asked_what_it_has() -> None:
    primary = Primary(5, True, 8, 77)
    with pytest.raises(IllegalTransition, match="before the backup was asked"):
        primary.written(8, 1, 77, 88, 0.0)
    primary.linked(1.0)
    assert primary.receive(Sealed(5, 10, 99, 0.0, 1.0), 1.0) == [Fetch(5, 8, 77)]
    assert primary.receive(Fetched(5, 8, 1), 1.1) == [TakeIn()]
    assert primary.took_in(10, 99, 1.2) == [Seal(5, 1.2)]
    assert primary.receive(Sealed(5, 10, 99, 0.0, 1.2), 1.3) == [CatchUp(10, 99)]
    primary.caught_up()
    assert primary.met
    assert primary.acked_seq == 9


def test_a_stale_rejection_deposes_nobody_and_one_of_this_epoch_does() -> None:
    primary = live_primary()
    assert primary.receive(Rejected(4, 5), 10.2) == []
    assert primary.may_answer(10.2)
    primary.receive(Rejected(5, 6), 10.3)
    assert primary.standing is Standing.DEPOSED
    assert not primary.may_answer(10.3)
    assert primary.tick(10.4) == []


def test_a_silent_backup_is_dropped_by_a_swap_and_then_the_own_disk_is_enough() -> None:
    primary = live_primary()
    for tenths in range(1, int(10 * SILENCE_S) + 1):
        assert primary.tick(10.0 + tenths / 10) != [Swap(recruit=False)]
    assert primary.tick(10.1 + SILENCE_S) == [Swap(recruit=False)]
    primary.written(8, 1, 77, 88, 12.2)
    primary.durable(8)
    assert (primary.acked_seq, primary.replicates) == (7, True)
    primary.swapped(12.5)
    assert (primary.epoch, primary.acked_seq, primary.replicates) == (6, 8, False)
    assert primary.may_answer(1e9)


def test_an_owner_that_stood_still_itself_listens_before_it_drops_anybody() -> None:
    primary = live_primary()
    primary.tick(10.0)
    assert primary.tick(60.0) != [Swap(recruit=False)]
    primary.receive(Appended(5, 7, 59.9), 60.1)
    assert Swap(recruit=False) not in primary.tick(61.0)


def test_a_candidate_is_named_once_it_has_all_and_answers_wait_for_it_before() -> None:
    primary = Primary(5, False, 8, 77)
    primary.follow()
    primary.linked(1.0)
    assert primary.receive(Sealed(5, 1, 0, 0.0, 1.0), 1.0) == [CatchUp(1, 0)]
    assert primary.written(8, 1, 77, 88, 1.1) is None
    assert primary.caught_up() == []
    primary.durable(8)
    assert (primary.standing, primary.acked_seq) == (Standing.JOINING, 0)
    assert not primary.may_answer(1.1)
    assert primary.receive(Appended(5, 6, 1.2), 1.2) == []
    assert primary.receive(Appended(5, 8, 1.3), 1.3) == [Swap(recruit=True)]
    assert (primary.acked_seq, primary.replicates) == (8, False)
    assert primary.swapped(1.4) == [Seal(6, 1.4)]
    assert primary.replicates


def test_a_new_candidate_inherits_no_lease() -> None:
    primary = Primary(5, False, 8, 77)
    primary.follow()
    primary.linked(1.0)
    primary.receive(Sealed(5, 8, 77, 0.0, 1.0), 1.0)
    primary.receive(Appended(5, 7, 1.0), 1.0)
    primary.unlinked()
    primary.follow()
    primary.linked(1.5)
    primary.receive(Sealed(5, 8, 77, 0.0, 1.5), 1.5)
    primary.caught_up()
    assert not primary.may_answer(1.6)


def test_a_backup_lets_in_only_the_newest_epoch_and_only_the_next_batch() -> None:
    backup = Backup(0, 1, 0, 0.0)
    assert backup.append(Append(5, 1, 2, 0, 11, 0.0)) == Gap(5, 1)
    assert backup.seal(Seal(5)) is None
    assert backup.append(Append(5, 1, 2, 0, 11, 0.0)) is True
    assert backup.append(Append(5, 1, 2, 0, 11, 0.0)) is False
    assert backup.append(Append(5, 4, 1, 11, 12, 0.0)) == Gap(5, 3)
    assert backup.append(Append(5, 3, 1, 99, 12, 0.0)) == Gap(5, 3)
    assert backup.append(Append(4, 3, 1, 11, 12, 0.0)) == Rejected(4, 5)
    assert backup.seal(Seal(4)) == Rejected(4, 5)
    assert backup.beat(Beat(5, 4, 0.0), 1.0) == Gap(5, 3)
    assert backup.appended(5, 0.5, 1.0) == Appended(5, 0, 0.5)
    assert backup.sealed_at(Seal(5), 1.0) == Sealed(5, 1, 0, LEASE_S)
    backup.durable(2, 11)
    assert backup.sealed_at(Seal(5), 2.0) == Sealed(5, 3, 11, LEASE_S - 1.0)


def test_a_backup_that_was_started_again_does_not_know_what_it_granted() -> None:
    backup = Backup(5, 3, 11, 100.0)
    backup.seal(Seal(6))
    assert backup.sealed_at(Seal(6), 101.0) == Sealed(6, 3, 11, LEASE_S - 1.0)


def test_a_takeover_waits_out_the_lease_unless_the_copy_has_served() -> None:
    takeover = Takeover(served=False)
    takeover.claimed(True)
    takeover.sealed(2.0, 50.0)
    takeover.replayed()
    assert takeover.wait_s(51.5) == 0.5
    assert takeover.wait_s(52.0) == 0.0
    assert takeover.step is Step.SERVE
    own = Takeover(served=True)
    own.claimed(True)
    own.sealed(2.0, 50.0)
    own.replayed()
    assert own.wait_s(50.0) == 0.0
    lost = Takeover(served=True)
    lost.claimed(False)
    assert lost.step is Step.REFUSED
