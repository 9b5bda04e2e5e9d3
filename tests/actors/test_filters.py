"""Filters against a plain loop over the items, and what can't be read."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.catalogue import Catalogue
from actors.filters import And, Compare, Filter, In, Not, Or, evaluate, parse
from actors.messages import Item
from cluster.errors import RequestError

ITEMS: list[dict[str, Any]] = [
    {"price": 5.0, "brand": "x", "new": True},
    {"price": 9.5, "brand": "y"},
    {"price": 20.0, "brand": "x", "new": False},
    {"brand": "it's"},
    {},
    {"price": "cheap", "brand": 7.0},
]


SIGNS: dict[str, Any] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def catalogue_of(items: list[dict[str, Any]]) -> Catalogue:
    catalogue = Catalogue(100)
    for number, attributes in enumerate(items):
        catalogue.put(Item(f"i{number}", attributes))
    return catalogue


CATALOGUE = catalogue_of(ITEMS)


def passing(text: str, **values: Any) -> list[int]:
    mask = evaluate(parse(text, values, "filter"), CATALOGUE)
    return [number for number, passed in enumerate(mask.tolist()) if passed]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("price < 9.5", [0]),
        ("price <= 9.5", [0, 1]),
        ("price > 5 AND price < 20", [1]),
        ("brand = 'x' OR brand = 'y'", [0, 1, 2]),
        ("brand = 'x' AND price > 5 OR brand = 'y'", [1, 2]),
        ("brand = 'x' AND (price > 5 OR brand = 'y')", [2]),
        ("NOT brand = 'x'", [1, 3, 4, 5]),
        ("brand != 'x'", [1, 3]),
        ("brand IN ('x', 'y')", [0, 1, 2]),
        ("brand NOT IN ('x', 'y')", [3, 4, 5]),
        ("brand = 'it''s'", [3]),
        ("new = TRUE", [0]),
        ("new = false", [2]),
        ("price != 5", [1, 2]),
        ("price IN (5, 20)", [0, 2]),
        ("nothing = 1", []),
        ("NOT nothing = 1", [0, 1, 2, 3, 4, 5]),
        ("price = -5e-1", []),
    ],
)
def test_a_filter_passes_what_it_says(text: str, expected: list[int]) -> None:
    assert passing(text) == expected


def test_names_are_filled_in_from_the_requests_values() -> None:
    assert passing("brand IN $b AND price <= $p", b=["x"], p=5.0) == [0]


UNREADABLE = [
    "",
    "price",
    "price <",
    "price < 'x'",
    "price ! 5",
    "AND",
    "(price < 5",
    "price < 5)",
    "price < 5 brand = 'x'",
    "brand IN ()",
    "brand IN ('x'",
    "brand IN 5",
    "brand IN $none",
    "price = $none",
    "price = $list",
    "'x' = brand",
    "price NOT < 5",
    "__import__('os')",
    "a = 'x",
    "a = 1 OR",
    "NOT",
    "(" * 50 + "a = 1" + ")" * 50,
    " OR ".join(["a = 1"] * 101),
    "a = 1 " * 400,
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cant_be_read_is_refused_with_the_place(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text, {"list": ["x"]}, "decisions[0].filter")
    assert caught.value.status == 422
    assert caught.value.field == "decisions[0].filter"
    assert caught.value.wanted


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(RequestError):
        parse(text, {}, "filter")


def passes(term: Filter, attributes: dict[str, Any]) -> bool:
    """The plain meaning of a filter, item by item."""
    match term:
        case And(terms):
            return all(passes(part, attributes) for part in terms)
        case Or(terms):
            return any(passes(part, attributes) for part in terms)
        case Not(part):
            return not passes(part, attributes)
        case In(name, values):
            return any(passes(Compare(name, "=", value), attributes) for value in values)
        case Compare(name, op, value):
            found = attributes.get(name)
            if found is None or isinstance(found, str) != isinstance(value, str):
                return False
            return bool(SIGNS[op](found, value))


scalars = st.sampled_from([0.0, 1.0, 2.5, "x", "y", True, False])
names = st.sampled_from(["a", "b"])
compares = st.builds(Compare, names, st.sampled_from(["=", "!="]), scalars) | st.builds(
    Compare, names, st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from([0.0, 1.0, 2.5])
)
filters = st.recursive(
    compares | st.builds(In, names, st.lists(scalars, max_size=3).map(tuple)),
    lambda part: (
        st.builds(Not, part)
        | st.builds(And, st.lists(part, min_size=1, max_size=3).map(tuple))
        | st.builds(Or, st.lists(part, min_size=1, max_size=3).map(tuple))
    ),
    max_leaves=8,
)


@given(filters, st.lists(st.dictionaries(names, scalars), max_size=8))
def test_columns_decide_as_a_plain_loop_does(term: Filter, items: list[dict[str, Any]]) -> None:
    mask = evaluate(term, catalogue_of(items))
    assert mask.tolist() == [passes(term, attributes) for attributes in items]
