"""The error tree."""

from __future__ import annotations

import pickle

import pytest

from cluster import errors
from cluster.errors import VALUE_SHOWN_MAX, OnehopError, RequestError

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, Exception)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_a_onehop_error(kind: type[Exception]) -> None:
    assert issubclass(kind, OnehopError)


@pytest.mark.parametrize(
    "error",
    [
        *(kind("why") for kind in CLASSES if kind is not RequestError),
        RequestError(422, "title", "field", "seen", "wanted"),
        RequestError(400, "title"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_crosses_processes_unchanged(error: OnehopError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_a_request_error_names_field_seen_and_wanted() -> None:
    error = RequestError(422, "the number does not fit", "events[0].value", "1e99", "<= 1e15")
    assert str(error) == "events[0].value: the number does not fit, got 1e99, wanted <= 1e15"
    assert str(RequestError(400, "the body is empty")) == "the body is empty"


def test_a_long_value_is_cut_so_that_answers_and_logs_stay_small() -> None:
    fits, long = "x" * VALUE_SHOWN_MAX, "x" * (VALUE_SHOWN_MAX + 1)
    assert RequestError(422, "t", "f", fits).seen == fits
    assert RequestError(422, "t", "f", long).seen == "x" * (VALUE_SHOWN_MAX - 1) + "…"
