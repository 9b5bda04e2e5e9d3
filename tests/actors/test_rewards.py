"""Delayed rewards against a plain model, and that a shard which dies goes on where it was."""

from typing import Any

import msgspec
import numpy as np
import pytest

from actors import records, rewards
from actors.ledger import Opened, unpack
from actors.people import Caller, person_key
from actors.reward_ops import OutcomesPage
from actors.shard import Shard
from actors.snapshot import read_snapshot, write_snapshot
from actors.treatment import belief
from actors.treatment.features import NO_FEATURES, Arm, arms_of
from actors.wal import End
from cluster.config import Config
from cluster.errors import RequestError
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from tests.actors.list_journal import ListJournal

CALLER = Caller("s", "t")
ARMS = arms_of([Arm(name) for name in "abc"])
SMALL = {"profiles_max": 2048, "profile_bytes_max": 1 << 22, "items_max": 1024}
T0 = 1_800_000_000


def new_shard(**policy):
    config = msgspec.structs.replace(Config(durability="memory"), **SMALL)
    shard: Any = Shard("0", KeyRange(0, HASH_SPACE), config)
    shard.clock = T0
    shard.now = lambda: float(shard.clock)
    shard.journal = ListJournal()
    spec = {"surface": "ui", "rewardWindowS": 60} | policy
    document = shard.tenant("t").documents.checked("policies", "p", msgspec.json.encode(spec), T0)
    shard.put_documents("t", [document])
    return shard


def person(shard, name="u"):
    body = msgspec.json.encode({"userId": name, "traits": {"a": 1}})
    assert shard.handle(Op.IDENTIFY, CALLER, body, 0)[0] == 200
    return person_key(CALLER, name, None)


def decided(shard, key, number=16, slots=1, active=True):
    """A treatment decision that waits for its rewards; returns its id."""
    policy = shard.tenant("t").policy("p")
    rng = np.random.default_rng(number)
    choice = shard.tenant("t").treatment.choose(policy, NO_FEATURES, ARMS, rng, slots)
    ids = [ARMS.ids[a] for a in choice.order]
    names = [f"s{i}" for i in range(slots)]
    opened = Opened(number, policy, ids, names, choice.trace, active)
    waiting = shard.rewards.waiting("t", key, [opened], shard.clock)
    shard.rewards.open_all(waiting)
    for decision in waiting:
        shard.log(records.Opened(decision))
    return f"{key[:8].hex()}{number:016x}"


def reward(shard, decision_id, caller=CALLER, **fields):
    body = decision_id.encode() + msgspec.json.encode(fields)
    status, answer = shard.handle(Op.REWARD, caller, body, 0)
    return status, msgspec.json.decode(answer)


def trials(shard):
    """Outcomes that the model has learned, and their sum."""
    at = belief.trials_of(shard.tenant("t").policy("p").salt)
    return tuple(shard.tenant("t").treatment._sums[at : at + 2].tolist())


def outcomes(shard, after=0):
    body = msgspec.json.encode({"after": after})
    status, answer = shard.handle(Op.OUTCOMES, CALLER, body, 0)
    assert status == 200, answer
    return msgspec.json.decode(answer, type=OutcomesPage)


def test_a_reward_counts_once_and_is_learned_when_the_window_closes():
    shard = new_shard()
    decision = decided(shard, person(shard))
    assert reward(shard, decision, value=1.0)[1]["duplicate"] is False
    again = reward(shard, decision, value=0.5)
    assert again == (
        200,
        {"duplicate": True, "decisionId": decision, "slotId": "s0", "value": 1.0},
    )
    assert trials(shard) == (0.0, 0.0)
    shard.clock += 59
    assert shard.rewards.close_due(shard.clock) == 0
    shard.clock += 1
    assert shard.rewards.close_due(shard.clock) == 1
    assert trials(shard) == (1.0, 1.0)


def test_without_a_reward_the_default_is_learned():
    shard = new_shard(defaultReward=-1, rewardMin=-1, rewardMax=1)
    decided(shard, person(shard))
    shard.clock += 60
    shard.pulse()
    assert trials(shard) == (1.0, 0.0)
    (outcome,) = outcomes(shard).outcomes
    assert (outcome.rewards, outcome.rewarded) == ([-1.0], [False])


