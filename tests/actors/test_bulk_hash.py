"""actors/bulk_hash.py against hashlib, through cluster.keys.key_hash, and its own bounds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.bulk_hash import EMPTY, HOLDS_NUL, LANES, OK, TOO_LONG, hash_ids
from cluster.errors import RequestError
from cluster.keys import key_bytes, key_hash

UTF8, LARGE_UTF8 = pa.utf8(), pa.large_utf8()
ID = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=256)


def hashed(tenant: str, id_type: str, ids: list[str], kind: pa.DataType = UTF8):
    column = pa.array(ids, kind)
    width = np.int32 if kind == UTF8 else np.int64
    _, offsets, data = column.buffers()
    prefix = key_bytes(tenant, id_type, "x")[:-1]
    return hash_ids(
        prefix,
        np.frombuffer(offsets, width, len(ids) + 1),
        np.frombuffer(data or b"", np.uint8),
    )


def halves(tenant: str, id_type: str, person_id: str) -> tuple[int, int]:
    whole = key_hash(tenant, id_type, person_id)
    return int.from_bytes(whole[:8], "big"), int.from_bytes(whole[8:], "big")


@pytest.mark.parametrize("tenant", ["d", "default", "tenant-of-16-byt", "t" * 126, "t" * 300])
def test_every_length_equals_hashlib(tenant: str):
    ids = ["ab7"[n % 3] * n for n in range(1, 257)]
    hi, lo, faults = hashed(tenant, "u", ids)
    assert faults.tolist() == [OK] * 256
    assert list(zip(hi.tolist(), lo.tolist(), strict=True)) == [
        halves(tenant, "u", person_id) for person_id in ids
    ]


@given(st.lists(ID, max_size=40), st.sampled_from("ua"), st.sampled_from([UTF8, LARGE_UTF8]))
@settings(max_examples=100, deadline=None)
def test_any_text_equals_hashlib_or_is_refused_like_it(ids: list[str], id_type: str, kind):
    hi, lo, faults = hashed("default", id_type, ids, kind)
    for i, person_id in enumerate(ids):
        try:
            wanted = halves("default", id_type, person_id)
        except RequestError:
            assert faults[i] == TOO_LONG
        else:
            assert (int(hi[i]), int(lo[i]), faults[i]) == (*wanted, OK)


def test_lanes_do_not_leak_into_the_next_group():
    # Long ids, then short ones in the same lanes: a left-over word would change the second.
    ids = ["L" * 100] * LANES + [f"s{i}" for i in range(LANES + 7)]
    hi, lo, _ = hashed("default", "u", ids)
    assert [(int(hi[i]), int(lo[i])) for i in range(len(ids))] == [
        halves("default", "u", person_id) for person_id in ids
    ]


@pytest.mark.parametrize(
    ("person_id", "fault"),
    [
        ("", EMPTY),
        ("x" * 257, TOO_LONG),
        ("é" * 129, TOO_LONG),
        ("a\0b", HOLDS_NUL),
        ("\0", HOLDS_NUL),
        ("y" * 200 + "\0", HOLDS_NUL),
        ("x" * 256, OK),
    ],
)
def test_ids_that_key_bytes_refuses_are_faults(person_id: str, fault: int):
    _, _, faults = hashed("default", "u", ["before", person_id, "after"])
    assert faults.tolist() == [OK, fault, OK]


def test_no_ids_are_no_hashes():
    hi, lo, faults = hashed("default", "u", [])
    assert len(hi) == len(lo) == len(faults) == 0
