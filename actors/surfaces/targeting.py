"""Filters over what is known of a person, in the language of `actors.filters`. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from actors.filters import And, Compare, Filter, In, Not, Or

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def matches(term: Filter, known: Mapping[str, str | float | bool | None]) -> bool:
    """Whether a person passes a filter; what is not known passes no comparison.

    >>> matches(Compare("device", "=", "ios"), {"device": "ios"})
    True
    >>> matches(Compare("age", "!=", 3.0), {})
    False
    """
    match term:
        case And():
            return all(matches(one, known) for one in term.terms)
        case Or():
            return any(matches(one, known) for one in term.terms)
        case Not():
            return not matches(term.term, known)
        case In():
            return any(matches(Compare(term.name, "=", value), known) for value in term.values)
        case Compare():
            return _compare(term, known.get(term.name))


def _compare(term: Compare, value: str | float | bool | None) -> bool:
    if value is None or isinstance(value, str) != isinstance(term.value, str):
        return False
    if term.op in ("=", "!="):
        return (value == term.value) == (term.op == "=")
    return _ORDERS[term.op](value, term.value)