def test_a_late_reward_is_refused_also_before_the_timer_came():
    shard = new_shard()
    decision = decided(shard, person(shard))
    shard.clock += 60
    for _ in range(2):
        status, problem = reward(shard, decision, value=1.0)
        assert status == 409
        assert "window" in problem["title"]
        shard.pulse()
    assert trials(shard) == (1.0, 0.0)


def test_rewards_of_slots_add_up_each_message_once():
    shard = new_shard(rewardAggregation="sum", rewardMax=10)
    decision = decided(shard, person(shard), slots=3)
    for value, slot, message in ((2, "s1", "m1"), (3, "s1", "m2"), (3, "s1", "m2"), (1, "s2", "x")):
        reward(shard, decision, value=value, slotId=slot, messageId=message)
    shard.clock += 60
    shard.pulse()
    (outcome,) = outcomes(shard).outcomes
    assert outcome.rewards == [0.0, 5.0, 1.0]
    assert outcome.rewarded == [False, True, True]
    assert trials(shard) == pytest.approx((3.0, 0.6))


def test_a_decision_that_was_not_activated_teaches_nothing_and_activation_starts_the_window():
    shard = new_shard()
    key = person(shard)
    first, second = (decided(shard, key, number, active=False) for number in (16, 17))
    shard.clock += 1000
    body = second.encode()
    for duplicate in (False, True):
        status, answer = shard.handle(Op.ACTIVATE, CALLER, body, 0)
        assert (status, msgspec.json.decode(answer)["duplicate"]) == (200, duplicate)
    assert reward(shard, first, value=1.0)[0] == 200
    shard.clock += 60
    shard.pulse()
    assert trials(shard) == (1.0, 0.0)
    shard.clock += rewards.UNACTIVATED_S
    shard.pulse()
    assert len(shard.rewards.decisions) == 0
    assert trials(shard) == (1.0, 0.0)


def test_who_reports_every_outcome_is_learned_from_at_once():
    shard = new_shard(learnOn="reward")
    decision = decided(shard, person(shard), slots=2)
    reward(shard, decision, value=0.0, slotId="s1")
    assert trials(shard) == (1.0, 0.0)
    shard.clock += 60
    shard.pulse()
    assert trials(shard) == (2.0, 0.0)


@pytest.mark.parametrize("mode", ["frozen", "off"])
def test_a_policy_that_does_not_learn_does_not(mode):
    shard = new_shard(mode=mode)
    key = person(shard)
    reward(shard, decided(shard, key), value=1.0)
    shard.clock += 60
    shard.pulse()
    assert trials(shard) == (0.0, 0.0)
    assert shard.store.ledger(shard.store.find(key)) == b""


def test_the_persons_own_memory_knows_a_reward_at_once():
    shard = new_shard()
    key = person(shard)
    reward(shard, decided(shard, key), value=1.0)
    assert "p" in unpack(shard.store.ledger(shard.store.find(key))).memories


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"value": 1.0, "slotId": "nope"}, 422, "slotId"),
        ({"value": "1"}, 422, "value"),
        ({"value": 1e300}, 422, "value"),
    ],
)
def test_bad_rewards_name_the_field_and_change_nothing(fields, status, field):
    shard = new_shard()
    decision = decided(shard, person(shard))
    before = len(shard.journal.records)
    seen, problem = reward(shard, decision, **fields)
    assert (seen, problem["field"]) == (status, field)
    assert len(shard.journal.records) == before


def test_foreign_missing_and_forgotten_decisions_look_the_same():
    shard = new_shard()
    key = person(shard)
    decision = decided(shard, key)
    closed = decided(shard, key, 18)
    assert reward(shard, decision, Caller("s", "other"), value=1.0)[0] == 404
    assert reward(shard, decision[:16] + "0" * 16, value=1.0)[0] == 404
    assert reward(shard, "zz" * 16, value=1.0)[0] == 404
    shard.clock += 60
    shard.pulse()
    open_one = decided(shard, key, 19)
    shard.handle(Op.PROFILE_DELETE, CALLER, b'{"userId":"u"}', 0)
    person(shard)  # Comes back: what was before must not.
    for one in (closed, open_one):
        assert reward(shard, one, value=1.0)[0] == 404
    assert outcomes(shard).outcomes == []
    shard.rewards.decisions.check()


