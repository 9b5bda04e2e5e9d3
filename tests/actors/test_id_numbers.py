"""Look-up of whole arrays of ids, against a dict and a JSON decoder."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.id_numbers import IdNumbers

ODD_IDS = ["x", "with space", "ünïcode", 'quo"te', "b\\s", "a" * 256]
IDS = [*(f"item-{i}" for i in range(5000)), *ODD_IDS]


def table_of(ids: list[str]) -> IdNumbers:
    table = IdNumbers()
    for number, item_id in enumerate(ids):
        table.put(item_id, number)
    return table


TABLE = table_of(IDS)
NUMBERS = {item_id: number for number, item_id in enumerate(IDS)}


def test_plain_ids_get_the_numbers_that_a_dict_gives() -> None:
    generator = random.Random(1)
    plain = IDS[:5001]
    for n in (1, 2, 100, 1000):
        chosen = generator.choices(plain, k=n)
        for indent in (None, 0, 2):
            found = TABLE.of(json.dumps(chosen, indent=indent).encode())
            assert found is not None
            assert found.tolist() == [NUMBERS[item_id] for item_id in chosen]


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b'["ghost"]',
        b'["item-1","ghost"]',
        b'["item\\u002d1"]',
        b'[{"id":"item-1"}]',
        b'[""]',
        b"[1]",
        b'"item-1"',
        b"null",
        b"[",
        b'["item-1"',
        b'["item-1"  ',
        b'["item-1"  ] ',
        b"[   ",
        b"[  ]",
        b'["item-1",',
        b'["item-1"]]',
        b'["' + b"a" * 300 + b'"]',
        json.dumps(["item-1"] * 1001, separators=(",", ":")).encode(),
        '["ünïcode"]'.encode(),
    ],
)
def test_what_is_not_plain_or_not_known_is_left_to_the_caller(text: bytes) -> None:
    assert TABLE.of(text) is None


values = st.lists(st.sampled_from(IDS) | st.text(max_size=5) | st.integers(), max_size=6)


@given(values)
def test_a_found_number_is_always_the_right_one(entries: list[Any]) -> None:
    found = TABLE.of(msgspec.json.encode(entries))
    if found is not None:
        assert found.tolist() == [NUMBERS[entry] for entry in entries]


@given(st.binary(max_size=40))
def test_any_bytes_are_read_without_harm(text: bytes) -> None:
    TABLE.of(text or b" ")
