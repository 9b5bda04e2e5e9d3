"""Files of events become track messages; a bad line is reported and ends nothing."""

import gzip
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from serve.event_files import LINE_BYTES_MAX, BadLine, item_ids, read_events

TAOBAO = "user_id\titem_id\tcategory_id\tevent\ttimestamp\n1\t22\t5\tpv\t1511544070\n"
ML_100K = "user_id\titem_id\trating\ttimestamp\n196\t242\t3\t881250949\n"
SESSIONS = "session_id\titem_id\ttimestamp\n0\t14742\t1590884413.0\n"


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_taobao_rows_keep_their_event_names(tmp_path: Path) -> None:
    assert list(read_events(written(tmp_path, "events.tsv", TAOBAO))) == [
        {
            "userId": "1",
            "event": "pv",
            "properties": {"itemId": "22"},
            "timestamp": 1511544070.0,
        }
    ]


def test_ratings_become_values_and_sessions_anonymous_people(tmp_path: Path) -> None:
    (rating,) = read_events(written(tmp_path, "ratings.tsv", ML_100K))
    (view,) = read_events(written(tmp_path, "sessions.tsv", SESSIONS))
    assert not isinstance(rating, BadLine)
    assert rating["properties"] == {"itemId": "242", "value": 3.0}
    assert not isinstance(view, BadLine)
    assert view["anonymousId"] == "0"
    assert view["event"] == "Item Viewed"


def test_gzip_is_recognised_by_content_not_by_name(tmp_path: Path) -> None:
    plain = list(read_events(written(tmp_path, "a.tsv", TAOBAO)))
    assert list(read_events(written(tmp_path, "b.tsv", gzip.compress(TAOBAO.encode())))) == plain


def test_json_lines_pass_as_they_are(tmp_path: Path) -> None:
    line = '{"type":"track","userId":"ada","event":"Searched","properties":{"query":"tent"}}\n'
    assert (
        list(read_events(written(tmp_path, "e.jsonl", line + "\n" + line)))
        == [{"userId": "ada", "event": "Searched", "properties": {"query": "tent"}}] * 2
    )


@pytest.mark.parametrize(
    ("name", "bad", "why"),
    [
        ("e.tsv", TAOBAO.splitlines()[0] + "\n1\t22\n", "must have 5 columns, got 2"),
        ("e.tsv", "user_id\titem_id\n\t22\n", "userId is empty"),
        ("e.tsv", "user_id\titem_id\trating\n1\t22\tmuch\n", "much"),
        ("e.tsv", b"user_id\titem_id\n1\t\xff\xfe\n", "utf-8"),
        ("e.jsonl", "{}\n[1]\n", "array"),
        ("e.jsonl", "{}\nnot json\n", "malformed"),
        ("e.jsonl", '{}\n{"type":"page"}\n', "got 'page'"),
        ("e.jsonl", "{}\n" + "x" * 3 * LINE_BYTES_MAX + "\n", "longer than"),
    ],
)
def test_a_bad_line_is_named_by_number_and_reason(
    tmp_path: Path, name: str, bad: str | bytes, why: str
) -> None:
    *_, last = read_events(written(tmp_path, name, bad))
    assert isinstance(last, BadLine)
    assert last.line == 2
    assert why in last.why


def test_lines_after_a_bad_one_are_read(tmp_path: Path) -> None:
    text = "user_id\titem_id\n1\t2\t3\n" + "y" * 2 * LINE_BYTES_MAX + "\n1\t22\n"
    read = list(read_events(written(tmp_path, "e.tsv", text)))
    assert [isinstance(message, BadLine) for message in read] == [True, True, False]


def test_a_header_without_item_or_person_is_refused(tmp_path: Path) -> None:
    for header in ("user_id\tprice\n", "item_id\tprice\n", ""):
        with pytest.raises(ConfigError, match="the header must name"):
            list(read_events(written(tmp_path, "e.tsv", header)))


def test_truncated_gzip_and_missing_file_are_refused(tmp_path: Path) -> None:
    cut = gzip.compress(TAOBAO.encode() * 1000)[:-20]
    with pytest.raises(ConfigError, match="events file"):
        list(read_events(written(tmp_path, "e.tsv.gz", cut)))
    with pytest.raises(ConfigError, match="No such file"):
        list(read_events(tmp_path / "none.tsv"))


def test_item_ids_are_those_of_the_good_lines(tmp_path: Path) -> None:
    assert item_ids(written(tmp_path, "e.tsv", TAOBAO + "1\t23\n" + TAOBAO.splitlines()[1])) == {
        "22"
    }