def test_a_full_table_closes_the_first_early_and_drops_the_oldest_closed(tmp_path):
    shard = new_shard()
    key = person(shard)
    shard.rewards.decisions._bytes_max = 3000
    for number in range(16, 46):
        decided(shard, key, number)
        shard.rewards.decisions.check()
    assert shard.rewards.closed_early > 20
    assert trials(shard)[0] == shard.rewards.closed_early
    # What closed and was dropped is told from what never was, also by a shard made from a snapshot.
    first = f"{key[:8].hex()}{16:016x}"
    status, problem = reward(shard, first, value=1.0)
    assert (status, problem["field"]) == (410, "decisionId")
    assert str(shard.rewards.decisions.dropped_s) in problem["wanted"]
    assert reward(shard, f"{key[:8].hex()}{46:016x}", value=1.0)[0] == 404
    assert reward(shard, f"{key[:8].hex()}{16 + (1 << 40):016x}", value=1.0)[0] == 404
    end = End(1, 1, None, 0, 0)
    again = Shard("0", KeyRange(0, HASH_SPACE), shard.config, now=shard.now)
    read_snapshot(write_snapshot(shard, tmp_path, end), again)
    assert reward(again, first, value=1.0)[0] == 410
    page = outcomes(shard)
    assert page.done
    assert page.next == shard.rewards.decisions.closed_total
    assert 0 < len(page.outcomes) < 10


@pytest.mark.parametrize("aggregation", ["earliest", "sum"])
def test_replay_makes_the_same_shard(aggregation):
    """Decisions, rewards and closings at random; then all records again, into another shard."""
    rng = np.random.default_rng(5)
    shard = new_shard(rewardAggregation=aggregation)
    ids = []
    for number in range(16, 216):
        key = person(shard, f"u{rng.integers(20)}")
        slots = int(rng.integers(1, 4))
        ids.append(decided(shard, key, number, slots, active=bool(rng.random() < 0.8)))
        for _ in range(2):
            chosen = ids[-1 - int(rng.integers(min(len(ids), 20)))]
            reward(shard, chosen, value=float(rng.integers(2)))
        shard.handle(Op.ACTIVATE, CALLER, ids[-1].encode(), 0)
        shard.clock += int(rng.integers(6))
        shard.pulse()
    other = Shard("0", KeyRange(0, HASH_SPACE), shard.config, now=shard.now)
    for record in shard.journal.records:
        other.replay(records.decode(record))
    assert other.rewards.decisions.entries() == shard.rewards.decisions.entries()
    assert other.store.rows.tobytes() == shard.store.rows.tobytes()
    assert other.store.words.tobytes() == shard.store.words.tobytes()
    assert np.array_equal(other.tenant("t").treatment._sums, shard.tenant("t").treatment._sums)
    other.rewards.decisions.check()


def test_a_reward_needs_a_decision():
    with pytest.raises(RequestError) as refused:
        new_shard().rewards.reward("t", 5, None, 1.0, T0)
    assert refused.value.status == 404


def test_a_decide_call_opens_what_its_policy_chose():
    shard = new_shard()
    person(shard)
    spec = {"surface": "content", "policy": "p", "actions": ["a", "b", "c"], "numResults": 2}
    body = msgspec.json.encode({"userId": "u", "decisions": [spec]})
    status, answer = shard.handle(Op.DECIDE, CALLER, body, 0)
    assert status == 200, answer
    (decision,) = msgspec.json.decode(answer)["decisions"]
    status, answer = shard.handle(Op.DECISION_GET, CALLER, decision["decisionId"].encode(), 0)
    because = msgspec.json.decode(answer)["because"]
    assert [one["id"] for one in because] == [entry["id"] for entry in decision["ranking"]]
    assert "a" in because[0]["features"], "a trait of the person"
    status, said = reward(shard, decision["decisionId"], value=1.0, slotId="1")
    assert (status, said["slotId"]) == (200, "1")
    shard.clock += 60
    shard.pulse()
    (outcome,) = outcomes(shard).outcomes
    assert outcome.decision_id == decision["decisionId"]
    assert outcome.actions == [entry["id"] for entry in decision["ranking"]]
    assert outcome.rewarded == [False, True]
    assert trials(shard) == (2.0, 1.0)
