"""Filters over item attributes: a small language, parsed and checked, never evaluated as code.

    filter      = conjunction { OR conjunction }
    conjunction = negation { AND negation }
    negation    = NOT negation | ( filter ) | comparison
    comparison  = name sign value | name [NOT] IN list
    sign        = "=" | "!=" | "<" | "<=" | ">" | ">="
    list        = "(" value { "," value } ")" | $name
    value       = number | 'text' | TRUE | FALSE | $name

`stock > 0 AND category IN $c AND NOT brand = 'x'`. A `$name` stands for an entry of the request's
`filterValues`. An item without the attribute, or with one of another type, fails a comparison;
so NOT of it holds.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import RequestError

if TYPE_CHECKING:
    from actors.catalogue import Catalogue

FILTER_CHARS_MAX = 1000
TERMS_MAX = 100
DEPTH_MAX = 16

Scalar = str | float | bool
Values = Mapping[str, "Scalar | list[Scalar]"]
Mask = NDArray[np.bool_]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|'(?P<text>(?:[^']|'')*)'"
    r"|\$(?P<value>\w+)|(?P<word>[A-Za-z_][\w.-]*)|(?P<sign><=|>=|!=|[=<>(),]))"
)
_KEYWORDS = frozenset(("AND", "OR", "NOT", "IN", "TRUE", "FALSE"))
SIGNS: dict[str, Callable[[Any, float], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Compare(NamedTuple):
    """attribute OP value."""

    name: str
    op: str
    value: Scalar


class In(NamedTuple):
    """attribute IN values."""

    name: str
    values: tuple[Scalar, ...]


class Not(NamedTuple):
    term: Filter


class And(NamedTuple):
    terms: tuple[Filter, ...]


class Or(NamedTuple):
    terms: tuple[Filter, ...]


Filter = Compare | In | Not | And | Or


def parse(text: str, values: Values, field: str) -> Filter:
    """The filter that `text` describes, its $names filled in from `values`.

    Raises RequestError (422) naming `field`, the place and what was expected there.

    >>> parse("NOT brand IN $b", {"b": ["x", "y"]}, "filter")
    Not(term=In(name='brand', values=('x', 'y')))
    """
    return _Parser(text, values, field).parse()


class _Parser:
    """Recursive descent over the tokens; depth and number of terms are bounded."""

    def __init__(self, text: str, values: Values, field: str) -> None:
        self._field = field
        if len(text) > FILTER_CHARS_MAX:
            raise self._error(f"{len(text)} characters", f"at most {FILTER_CHARS_MAX} characters")
        self._values = values
        self._tokens: list[tuple[str, str]] = []
        self._at = 0
        self._terms = 0
        self._read(text)

    def parse(self) -> Filter:
        found = self._or(0)
        if self._at < len(self._tokens):
            raise self._error(self._seen(), "AND, OR or the end")
        return found

    def _read(self, text: str) -> None:
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error(repr(text[at : at + 20]), "an attribute, a value or a comparison")
            kind = match.lastgroup or ""
            token = match[kind]
            if kind == "word" and token.upper() in _KEYWORDS:
                kind, token = "key", token.upper()
            self._tokens.append((kind, token))
            at = match.end()

    def _or(self, depth: int) -> Filter:
        terms = [self._and(depth)]
        while self._take("key", "OR"):
            terms.append(self._and(depth))
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _and(self, depth: int) -> Filter:
        terms = [self._not(depth)]
        while self._take("key", "AND"):
            terms.append(self._not(depth))
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _not(self, depth: int) -> Filter:
        if depth > DEPTH_MAX:
            raise self._error(self._seen(), f"at most {DEPTH_MAX} levels")
        if self._take("key", "NOT"):
            return Not(self._not(depth + 1))
        if self._take("sign", "("):
            found = self._or(depth + 1)
            if not self._take("sign", ")"):
                raise self._error(self._seen(), "')'")
            return found
        return self._comparison()

    def _comparison(self) -> Filter:
        self._terms += 1
        if self._terms > TERMS_MAX:
            raise self._error(f"{self._terms} comparisons", f"at most {TERMS_MAX}")
        kind, name = self._next()
        if kind != "word":
            raise self._error(name, "the name of an attribute")
        negated = self._take("key", "NOT")
        if self._take("key", "IN"):
            found = In(name, self._list())
            return Not(found) if negated else found
        kind, op = self._next()
        if negated or kind != "sign" or op not in SIGNS:
            raise self._error(op, "IN" if negated else "=, !=, <, <=, >, >= or IN")
        value = self._value()
        if op not in ("=", "!=") and isinstance(value, str):
            raise self._error(repr(value), f"a number after {op}")
        return Compare(name, op, value)

    def _list(self) -> tuple[Scalar, ...]:
        kind, token = self._next()
        if kind == "value":
            found = self._values.get(token)
            if not isinstance(found, list):
                raise self._error(f"${token}", "a list in filterValues")
            return tuple(found)
        if (kind, token) != ("sign", "("):
            raise self._error(token, "'(' or a $name")
        values = [self._value()]
        while self._take("sign", ","):
            values.append(self._value())
        if not self._take("sign", ")"):
            raise self._error(self._seen(), "',' or ')'")
        return tuple(values)

    def _value(self) -> Scalar:
        kind, token = self._next()
        if kind == "number":
            return float(token)
        if kind == "text":
            return token.replace("''", "'")
        if kind == "key" and token in ("TRUE", "FALSE"):
            return token == "TRUE"
        if kind == "value":
            found = self._values.get(token)
            if found is None or isinstance(found, list):
                raise self._error(f"${token}", "one value in filterValues")
            return found
        raise self._error(token, "a number, 'text', TRUE, FALSE or a $name")

    def _next(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            return "end", "the end"
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, kind: str, token: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == (kind, token):
            self._at += 1
            return True
        return False

    def _seen(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else "the end"

    def _error(self, seen: str, wanted: str) -> RequestError:
        return RequestError(422, "the filter can't be read", self._field, seen, wanted)


def evaluate(term: Filter, catalogue: Catalogue) -> Mask:
    """Which items pass, bool [n] over all item numbers."""
    if isinstance(term, Compare):
        return _compare(term, catalogue)
    if isinstance(term, In):
        masks = [_compare(Compare(term.name, "=", value), catalogue) for value in term.values]
        return np.logical_or.reduce(masks) if masks else np.zeros(catalogue.n, np.bool_)
    if isinstance(term, Not):
        return ~evaluate(term.term, catalogue)
    join = np.logical_and if isinstance(term, And) else np.logical_or
    joined: Mask = join.reduce([evaluate(part, catalogue) for part in term.terms])
    return joined


def _compare(term: Compare, catalogue: Catalogue) -> Mask:
    column = catalogue.columns.get(term.name)
    if column is None:
        return np.zeros(catalogue.n, np.bool_)
    if isinstance(term.value, str):
        codes = column.codes[: catalogue.n]
        code = column.numbers_of_text.get(term.value, -1)
        same: Mask = codes == code
        return same if term.op == "=" else ~same & (codes != 0)
    numbers, known = column.numbers[: catalogue.n], column.is_number[: catalogue.n] != 0
    value = float(term.value)
    passed: Mask = known & SIGNS[term.op](numbers, value)
    return passed
