import math
from collections import Counter

import numpy as np
import pytest

from cluster.keys import HASH_SPACE, KeyRange, split_evenly
from cluster.placement import Node, backup_node
from cluster.plan import Planner, PlanSettings, ShardLoad
from tests.cluster.plan_world import World, zipf

KEYS = 1_000_000
HOT_MAX = 1.3


def kinds(world: World) -> Counter[str]:
    return Counter(reshape.kind for _, reshape in world.done)


@pytest.mark.parametrize("seed", range(3))
def test_the_hottest_shard_settles_near_the_mean_under_zipf(seed: int):
    world = World(seed, lambda rng: zipf(KEYS, 1.1, rng), lambda now: 3.2)
    world.run(1800)
    settled, done = world.imbalance(), len(world.done)
    assert settled <= HOT_MAX, f"seed {seed}: {world.true_loads()}"
    assert world.true_loads().max() <= 0.7
    world.run(7200)
    assert len(world.done) - done <= 1, f"seed {seed}: {world.done[done:]}"
    assert world.imbalance() <= HOT_MAX


@pytest.mark.parametrize("seed", range(2))
def test_it_settles_again_when_other_keys_become_popular(seed: int):
    world = World(seed, lambda rng: zipf(20_000, 0.9, rng), lambda now: 5.0, shards=8)
    world.run(1800)
    for _ in range(3):
        world.shuffle()
        assert world.imbalance() > HOT_MAX
        world.run(3600)
        assert world.imbalance() <= HOT_MAX, f"seed {seed}: {world.true_loads()}"
    assert len(world.owners) <= 16


def test_shards_follow_a_load_that_grows_fortyfold_and_falls_again():
    def demand(now_s: float) -> float:
        return 0.25 + 9.75 * math.sin(math.pi * min(now_s / 18_000, 1.0))

    world = World(5, lambda rng: zipf(20_000, 0.6, rng), demand, nodes=4, node_cpus=8)
    hottest = []
    for _ in range(9_000 // 300):
        world.run(300)
        hottest.append(world.true_loads().max())
    assert max(hottest) <= 0.85
    peak = len(world.owners)
    assert 10 / 0.7 <= peak <= 10 / 0.35
    assert len({node for _, node in world.owners.values()}) == 4
    world.run(9_000 + 6 * 3600)
    assert len(world.owners) <= 2


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "demand",
    [
        lambda now: 3.2 + 2.0 * math.sin(now / 3600 * 2 * math.pi),
        lambda now: 3.2 + 2.0 * math.sin(now / 600 * 2 * math.pi),
        lambda now: 4.5 if now // 900 % 2 else 1.5,
    ],
    ids=["sine of an hour", "sine of ten minutes", "steps"],
)
def test_waves_do_not_make_it_flap(seed: int, demand):
    world = World(seed, lambda rng: zipf(20_000, 0.6, rng), demand, shards=4)
    world.run(1800)
    before = len(world.done)
    world.run(7200)
    since = world.done[before:]
    assert len(since) <= 3, f"seed {seed}: {since}"
    assert not {"split", "merge"} <= {reshape.kind for _, reshape in since}


def test_an_overload_is_answered_within_15_s():
    world = World(1, lambda rng: zipf(20_000, 0.6, rng), lambda now: 4.0 if now > 600 else 1.0)
    world.run(600)
    assert not world.under_way
    world.run(15)
    assert world.under_way


