"""actors/warm_start.py: Parquet into shards, compared with the same events applied one by one."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors import parquet_input
from actors.catalogue import Catalogue
from actors.events import TYPES
from actors.messages import Item
from actors.parquet_input import Kind
from actors.people import Caller
from actors.readers import LocalReaders, ReadPlan
from actors.shard import Shard
from actors.warm_start import ImportReport, ImportSpec, Progress, WarmStart
from cluster.config import Config
from cluster.errors import RequestError, Unavailable
from cluster.frames import Op
from cluster.keys import key_hash, place, split_evenly

NOW_S = 1_750_000_000
CONFIG = Config(profiles_max=4096, profile_bytes_max=1 << 24, items_max=4096)
BAD_IDS: list[Any] = [None, "", "x" * 257, "a\0b"]


class ShardOwner:
    """A shard in this process with the token rule of its actor; may die after some chunks."""

    def __init__(self, shard: Shard, tenant: str = "default") -> None:
        self.shard = shard
        self.start = shard.key_range.start
        self.tenant = tenant
        self.held: set[str] = set()
        self.applied: list[str] = []
        self.dies_after = -1
        self.finished = 0

    async def load(self, kind: Kind, token: str, chunk: Any) -> None:
        if token in self.held:
            return
        if len(self.applied) == self.dies_after:
            raise Unavailable("the shard died")
        if kind == "events":
            self.shard.loads.events(token, self.tenant, chunk)
        else:
            hi, lo, traits = chunk["key_hi"], chunk["key_lo"], chunk["traits"]
            self.shard.loads.profiles(token, self.tenant, hi, lo, traits)
        self.held.add(token)
        self.applied.append(token)

    async def tokens(self, prefix: str) -> set[str]:
        return {token for token in self.held if token.startswith(prefix)}

    async def event_numbers(self, names: list[str]) -> list[int]:
        return [self.shard.tenant(self.tenant).event_types.number(name) for name in names]

    async def finish(self) -> None:
        self.finished += 1


class SharedItems:
    """The catalogue of all shards of a test."""

    def __init__(self, shards: list[Shard], tenant: str = "default") -> None:
        self.catalogues = [shard.tenant(tenant).catalogue for shard in shards]

    async def ids(self) -> list[str]:
        return list(self.catalogues[0].ids)

    async def register(self, ids: list[str]) -> None:
        for catalogue in self.catalogues:
            catalogue.register(ids)

    async def put(self, items: list[bytes]) -> list[str]:
        return [self._put(item) for item in items]

    def _put(self, document: bytes) -> str:
        try:
            item = msgspec.json.decode(document, type=Item)
            for catalogue in self.catalogues:
                catalogue.put(item)
        except (RequestError, msgspec.ValidationError) as error:
            return str(error)
        return ""


class World:
    """Shards, their catalogue and a folder."""

    def __init__(self, folder: Path, shards: int = 3) -> None:
        self.folder = folder
        self.shards = [
            Shard(f"{i}", r, CONFIG, now=lambda: NOW_S) for i, r in enumerate(split_evenly(shards))
        ]
        self.owners = [ShardOwner(shard) for shard in self.shards]
        self.items = SharedItems(self.shards)
        self.progress: list[Progress] = []

    def load(self, **spec: Any) -> ImportReport:
        camel = {"dry_run": "dryRun", "strict_items": "strictItems"}
        paths = {camel.get(k, k): str(v) if isinstance(v, Path) else v for k, v in spec.items()}
        wanted = msgspec.convert(paths, ImportSpec)

        async def run() -> ImportReport:
            plan = ReadPlan(wanted.tenant, NOW_S + 3600, wanted.dry_run)
            start = WarmStart(
                wanted,
                self.owners,
                self.items,
                LocalReaders(plan),
                self.folder / "imports",
                self.progress.append,
            )
            return await start.run()

        return asyncio.run(run())

    def shard_of(self, person: str, id_type: str = "u") -> Shard:
        position = place(key_hash("default", id_type, person))
        return next(s for s in self.shards if position in s.key_range)

    def profile(self, person: str, id_type: str = "u") -> dict[str, Any] | None:
        field = "userId" if id_type == "u" else "anonymousId"
        body = json.dumps({field: person}).encode()
        status, answer = self.shard_of(person, id_type).handle(
            Op.PROFILE_GET, Caller("s", "default"), body, 0
        )
        return json.loads(answer) if status == 200 else None

    @property
    def people(self) -> int:
        return sum(len(shard.store) for shard in self.shards)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def events_table(seed: int = 7, n: int = 500, people: int = 60) -> pa.Table:
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    names = ["Item Viewed", "Order Completed", "Impression", "my own event"]
    return pa.table(
        {
            "userId": [f"user {i} é" for i in random.integers(0, people, n)],
            "itemId": [f"item-{i}" for i in random.integers(0, 40, n)],
            "event": [names[i] for i in random.integers(0, len(names), n)],
            "timestamp": pa.array(
                np.sort(random.integers(NOW_S - 10**6, NOW_S, n)) * 1000,
                pa.timestamp("ms", "UTC"),
            ),
            "value": [float(v) if v > 3 else None for v in random.integers(0, 9, n)],
        }
    )


def write(folder: Path, table: pa.Table, name: str = "events.parquet", rows: int = 100) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    return path


def one_by_one(table: pa.Table) -> World:
    """A world that got the same events through `POST /v1/track`."""
    world = World(Path("/nonexistent"))
    ids = table["itemId"].unique().to_pylist()
    asyncio.run(world.items.register(sorted(ids)))
    for row in table.to_pylist():
        properties = {"itemId": row["itemId"], "value": row["value"] or 0.0}
        body = {
            "userId": row["userId"],
            "event": row["event"],
            "timestamp": row["timestamp"].timestamp() * 1000,
            "properties": properties,
        }
        shard = world.shard_of(row["userId"])
        status, answer = shard.handle(
            Op.TRACK, Caller("s", "default"), json.dumps(body).encode(), 0
        )
        assert status == 200, answer
    return world


def rounded(document: Any) -> Any:
    """A document with its floats to four digits: float32 sums differ in the last."""
    if isinstance(document, dict):
        return {name: rounded(value) for name, value in document.items()}
    if isinstance(document, list):
        return [rounded(value) for value in document]
    return float(f"{document:.4g}") if isinstance(document, float) else document


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


def await_ids(world: World) -> list[str]:
    return asyncio.run(world.items.ids())


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


# Bad rows.


def bad_rows() -> tuple[pa.Table, dict[str, int]]:
    """One good row, then one of each that must be refused, and the counts of reasons."""
    n = 0
    columns: dict[str, list[Any]] = {
        name: [] for name in ("userId", "itemId", "event", "timestamp", "value")
    }
    reasons: dict[str, int] = {}

    def add(reason: str, **changes: Any) -> None:
        nonlocal n
        row = {"userId": f"u{n}", "itemId": "i", "event": "view", "timestamp": float(NOW_S)}
        for name in columns:
            columns[name].append({"value": 1.0, **row, **changes}[name])
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        n += 1

    add("")
    for reason, bad in zip(
        ("id_null", "id_empty", "id_too_long", "id_holds_nul"), BAD_IDS, strict=True
    ):
        add(reason, userId=bad)
    add("item_invalid", itemId="")
    add("item_invalid", itemId="i" * 257)
    add("event_invalid", event=None)
    add("event_invalid", event="")
    add("event_invalid", event="e" * 257)
    add("time_null", timestamp=None)
    for stamp in (0.0, -1.0, 1e30, float("nan"), float("inf"), -1e300, NOW_S + 86400.0):
        add("time_out_of_bounds", timestamp=stamp)
    for value in (float("nan"), float("inf"), -1e300):
        add("value_invalid", value=value)
    add("", value=None)
    return pa.table(columns), reasons


def test_bad_rows_are_counted_by_reason_and_shown_with_row_field_seen_and_wanted(world: World):
    table, reasons = bad_rows()
    report = world.load(events=write(world.folder, table))
    assert report.rejected == reasons
    assert report.accepted == world.people == 2
    lines = [json.loads(line) for line in Path(report.rejects_file).read_text().splitlines()]
    assert len(lines) == sum(reasons.values())
    for line in lines:
        seen = table[line["field"]][line["row"]].as_py()
        assert line["seen"] == repr(seen)[:80]
        assert line["wanted"]
        assert line["reason"] in reasons


def test_bad_utf8_is_a_reject_and_not_a_crash(world: World):
    raw = pa.array([b"ok", b"\xff\xfe", b"ok2", b"\xc3\x28"], pa.binary())
    good = pa.array(["a", "b", "c", "d"])
    for column in ("userId", "itemId", "event"):
        parts = {"userId": good, "itemId": good, "event": good, "timestamp": pa.array([NOW_S] * 4)}
        parts[column] = pa.Array.from_buffers(pa.utf8(), 4, raw.buffers())
        path = write(world.folder, pa.table(parts), f"{column}.parquet")
        report = world.load(events=path)
        assert (report.accepted, sum(report.rejected.values())) == (2, 2), column
        assert len(Path(report.rejects_file).read_text().splitlines()) == 2


def test_rejects_are_sampled_and_all_counted(world: World):
    table = events_table(n=300).set_column(0, "userId", pa.array([""] * 300))
    report = world.load(events=write(world.folder, table))
    assert report.rejected == {"id_empty": 300}
    assert len(Path(report.rejects_file).read_text().splitlines()) == 3 * 20


@pytest.mark.parametrize(
    "stamps",
    [
        pa.array([-(2**63), 2**63 - 1, 0], pa.int64()),
        pa.array([2**64 - 1, 2**63, 1], pa.uint64()),
        pa.array([-(2**63) + 1, 2**63 - 1, 0], pa.timestamp("ns")),
        pa.array([-(2**63) + 1, 2**63 - 1, 0], pa.timestamp("us")),
    ],
    ids=["int64", "uint64", "ns", "us"],
)
def test_absurd_times_are_rejects(world: World, stamps: pa.Array):
    table = pa.table(
        {"userId": ["a", "b", "c"], "itemId": ["i"] * 3, "event": ["view"] * 3, "timestamp": stamps}
    )
    report = world.load(events=write(world.folder, table))
    assert (report.accepted, report.rejected) == (0, {"time_out_of_bounds": 3})
    assert world.people == 0


# Bad files: refused before anything changes.


def refused(world: World, **spec: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        world.load(**spec)
    assert world.people == 0
    assert await_ids(world) == []
    assert caught.value.status == 422
    assert caught.value.wanted
    return caught.value


@pytest.mark.parametrize("column", ["userId", "itemId", "event", "timestamp"])
def test_a_missing_column_is_named(world: World, column: str):
    table = events_table().drop_columns([column])
    error = refused(world, events=write(world.folder, table))
    assert column in error.field
    assert "columns" in error.seen


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("userId", pa.float64()),
        ("userId", pa.binary()),
        ("itemId", pa.bool_()),
        ("event", pa.int32()),
        ("timestamp", pa.utf8()),
        ("timestamp", pa.date32()),
        ("value", pa.utf8()),
    ],
    ids=str,
)
def test_a_column_of_the_wrong_type_is_named(world: World, column: str, kind: pa.DataType):
    table = events_table()
    at = table.schema.names.index(column)
    table = table.set_column(at, column, pa.nulls(len(table), kind))
    error = refused(world, events=write(world.folder, table))
    assert (error.field, error.seen) == (column, str(kind))


@pytest.mark.parametrize("kept", [0, 3, 8, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(world: World, kept: float):
    path = write(world.folder, events_table())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    assert "whole Parquet file" in refused(world, events=path).wanted


def test_what_is_no_parquet_is_refused(world: World):
    (world.folder / "empty").mkdir()
    (world.folder / "text.parquet").write_text("userId,itemId\n" * 50)
    for path in ("text.parquet", "empty", "absent.parquet"):
        refused(world, events=world.folder / path)
    refused(world)
    refused(world, events=write(world.folder, events_table()), mapping={"user": "userId"})
    refused(world, events=write(world.folder, events_table()), mapping={"userId": "absent"})


def test_one_bad_file_refuses_the_whole_import(world: World):
    good = write(world.folder, events_table())
    bad = write(world.folder, pa.table({"x": [1]}), "items.parquet")
    assert "id" in refused(world, events=good, items=bad).field


def test_corrupt_pages_stop_the_import_with_a_problem_that_names_the_row_group(world: World):
    path = world.folder / "events.parquet"
    pq.write_table(events_table(), path, row_group_size=100, compression="zstd")
    data = bytearray(path.read_bytes())
    at = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[at : at + 60] = bytes(60)
    path.write_bytes(bytes(data))
    with pytest.raises(RequestError, match="row group 2") as caught:
        world.load(events=path)
    assert caught.value.status == 422
    assert all(owner.finished == 0 for owner in world.owners)


def test_a_file_without_rows_is_an_import_of_nothing(world: World):
    report = world.load(events=write(world.folder, events_table().slice(0, 0)))
    assert (report.rows, report.accepted, report.rejected) == (0, 0, {})


def test_every_known_event_name_is_usable():
    assert all(0 <= number < 64 for number in TYPES.values())
