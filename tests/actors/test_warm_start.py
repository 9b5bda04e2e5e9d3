"""actors/warm_start.py: Parquet into shards, compared with the same events applied one by one."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from actors import parquet_input
from actors.catalogue import Catalogue
from actors.events import TYPES
from actors.readers import LocalReaders, ReadPlan
from actors.shard import Shard
from actors.warm_start import ImportSpec, Progress, WarmStart
from cluster.errors import RequestError, Unavailable
from tests.actors.import_world import (
    CONFIG,
    NOW_S,
    ShardOwner,
    World,
    await_ids,
    events_table,
    one_by_one,
    rounded,
    write,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# What it does.


def test_profiles_equal_those_of_events_tracked_one_by_one(world: World):
    table = events_table()
    report = world.load(events=write(world.folder, table))
    model = one_by_one(table)
    assert (report.rows, report.accepted, report.rejected) == (500, 500, {})
    assert world.people == model.people
    for person in table["userId"].unique().to_pylist():
        loaded, tracked = world.profile(person), model.profile(person)
        assert rounded(loaded) == rounded(tracked), person
    for shard in world.shards:
        shard.store.check()


@pytest.mark.parametrize("batch_rows", [1, 7, 100, 1000])
def test_batch_size_changes_nothing(world: World, monkeypatch, batch_rows: int):
    monkeypatch.setattr(parquet_input, "BATCH_ROWS", batch_rows)
    table = events_table(n=120, people=9)
    world.load(events=write(world.folder, table))
    model = one_by_one(table)
    for person in table["userId"].unique().to_pylist():
        assert rounded(world.profile(person)) == rounded(model.profile(person))


def test_both_ids_snake_case_integers_and_dictionaries(world: World):
    table = pa.table(
        {
            "user_id": pa.array([12, None, None], pa.int64()),
            "anonymous_id": pa.array(["a", "visitor", None]).dictionary_encode(),
            "item_id": pa.array([1, 2, 3]),
            "event": pa.array(["view", "view", "view"], pa.large_utf8()),
            "timestamp": [NOW_S, NOW_S, NOW_S],
        }
    )
    report = world.load(events=write(world.folder, table))
    assert (report.accepted, report.rejected) == (2, {"id_null": 1})
    user, visitor = world.profile("12"), world.profile("visitor", "a")
    assert user is not None
    assert visitor is not None
    assert user["events"][0] | {"value": 0} == {
        "itemId": "1", "event": "Item Viewed", "timestamp": NOW_S, "value": 0
    }  # fmt: skip
    assert visitor["events"][0]["itemId"] == "2"


@pytest.mark.parametrize(
    "stamps",
    [
        pa.array([NOW_S], pa.timestamp("s")),
        pa.array([NOW_S * 1000], pa.timestamp("ms", "UTC")),
        pa.array([NOW_S * 10**6], pa.timestamp("us")),
        pa.array([NOW_S * 10**9], pa.timestamp("ns", "Europe/Berlin")),
        pa.array([NOW_S], pa.int64()),
        pa.array([NOW_S], pa.uint32()),
        pa.array([NOW_S * 1000 + 999], pa.int64()),
        pa.array([NOW_S + 0.25], pa.float64()),
        pa.array([NOW_S * 1000.0], pa.float64()),
    ],
    ids=str,
)
def test_times_are_timestamps_seconds_or_milliseconds(world: World, stamps: pa.Array):
    table = pa.table({"userId": ["u"], "itemId": ["i"], "event": ["view"], "timestamp": stamps})
    world.load(events=write(world.folder, table))
    profile = world.profile("u")
    assert profile is not None
    assert profile["events"][0]["timestamp"] == NOW_S


def test_mapping_names_columns(world: World):
    table = events_table(n=5).rename_columns(["who", "what", "how", "when", "much"])
    names = {"userId": "who", "itemId": "what", "event": "how", "timestamp": "when"}
    report = world.load(events=write(world.folder, table), mapping=names)
    assert report.accepted == 5


def test_event_without_item_counts_but_names_no_item(world: World):
    table = pa.table(
        {"userId": ["u"], "itemId": pa.array([None], pa.utf8()), "event": ["Searched"],
         "timestamp": [NOW_S]}
    )  # fmt: skip
    assert world.load(events=write(world.folder, table)).accepted == 1
    profile = world.profile("u")
    assert profile is not None
    assert (profile["eventsTotal"], profile["events"]) == (1, [])


def test_folder_is_loaded_file_by_file_and_equal_files_once(world: World):
    table = events_table(n=40)
    write(world.folder, table.slice(0, 20), "in/a.parquet")
    write(world.folder, table.slice(20), "in/sub/b.parquet")
    write(world.folder, table.slice(20), "in/sub/copy.parquet")
    assert world.load(events=world.folder / "in").rows == 40


def test_items_and_profiles_are_loaded(world: World):
    items = pa.table(
        {"itemId": ["i1", "i2", None, "i4"], "category": ["shoes", None, "x", "y"],
         "price": [9.5, 3.0, 1.0, 2.0], "embedding": [[1.0, 0.0], [0.0, 1.0], None, [1.0]]}
    )  # fmt: skip
    profiles = pa.table(
        {"userId": ["u1", "u2", None, "u4"], "city": ["Oslo", None, "Rome", "x" * 5000],
         "age": [30, None, 1, 2]}
    )  # fmt: skip
    report = world.load(
        items=write(world.folder, items, "items.parquet"),
        profiles=write(world.folder, profiles, "profiles.parquet"),
    )
    assert report.rejected == {
        "item_invalid": 1, "item_refused": 1, "id_null": 1, "traits_invalid": 1
    }  # fmt: skip
    catalogue: Catalogue = world.items.catalogues[1]
    assert catalogue.ids == ["i1", "i2"]
    document = json.loads(catalogue.document("i1") or b"")
    assert document["attributes"] == {"category": "shoes", "price": 9.5}
    loaded = world.profile("u1")
    assert loaded is not None
    assert loaded["traits"] == {"city": "Oslo", "age": 30}
    assert world.people == 2


def test_strict_items_refuses_events_on_items_not_in_the_catalogue(world: World):
    items = pa.table({"id": ["item-1", "item-2"]})
    table = events_table()
    report = world.load(
        items=write(world.folder, items, "items.parquet"),
        events=write(world.folder, table),
        strict_items=True,
    )
    known = sum(item in ("item-1", "item-2") for item in table["itemId"].to_pylist())
    assert report.rejected == {"item_unknown": 500 - known}
    assert world.items.catalogues[0].ids == ["item-1", "item-2"]


def test_progress_ends_at_all_rows(world: World):
    world.load(events=write(world.folder, events_table()))
    done = [step.done for step in world.progress]
    assert done == sorted(done)
    assert world.progress[-1] == Progress(500, 500, 500, 0)


# A dry run.


def test_dry_run_counts_and_changes_nothing(world: World):
    path = write(world.folder, events_table())
    dry = world.load(events=path, dry_run=True)
    assert (dry.accepted, dry.items_added, world.people) == (500, 40, 0)
    assert await_ids(world) == []
    assert world.load(events=path).accepted == 500
    assert world.people == 60


# Again, and after a crash.


def test_the_same_import_again_changes_nothing(world: World):
    path = write(world.folder, events_table())
    first = world.load(events=path)
    events = [shard.store.events_total for shard in world.shards]
    again = world.load(events=path)
    assert (again.resumed_from, again.rows, again.accepted) == (500, 500, first.accepted)
    assert [shard.store.events_total for shard in world.shards] == events


@pytest.mark.parametrize("chunks", [0, 1, 3, 4])
def test_after_a_crash_it_goes_on_and_applies_nothing_twice(world: World, chunks: int):
    table = events_table()
    path = write(world.folder, table)
    world.owners[1].dies_after = chunks
    with pytest.raises(Unavailable):
        world.load(events=path)
    world.owners[1].dies_after = -1
    report = world.load(events=path)
    assert (report.rows, report.accepted) == (500, 500)
    assert report.resumed_from == 100 * chunks
    for owner in world.owners:
        assert len(owner.applied) == len(set(owner.applied)) == 5
    model = one_by_one(table)
    for person in table["userId"].unique().to_pylist():
        assert rounded(world.profile(person)) == rounded(model.profile(person))


def test_a_shard_that_lost_its_memory_is_loaded_again_and_the_others_are_not(world: World):
    path = write(world.folder, events_table())
    world.load(events=path)
    before = [shard.store.events_total for shard in world.shards]
    fresh = Shard("1", world.shards[1].key_range, CONFIG, now=lambda: NOW_S)
    fresh.tenant("default").catalogue.register(await_ids(world))
    world.shards[1] = fresh
    world.owners[1] = ShardOwner(fresh)
    report = world.load(events=path)
    assert [shard.store.events_total for shard in world.shards] == before
    assert (report.resumed_from, report.accepted) == (0, 500)


def test_torn_manifest_line_is_counted_again(world: World):
    path = write(world.folder, events_table())
    report = world.load(events=path)
    manifest = world.folder / "imports" / f"{report.import_id}.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    again = world.load(events=path)
    assert (again.resumed_from, again.rows, again.accepted) == (400, 500, 500)
    assert sum(shard.store.events_total for shard in world.shards) == 500


def test_another_tenant_is_another_import(world: World):
    path = write(world.folder, events_table())
    ids = {world.load(events=path, tenant=t, dry_run=True).import_id for t in ("a", "b")}
    assert len(ids) == 2


def test_two_at_once_of_the_same_import_are_refused(world: World):
    path = write(world.folder, events_table())
    plan = ReadPlan("default", NOW_S, False)
    make = partial(
        WarmStart,
        ImportSpec(events=str(path)),
        world.owners,
        world.items,
        LocalReaders(plan),
        world.folder / "imports",
    )
    running = make()
    with pytest.raises(RequestError, match="already running"):
        make()
    asyncio.run(running.run())


def test_every_known_event_name_is_usable():
    assert all(0 <= number < 64 for number in TYPES.values())