def test_a_shard_that_is_one_key_is_reported_and_left_alone():
    one = (5,) * 100
    half = KeyRange(0, HASH_SPACE // 2), KeyRange(HASH_SPACE // 2, HASH_SPACE)
    shards = [ShardLoad("a", half[0], "n", 0.9, sample=one), ShardLoad("b", half[1], "n", 0.8)]
    shards[1] = ShardLoad("b", half[1], "n", 0.8, sample=(half[1].start + 9,) * 100)
    planner = Planner()
    for second in range(0, 120, 5):
        plan = planner.step(float(second), [Node("n", 8)], shards)
        assert not plan.reshapes
    assert any("shard a" in line and "one key" in line for line in plan.blocked)


def even(count: int, node: str, cpu: float) -> list[ShardLoad]:
    return [ShardLoad(f"{i}", r, node, cpu) for i, r in enumerate(split_evenly(count))]


def test_a_draining_node_is_left_two_shards_at_a_time_and_first_of_all():
    nodes = [Node("old", 8, draining=True), Node("new", 8), Node("other", 8)]
    shards = even(6, "old", 0.4)
    plan = Planner().step(0.0, nodes, shards)
    assert [r.kind for r in plan.reshapes] == ["move", "move"]
    assert {t.node_id for r in plan.reshapes for t in r.targets} == {"new", "other"}
    assert not Planner().step(0.0, nodes, shards, {"0", "1"}, under_way=2).reshapes


def test_nowhere_to_drain_to_is_said():
    plan = Planner().step(0.0, [Node("old", 8, draining=True)], even(2, "old", 0.4))
    assert not plan.reshapes
    assert any("no node to go to" in line for line in plan.blocked)


def test_shards_leave_a_node_that_is_much_fuller_than_the_others():
    world = World(3, lambda rng: zipf(20_000, 0.4, rng), lambda now: 4.0, shards=10, nodes=1)
    world.nodes.append(Node("n1", 8.0))
    world.run(3600)
    per_node = Counter(node for _, node in world.owners.values())
    assert per_node["n0"] == per_node["n1"] == 5
    assert kinds(world) == {"move": 5}


def test_cold_shards_join_down_to_the_fewest_that_are_wanted():
    settings = PlanSettings(shards_min=3)
    world = World(
        2,
        lambda rng: zipf(20_000, 0.6, rng),
        lambda now: 0.2,
        shards=8,
        planner=Planner(settings),
    )
    world.run(6 * 3600)
    assert len(world.owners) == 3
    assert kinds(world) == {"merge": 5}


def test_a_shard_full_of_people_is_split_at_the_middle_though_no_core_is_busy():
    full = [ShardLoad("a", KeyRange(0, HASH_SPACE), "n", 0.01, bytes=7 << 30, sample=(3,) * 9)]
    planner = Planner()
    plan = [planner.step(5.0 * i, [Node("n", 8)], full) for i in range(5)][-1]
    (reshape,) = plan.reshapes
    assert reshape.kind == "split"
    middle = reshape.targets[0].key_range.stop / HASH_SPACE
    assert 0.45 < middle < 0.55


def test_a_slow_shard_is_relieved_before_its_core_is_full():
    slow = [ShardLoad("a", KeyRange(0, HASH_SPACE), "n", 0.5, p99_us=90_000.0)]
    planner = Planner()
    plans = [planner.step(5.0 * i, [Node("n", 8)], slow) for i in range(4)]
    assert [len(plan.reshapes) for plan in plans] == [0, 0, 1, 1]


def test_new_shards_are_left_alone_until_their_cooldown_is_over():
    planner = Planner()
    nodes = [Node("n", 8)]
    planner.step(0.0, nodes, even(1, "n", 0.9))
    # The two that it became are too hot as well.
    for second in range(5, 65, 5):
        shards = [ShardLoad(f"x{s.shard_id}", s.key_range, "n", 0.9) for s in even(2, "n", 0)]
        assert not planner.step(float(second), nodes, shards).reshapes
    assert planner.step(70.0, nodes, shards).reshapes


def test_cpus_are_wanted_for_the_load_and_their_absence_is_said():
    plan = Planner().step(0.0, [Node("n", 2)], even(4, "n", 0.6))
    assert plan.cpus_wanted == pytest.approx(4.0)
    assert plan.blocked == ("the load needs 4.0 CPUs, the nodes have 2",)


def test_equal_measurements_give_equal_plans():
    worlds = [World(9, lambda rng: zipf(20_000, 1.0, rng), lambda now: 6.0) for _ in range(2)]
    for world in worlds:
        world.run(1800)
    assert worlds[0].done == worlds[1].done
    assert worlds[0].done


@pytest.mark.parametrize("seed", range(20))
def test_a_backup_is_never_beside_its_owner(seed: int):
    rng = np.random.default_rng(seed)
    nodes = [
        Node(f"n{i}", 4, draining=bool(rng.random() < 0.3), zone=f"z{rng.integers(3)}")
        for i in range(int(rng.integers(1, 6)))
    ]
    for owner in nodes:
        found = backup_node(owner.node_id, nodes, {})
        others = [n for n in nodes if n is not owner and not n.draining]
        if found is None:
            assert not others, f"seed {seed}"
            continue
        node = next(n for n in nodes if n.node_id == found)
        assert node in others
        assert node.zone != owner.zone or all(n.zone == owner.zone for n in others), f"seed {seed}"


def test_settings_that_would_flap_are_refused():
    with pytest.raises(ValueError, match="calm_below must be"):
        PlanSettings(split_above=0.5, calm_below=0.4)
