"""Paths from outside are refused as input, whatever the operating system says of them."""

import pytest

from actors.parquet_input import open_sources
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
