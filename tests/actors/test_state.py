"""What changes a shard without a caller, where it does not fit or is refused half-way."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from actors import catalogue as catalogues
from actors import records
from actors.catalogue import Catalogue
from actors.messages import Item
from actors.people import Caller, person_key
from actors.records import LoadedTraits, Seeded
from actors.state import ShardState
from cluster.config import Config
from cluster.errors import RequestError, StoreFull, Unavailable
from cluster.keys import HASH_SPACE, KeyRange
from tests.actors.list_journal import ListJournal

CONFIG = Config(
    profiles_max=1024,
    profile_bytes_max=1 << 20,
    items_max=64,
    profile_ttl_s=1000,
    ring_events_max=200,
)
NOW_S = 1_790_000_000


def new_state(now_s: float = NOW_S) -> tuple[ShardState, ListJournal]:
    fresh = ShardState("0", KeyRange(0, HASH_SPACE), CONFIG, now=lambda: now_s)
    fresh.put_items("t", msgspec.json.encode([Item(f"i{n}") for n in range(64)]))
    journal = ListJournal()
    fresh.journal = journal  # type: ignore[assignment]
    return fresh, journal


def replayed(journal: ListJournal) -> ShardState:
    again, _ = new_state()
    again.journal = None
    for record in journal.records:
        again.replay(records.decode(record))
    return again


def profiles(one: ShardState) -> tuple[bytes, bytes, bytes]:
    return one.store.rows.tobytes(), one.store.words.tobytes(), one.store.heap.tobytes()


def halves(people: int, start: int = 0) -> NDArray[np.int64]:
    keys = [person_key(Caller("s", "t"), f"u{n}", None) for n in range(start, start + people)]
    return np.frombuffer(b"".join(keys), ">i8").astype(np.int64).reshape(-1, 2)


def chunk(people: int, events_each: int) -> dict[str, NDArray[Any]]:
    keys = np.repeat(halves(people), events_each, axis=0)
    n = len(keys)
    return {
        "key_hi": keys[:, 0],
        "key_lo": keys[:, 1],
        "item": (np.arange(n) % 64).astype(np.int32),
        "type": np.ones(n, np.uint8),
        "value": np.zeros(n, np.float32),
        "time": np.full(n, NOW_S, np.uint32),
    }


@pytest.mark.parametrize(("people", "events_each"), [(1000, 120), (1100, 1)])
def test_events_that_fit_in_part_are_the_same_part_after_a_replay(
    people: int, events_each: int
) -> None:
    shard, journal = new_state()
    with pytest.raises(StoreFull):
        shard.loads.events("token", "t", chunk(people, events_each))
    assert len(shard.store) > 0
    shard.loads.events("token", "t", chunk(people, events_each))
    again = replayed(journal)
    assert profiles(again) == profiles(shard)
    assert again.loads.applied == shard.loads.applied


def test_traits_that_cannot_be_merged_change_nothing() -> None:
    shard, journal = new_state()
    keys = halves(3)
    traits = [b'{"a":1}', b'{"a":1}', msgspec.json.encode({"a": "x" * 5000})]
    with pytest.raises(RequestError, match="too large"):
        shard.loads.profiles("token", "t", keys[:, 0], keys[:, 1], traits)
    assert (len(shard.store), journal.records, shard.loads.applied) == (0, [], {})


def test_traits_of_one_person_merge_within_a_chunk() -> None:
    shard, journal = new_state()
    keys = np.repeat(halves(1), 2, axis=0)
    assert shard.loads.profiles("k", "t", keys[:, 0], keys[:, 1], [b'{"a":1}', b'{"b":2}']) == 2
    assert shard.store.traits(0) == b'{"a":1,"b":2}'
    assert profiles(replayed(journal)) == profiles(shard)


def test_traits_that_fit_in_part_are_the_same_part_after_a_replay() -> None:
    shard, journal = new_state()
    keys = halves(1000)
    traits = [msgspec.json.encode({"a": "x" * 3000})] * 1000
    with pytest.raises(StoreFull):
        shard.loads.profiles("token", "t", keys[:, 0], keys[:, 1], traits)
    assert 0 < len(shard.store) < 1000
    assert isinstance(records.decode(journal.records[-1]), LoadedTraits)
    assert profiles(replayed(journal)) == profiles(shard)


def test_who_gets_the_row_of_an_expired_person_inherits_no_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard, _ = new_state(NOW_S + 2000.0)
    shard.loads.events("token", "t", chunk(2, 3))
    forgotten: list[int] = []
    monkeypatch.setattr(shard.tenant("t").engine, "forget", forgotten.append)
    assert shard.sweep() == 2
    assert forgotten == [0, 1]
    assert len(shard.store) == 0


def test_nothing_is_swept_while_the_disk_is_full() -> None:
    shard, journal = new_state(NOW_S + 2000.0)
    shard.loads.events("token", "t", chunk(2, 3))
    journal.has_room = False
    assert shard.sweep() == 0
    assert len(shard.store) == 2


def test_nothing_is_loaded_while_the_disk_is_full_and_all_of_it_later() -> None:
    shard, journal = new_state()
    journal.has_room = False
    keys = halves(3)
    with pytest.raises(Unavailable, match="disk is full"):
        shard.loads.events("e", "t", chunk(2, 3))
    with pytest.raises(Unavailable, match="disk is full"):
        shard.loads.profiles("p", "t", keys[:, 0], keys[:, 1], [b'{"a":1}'] * 3)
    assert (len(shard.store), journal.records, shard.loads.applied) == (0, [], {})
    journal.has_room = True
    shard.loads.events("e", "t", chunk(2, 3))
    shard.loads.profiles("p", "t", keys[:, 0], keys[:, 1], [b'{"a":1}'] * 3)
    assert shard.loads.applied == {"e": 6, "p": 3}


def test_a_large_catalogue_is_logged_in_parts_that_give_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogues, "SEEDED_BYTES_MAX", 200)
    catalogue = Catalogue(64)
    for n in range(40):
        catalogue.put(Item(f"i{63 - n}", {"category": f"c{n % 7}"}))
    catalogue.take_down("i50")
    shard = ShardState("0", KeyRange(0, HASH_SPACE), CONFIG)
    journal = ListJournal()
    shard.journal = journal  # type: ignore[assignment]
    shard.load_catalogue("t", catalogue.dump())
    assert len(journal.records) > 5
    assert all(len(record) < 1000 for record in journal.records)
    again = ShardState("0", KeyRange(0, HASH_SPACE), CONFIG)
    for record in journal.records:
        decoded = records.decode(record)
        assert isinstance(decoded, Seeded)
        again.replay(decoded)
        whole = again.tenant("t").catalogue.dump() == catalogue.dump()
        assert whole == (record is journal.records[-1])
        assert (again.tenant("t").catalogue.version == catalogue.version) == whole
