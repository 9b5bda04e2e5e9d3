"""Where a key lives."""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RequestError
from cluster.keys import (
    ANONYMOUS,
    HASH_SPACE,
    ID_BYTES_MAX,
    USER,
    KeyRange,
    key_bytes,
    key_hash,
    place,
    split_evenly,
)

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
ids = names.filter(lambda text: len(text.encode()) <= ID_BYTES_MAX)


def test_the_hash_is_blake2b_of_tenant_type_and_id() -> None:
    assert key_hash("shop", USER, "ada") == blake2b(b"shop\0u\0ada", digest_size=16).digest()


def test_the_hash_never_changes_since_it_decides_who_holds_the_data() -> None:
    assert key_hash("default", USER, "ada").hex() == "22258285cc49efa5af30b211fcbdb74e"
    assert key_hash("default", ANONYMOUS, "ada").hex() == "717e27d16244d5493b6b20126e204232"


@given(st.tuples(names, st.sampled_from("ua"), ids), st.tuples(names, st.sampled_from("ua"), ids))
def test_two_different_people_never_share_their_bytes(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    assert (key_bytes(*one) == key_bytes(*other)) == (one == other)


@given(st.binary(min_size=16, max_size=16))
def test_the_place_is_the_number_that_the_first_eight_bytes_spell(hashed: bytes) -> None:
    assert place(hashed) == int(hashed[:8].hex(), 16) < HASH_SPACE


@pytest.mark.parametrize(
    ("id_type", "field"), [(USER, "userId"), (ANONYMOUS, "anonymousId")], ids=["user", "anonymous"]
)
@pytest.mark.parametrize(
    "person_id",
    ["", "a\0b", "x" * (ID_BYTES_MAX + 1), "ö" * (ID_BYTES_MAX // 2 + 1), "\ud800"],
    ids=["empty", "NUL", "long", "long in bytes", "surrogate"],
)
def test_an_unusable_id_is_refused_by_its_field(person_id: str, id_type: str, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        key_hash("default", id_type, person_id)
    assert caught.value.status == 422
    assert caught.value.field == field


def test_the_longest_id_is_accepted() -> None:
    assert len(key_hash("default", USER, "x" * ID_BYTES_MAX)) == 16


@given(st.integers(1, 2000))
def test_an_even_split_covers_everything_once_in_equal_parts(count: int) -> None:
    ranges = split_evenly(count)
    assert len(ranges) == count
    assert ranges[0].start == 0
    assert ranges[-1].stop == HASH_SPACE
    assert all(a.stop == b.start for a, b in pairwise(ranges))
    sizes = {key_range.stop - key_range.start for key_range in ranges}
    assert max(sizes) - min(sizes) <= 1


def test_a_range_holds_its_start_and_not_its_stop() -> None:
    key_range = KeyRange(4, 8)
    assert [position in key_range for position in (3, 4, 7, 8)] == [False, True, True, False]


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (4, 4), (8, 4), (0, HASH_SPACE + 1)])
def test_an_impossible_range_can_not_be_built(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="0 <= start < stop"):
        KeyRange(start, stop)


def test_a_split_into_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        split_evenly(0)
