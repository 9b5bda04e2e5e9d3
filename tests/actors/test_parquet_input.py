"""Paths from outside are refused as input, whatever the operating system says of them."""

from pathlib import Path

import pytest

from actors.parquet_input import check_roots, open_sources
from cluster.config import Config
from cluster.errors import RequestError


@pytest.mark.parametrize(
    "path", ["no/such/file", "n" * 5000, "a\0b", "~nobody-has-this-name/x", "/proc/1/fd"]
)
def test_a_path_that_holds_no_parquet_is_a_422_that_names_it(path: str) -> None:
    with pytest.raises(RequestError) as refused:
        open_sources(path, "events", {})
    assert refused.value.status == 422
    assert refused.value.field == "events"
    assert refused.value.wanted


def test_imports_read_only_below_their_roots_links_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    roots = (inside,)
    for path in (inside, inside / "a.parquet", inside / "x" / ".." / "b"):
        check_roots(str(path), "events", roots)
    elsewhere = (outside, inside / "link" / "a", inside / ".." / "out", tmp_path, "/etc")
    refused = [*map(str, elsewhere), f"{inside}2"]
    for wrong in refused:
        with pytest.raises(RequestError) as error:
            check_roots(wrong, "items", roots)
        assert (error.value.status, error.value.field) == (403, "items")
        assert error.value.wanted == f"below {inside}"


def test_only_a_loopback_host_reads_everything_unless_told(tmp_path: Path) -> None:
    data = str(tmp_path)
    assert Config(data_dir=data).import_paths == (Path("/"),)
    assert Config(data_dir=data, host="0.0.0.0").import_paths == (tmp_path / "imports",)
    roots = Config(data_dir=data, host="0.0.0.0", import_dirs="/a:/b").import_paths
    assert roots == (Path("/a"), Path("/b"))
    check_roots("/etc/hostname", "events", Config(data_dir=data).import_paths)
