"""The profile store against a plain dict model, and its structure against check()."""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actors.profile_kernels import VECTOR
from actors.store import ProfileStore, StoredEvent
from cluster.errors import StoreFull

NO_ATTRIBUTES = np.full((1000, 2), -1, np.int32)


def key_of(name: object) -> bytes:
    return blake2b(repr(name).encode(), digest_size=16).digest()


def small_store(**settings_: Any) -> ProfileStore:
    return ProfileStore(**{"profiles_max": 4096, "profile_bytes_max": 1 << 22, **settings_})


def fill_rings(store: ProfileStore) -> None:
    for i in range(1024 * 200):
        store.enter_ring(i % 1024, i % 1000, 1, 0.0, 1)


class StoreMachine(RuleBasedStateMachine):
    """Random writes to the store and to a dict; both must hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.store = small_store(ring_events_max=9)
        self.model: dict[int, dict[str, Any]] = {}
        self.time_s = 1000

    def profile(self, person: int) -> tuple[int, dict[str, Any]]:
        row = self.store.ensure(key_of(person), self.time_s)
        fresh = {
            "events": [],
            "traits": b"",
            "ledger": b"",
            "vector": [],
            "version": 0,
            "money": 0.0,
        }
        return row, self.model.setdefault(person, fresh)

    @rule(
        person=st.integers(0, 40),
        item=st.integers(0, 999),
        kind=st.integers(0, 60),
        n=st.integers(1, 12),
    )
    def view(self, person: int, item: int, kind: int, n: int) -> None:
        row, model = self.profile(person)
        for i in range(n):
            self.time_s += 1
            self.store.observe(row, item, kind, 1.0, 0.5, 2.0, self.time_s, 0, NO_ATTRIBUTES)
            self.store.enter_ring(row, (item + i) % 1000, kind, 0.5, self.time_s)
            model["events"].insert(0, StoredEvent((item + i) % 1000, kind, 0.5, self.time_s))
            del model["events"][9:]
            model["version"] += 1
            model["money"] += 2.0

    @rule(person=st.integers(0, 40), traits=st.binary(max_size=300))
    def identify(self, person: int, traits: bytes) -> None:
        row, model = self.profile(person)
        self.store.set_traits(row, traits)
        model["traits"] = traits

    @rule(person=st.integers(0, 40), ledger=st.binary(max_size=700))
    def book(self, person: int, ledger: bytes) -> None:
        row, model = self.profile(person)
        self.store.set_ledger(row, ledger)
        model["ledger"] = ledger

    @rule(person=st.integers(0, 40), d=st.integers(0, 40))
    def embed(self, person: int, d: int) -> None:
        row, model = self.profile(person)
        self.store._set_section(row, VECTOR, np.arange(d, dtype=np.float32).view(np.uint32))
        model["vector"] = list(range(d))

    @rule(person=st.integers(0, 40))
    def forget(self, person: int) -> None:
        row = self.store.find(key_of(person))
        assert (row >= 0) == (person in self.model)
        if row >= 0:
            self.store.remove(row)
            del self.model[person]

    @rule(start=st.integers(100, 10_000), n=st.integers(1, 400))
    def crowd(self, start: int, n: int) -> None:
        for person in range(start, start + n):
            if len(self.model) < 3000:
                self.profile(person)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert len(self.store) == len(self.model)
        for person in random.Random(1).sample(sorted(self.model), min(30, len(self.model))):
            model = self.model[person]
            row = self.store.find(key_of(person))
            assert self.store.events(row) == model["events"]
            assert self.store.traits(row) == model["traits"]
            assert self.store.ledger(row) == model["ledger"]
            assert self.store.vector(row).tolist() == model["vector"]
            assert self.store.version(row) == model["version"]
            assert float(self.store.rows["money"][row]) == model["money"]

    def teardown(self) -> None:
        self.store.check()


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStoreAgainstModel = StoreMachine.TestCase


def test_counters_and_affinities_decay_as_a_plain_loop_says() -> None:
    store = small_store(fast_half_life_s=100.0, slow_half_life_s=1000.0)
    attributes = np.array([[3, -1], [4, 3]], np.int32)
    row = store.ensure(key_of("ada"), 0)
    generator = random.Random(5)
    fast: dict[int, float] = {}
    slow: dict[int, float] = {}
    liked: dict[int, float] = {}
    last = 0
    for _ in range(200):
        now = last + generator.choice([0, 1, 50, 400, -30])
        item, kind = generator.randrange(2), generator.randrange(3)
        passed, late = max(now - last, 0), max(last - now, 0)
        last = max(last, now)
        for table, half_life in ((fast, 100.0), (slow, 1000.0)):
            for k in table:
                table[k] *= 0.5 ** (passed / half_life)
            table[kind] = table.get(kind, 0.0) + 0.5 ** (late / half_life)
        for k in liked:
            liked[k] *= 0.5 ** (passed / 1000.0)
        for attribute in attributes[item].tolist():
            if attribute >= 0:
                liked[attribute] = liked.get(attribute, 0.0) + 0.5 ** (late / 1000.0)
        store.observe(row, item, kind, 1.0, 0.0, 0.0, now, 0, attributes)
    assert {k: v[0] for k, v in store.counters(row).items()} == pytest.approx(fast, rel=1e-4)
    assert {k: v[1] for k, v in store.counters(row).items()} == pytest.approx(slow, rel=1e-4)
    assert store.affinities(row) == pytest.approx(liked, rel=1e-4)


def test_a_gap_or_another_session_id_starts_a_new_session() -> None:
    store = small_store(session_gap_s=10.0)
    row = store.ensure(key_of("ada"), 100)
    counts = []
    for time_s, session in ((100, 0), (110, 0), (121, 0), (122, 7), (900, 7), (901, 8)):
        store.observe(row, 1, 1, 1.0, 0.0, 0.0, time_s, session, NO_ATTRIBUTES)
        store.enter_ring(row, 1, 1, 0.0, time_s)
        counts.append(int(store.rows["session_events"][row]))
    assert counts == [1, 2, 1, 1, 2, 1]


def test_many_keys_at_once_equal_one_by_one() -> None:
    one, many = small_store(), small_store()
    halves = (
        np.frombuffer(b"".join(key_of(i % 700) for i in range(2000)), dtype=">i8")
        .astype(np.int64)
        .reshape(-1, 2)
    )
    times = np.arange(2000, dtype=np.uint32)
    rows = many.ensure_many(halves[:, 0].copy(), halves[:, 1].copy(), times)
    assert rows.tolist() == [one.ensure(key_of(i % 700), i) for i in range(2000)]
    many.check()


def test_full_store_refuses_and_stays_whole() -> None:
    store = small_store(profiles_max=1024, profile_bytes_max=1 << 20, ring_events_max=200)
    for person in range(1024):
        store.ensure(key_of(person), 1)
    with pytest.raises(StoreFull, match="1024"):
        store.ensure(key_of("one more"), 1)
    with pytest.raises(StoreFull, match="bytes"):
        fill_rings(store)
    store.check()
    store.remove(0)
    store.ensure(key_of("one more"), 1)
    store.check()


def test_stale_are_all_who_were_last_seen_before_and_only_they() -> None:
    store = small_store()
    for person in range(100):
        store.ensure(key_of(person), person)
    rows, go_on = store.stale(40, 0)
    assert [store.key(row) for row in rows] == [key_of(person) for person in range(40)]
    assert go_on == 0
    for row in rows:
        store.remove(row)
    assert store.stale(40, 0) == ([], 0)
    store.check()


def test_forgotten_profile_leaves_no_byte_behind() -> None:
    store = small_store()
    row = store.ensure(key_of("ada"), 1)
    for size in (10, 200, 40, 300):
        store.set_traits(row, b"secret-word " * (size // 12 + 1))
    store.remove(row)
    assert b"secret" not in store.words[:4096].tobytes()
    assert key_of("ada")[::-1] not in store.rows[:16].tobytes()
