import random
from itertools import combinations, pairwise

import pytest

from cluster.divide import divide


def heaviest(weighted: list[tuple[int, float]], cuts: list[int]) -> float:
    edges = [-1, *cuts, 1 << 70]
    return max(sum(w for p, w in weighted if a <= p < b) for a, b in pairwise(edges))


@pytest.mark.parametrize("seed", range(60))
def test_no_other_cuts_make_the_heaviest_part_lighter(seed: int):
    rng = random.Random(seed)
    weighted = sorted((rng.randrange(12), float(rng.choice((1, 1, 2, 9)))) for _ in range(10))
    parts = rng.randint(1, 5)
    worst, cuts = divide(weighted, parts)
    places = sorted({position for position, _ in weighted})
    possible = min(parts, len(places)) - 1
    best = min(heaviest(weighted, list(c)) for c in combinations(places[1:], possible))
    assert worst == pytest.approx(best), f"seed {seed}"
    assert heaviest(weighted, cuts) == pytest.approx(worst)
    assert len(cuts) == possible
    assert cuts == sorted(set(cuts))


def test_one_key_can_not_be_cut():
    assert divide([(7, 1.0), (7, 5.0)], 2) == (6.0, [])


def test_a_hot_key_gets_a_part_of_its_own():
    weighted = [(p, 1.0) for p in range(0, 50, 10)] + [(50, 40.0)]
    worst, cuts = divide(weighted, 2)
    assert worst == 40.0
    assert cuts == [45]
