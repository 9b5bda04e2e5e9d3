"""One route of the OpenAPI document, as data."""

from __future__ import annotations

from typing import Any, NamedTuple


class Operation(NamedTuple):
    """One row of the document.

    answer  None stands for an object that is not described
    query   parameters of the query: name, and "boolean" or "integer"
    failure what a 4xx looks like, if it is no problem document
    """

    method: str
    path: str
    summary: str
    request: Any = None
    answer: Any = None
    status: int = 200
    keys: tuple[str, ...] = ("sk_",)
    media: str = "application/json"
    query: tuple[tuple[str, str], ...] = ()
    failure: Any = None
