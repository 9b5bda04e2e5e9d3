"""Gate, table and steps of a handoff; tests/sim plays it whole, under faults."""

import pytest

from cluster.errors import IllegalTransition
from cluster.handoff import (
    FREEZE_S_MAX,
    STEPS,
    Admission,
    Gate,
    Step,
    after,
    claim_again,
    landed,
    reshaped,
)
from cluster.keys import HASH_SPACE, KeyRange, split_evenly
from cluster.ownership import Copy, NotEntitled, Table, claim_of, take_over

MIDDLE = HASH_SPACE // 2


def table(*epochs: int) -> Table:
    ranges = split_evenly(len(epochs))
    return Table(
        tuple(
            claim_of(f"{i}", ranges[i], epoch, Copy(f"c{i}"), Copy(f"b{i}"))
            for i, epoch in enumerate(epochs)
        ),
        50,
    )


def test_an_open_gate_serves_and_a_frozen_one_holds():
    gate = Gate(4)
    seen = [gate.admission]
    gate.freeze("h", 4, 10.0)
    assert [*seen, gate.admission] == [Admission.SERVE, Admission.HOLD]


def test_only_at_its_own_epoch_and_for_one_handoff_it_freezes():
    gate = Gate(4)
    with pytest.raises(NotEntitled, match="epoch 3"):
        gate.freeze("h", 3, 0.0)
    assert gate.admission is Admission.SERVE
    gate.freeze("h", 4, 0.0)
    gate.freeze("h", 4, 0.5)  # asked again
    with pytest.raises(NotEntitled, match="frozen"):
        gate.freeze("other", 4, 0.5)
    assert not gate.must_claim(FREEZE_S_MAX - 0.01), "asking again must not prolong it"
    assert gate.must_claim(FREEZE_S_MAX)


def test_from_frozen_to_open_leads_only_a_claim():
    gate = Gate(4)
    gate.freeze("h", 4, 0.0)
    with pytest.raises(IllegalTransition):
        gate.claimed(5)
    gate.claim()
    assert gate.admission is Admission.HOLD, "not before it is known what came of it"
    gate.claimed(5)
    assert (gate.admission, gate.epoch) == (Admission.SERVE, 5)
    with pytest.raises(NotEntitled):
        gate.freeze("h", 4, 0.0)


@pytest.mark.parametrize("claims", [False, True])
def test_who_is_deposed_sends_everybody_away_for_good(claims: bool):
    gate = Gate(4)
    gate.freeze("h", 4, 0.0)
    if claims:
        gate.claim()
    gate.deposed()
    assert gate.admission is Admission.MOVED
    with pytest.raises(IllegalTransition):
        gate.claim()
    assert not gate.must_claim(99.0)


def test_two_become_three_at_one_new_epoch_and_the_others_stay():
    before = table(3, 7, 2)
    ranges = before.claims[0].range, before.claims[1].range
    cuts = [ranges[0].start, 5, ranges[0].stop, ranges[1].stop]
    targets = [
        claim_of(f"n{i}", KeyRange(cuts[i], cuts[i + 1]), 0, Copy(f"x{i}")) for i in range(3)
    ]
    swapped = reshaped(before, {"0": 3, "1": 7}, targets)
    assert [(c.shard_id, c.epoch) for c in swapped.claims] == [
        ("n0", 8),
        ("n1", 8),
        ("n2", 8),
        ("2", 2),
    ]
    assert landed(swapped, targets)
    assert not landed(before, targets)


def test_a_takeover_or_a_claim_since_the_freeze_makes_the_swap_impossible():
    before = table(3, 7)
    target = [claim_of("n", before.claims[0].range, 0, Copy("x"))]
    for changed in (
        take_over(before.claims[0], Copy("b0")),
        claim_again(before.claims[0], 3, "c0"),
    ):
        with pytest.raises(NotEntitled, match="froze at epoch 3"):
            reshaped(before.with_claim(changed), {"0": 3}, target)
    with pytest.raises(NotEntitled, match="not in the table"):
        reshaped(reshaped(before, {"0": 3}, target), {"0": 3}, target)


def test_after_the_swap_the_source_can_not_claim_again():
    before = table(3, 7)
    claim = before.claims[0]
    with pytest.raises(NotEntitled):
        claim_again(take_over(claim, Copy("b0")), 3, "c0")
    assert claim_again(claim, 3, "c0").epoch == 4


@pytest.mark.parametrize(
    "edges", [(0, MIDDLE - 1), (1, MIDDLE), (0, MIDDLE + 1)], ids=["short", "late", "long"]
)
def test_targets_that_cover_other_keys_are_refused(edges: tuple[int, int]):
    before = table(3, 7)
    with pytest.raises(ValueError, match="without gap or overlap"):
        reshaped(before, {"0": 3}, [claim_of("n", KeyRange(*edges), 0, Copy("x"))])


def test_a_name_that_is_taken_is_refused():
    before = table(3, 7)
    with pytest.raises(ValueError, match="one claim"):
        reshaped(before, {"0": 3}, [claim_of("1", before.claims[0].range, 0, Copy("x"))])


def test_every_step_but_the_swap_can_fail_and_only_the_last_ones_end():
    for step in Step:
        events = {event for (at, event) in STEPS if at is step}
        if step in (Step.DONE, Step.ABORTED):
            assert not events
        elif step in (Step.SWAP, Step.FORWARD, Step.ABORT):
            assert "failed" not in events
        else:
            assert after(step, "failed") is Step.ABORT
    with pytest.raises(IllegalTransition, match="swap"):
        after(Step.SWAP, "failed")
