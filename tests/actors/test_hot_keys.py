import random
from collections.abc import Iterable

import pytest

from actors.hot_keys import CUTS, KEPT, KeySample
from actors.people import SECRET_ROLE, Caller
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange, key_hash


def feed(sample: KeySample, keys: Iterable[bytes]) -> None:
    for key in keys:
        sample.see(key)


def key(number: int) -> bytes:
    return key_hash("t", "u", f"{number}")


def test_a_key_with_a_fifth_of_the_requests_is_named_with_its_share():
    rng = random.Random(4)
    sample = KeySample(rng)
    feed(
        sample, (key(0) if rng.random() < 0.2 else key(rng.randrange(10**6)) for _ in range(10**5))
    )
    ((name, share),) = sample.hot_keys()
    assert name == key(0).hex()
    assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / KEPT) ** 0.5)


def test_evenly_asked_keys_are_not_called_hot():
    rng = random.Random(5)
    sample = KeySample(rng)
    feed(sample, (key(rng.randrange(10_000)) for _ in range(10**5)))
    assert sample.hot_keys() == []


def test_a_rhythm_of_callers_does_not_hide_a_key():
    sample = KeySample(random.Random(6))
    feed(sample, (key(number % 32) for number in range(10**5)))
    assert len({name for name, _ in sample.hot_keys()}) == 10


def test_what_is_no_longer_hot_is_forgotten():
    sample = KeySample(random.Random(7))
    feed(sample, (key(1) for _ in range(10**5)))
    feed(sample, (key(2) for _ in range(10**5)))
    assert sample.hot_keys() == [(key(2).hex(), 1.0)]
    assert len(sample) == KEPT


def test_half_the_load_lies_before_the_middle_cut():
    rng = random.Random(8)
    # Three quarters of the load on the first eighth of the space.
    places = [
        rng.randrange(HASH_SPACE // 8) if rng.random() < 0.75 else rng.randrange(HASH_SPACE)
        for _ in range(10**5)
    ]
    sample = KeySample(rng)
    feed(sample, (place.to_bytes(8, "big") + bytes(8) for place in places))
    cuts = [int(cut, 16) for cut in sample.cuts()]
    assert len(cuts) == CUTS
    assert cuts == sorted(cuts)
    before = sum(place < cuts[CUTS // 2] for place in places) / len(places)
    assert before == pytest.approx(0.5, abs=0.05)


def test_too_few_requests_say_nothing():
    sample = KeySample()
    feed(sample, [key(1)] * 40)
    assert sample.hot_keys() == []
    assert sample.cuts() == []


def test_a_shard_counts_whom_it_owns_and_says_so_in_its_stats():
    shard = Shard("0", KeyRange(0, HASH_SPACE), Config(durability="memory"))
    caller = Caller(SECRET_ROLE, "default")
    for number in range(20_000):
        who = "ada" if number % 2 else f"{number}"
        body = b'{"userId":"%b"}' % who.encode()
        shard.handle(Op.PROFILE_GET, caller, body, 0)
    stats = shard.stats()
    assert [hot["keyHash"] for hot in stats["hotKeys"]] == [key_hash("default", "u", "ada").hex()]
    assert len(stats["loadCuts"]) == CUTS
    assert stats["cpuSeconds"] > 0
