"""What a warm start does not take: rows that are bad, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import RequestError
from tests.actors.import_world import (
    NOW_S,
    World,
    await_ids,
    events_table,
    write,
)

BAD_IDS: list[Any] = [None, "", "x" * 257, "a\0b"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


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
