"""Every failure as one shape: an RFC 9457 problem document. Status, body and headers.

Rule: whatever the caller did wrong is a 4xx that names field, seen and wanted; a 5xx
says that a retry with the same messageId is safe.
"""

from __future__ import annotations

import logging
import math
import re
from typing import NamedTuple

import msgspec

from actors.messages import Problem, problem
from cluster.errors import AuthError, Overloaded, ReadOnly, RequestError, StoreFull, Unavailable
from serve.rate_limit import RateLimited

Header = tuple[bytes, bytes]

LOG = logging.getLogger("onehop.serve")

RETRY_AFTER_S = 1
JSON_TYPE: Header = (b"content-type", b"application/json")
RETRY_LATER: dict[int, tuple[Header, ...]] = {
    status: ((b"retry-after", str(RETRY_AFTER_S).encode()),) for status in (429, 503)
}
"""The headers of a status after which a retry may help, whoever gave it."""
PROBLEM_TYPE: Header = (b"content-type", b"application/problem+json")

# msgspec says "Expected `str | null`, got `int` - at `$.userId`".
_MISMATCH = re.compile(r"Expected (.+), got (.+?)(?: - at `\$?\.?(.*)`)?$")
_CHOICE = re.compile(r"Invalid enum value (.+?)(?: - at `\$?\.?(.*)`)?$")
_PLACE = re.compile(r"^(.*?) - at `\$?\.?(.*)`$")


class Answer(NamedTuple):
    """One HTTP answer: `headers` are those beside content-type and content-length."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()


def malformed(error: Exception) -> RequestError:
    """The RequestError of a failed msgspec decode: 422 if a value does not fit, else 400.

    >>> str(malformed(msgspec.ValidationError("Expected `str`, got `int` - at `$.userId`")))
    'userId: a value does not fit, got int, wanted str'
    """
    if isinstance(error, msgspec.ValidationError):
        text = str(error)
        if found := _MISMATCH.match(text):
            wanted, seen, field = (part or "" for part in found.groups())
            return RequestError(
                422, "a value does not fit", field, seen.strip("`"), wanted.strip("`")
            )
        if chosen := _CHOICE.match(text):
            seen, field = (part or "" for part in chosen.groups())
            wanted = "one of the values that the API names"
            return RequestError(422, "a value is unknown", field, seen, wanted)
        if placed := _PLACE.match(text):
            text, field = placed.groups()
            return RequestError(422, text, field)
        return RequestError(422, text)
    if isinstance(error, RecursionError):
        return RequestError(400, "the JSON is nested too deep")
    if isinstance(error, UnicodeDecodeError):
        return RequestError(400, "the body is not valid UTF-8", wanted="UTF-8")
    return RequestError(400, "the body is not valid JSON", "", str(error), "JSON (RFC 8259)")


DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What a msgspec decoder raises on bytes from outside."""


def too_large(what: str, seen_bytes: int, bytes_max: int) -> RequestError:
    return RequestError(413, f"{what} is too large", "", f"{seen_bytes} bytes", f"<= {bytes_max}")


def late_body() -> RequestError:
    return RequestError(408, "the body did not arrive in time")


def answer_of(error: Exception) -> Answer:
    """The answer to a failure. Errors that are not ours become a 500 without their text, which
    goes to the log."""
    if isinstance(error, RequestError):
        # The rest of a late body may never come.
        headers = ((b"connection", b"close"),) if error.status == 408 else ()
        return Answer(error.status, problem(error), headers)
    if isinstance(error, DECODE_ERRORS):
        return answer_of(malformed(error))
    if isinstance(error, AuthError):
        challenge = ((b"www-authenticate", b'Bearer realm="onehop"'),)
        return Answer(401, _document(401, "the key is missing or not valid", str(error)), challenge)
    if isinstance(error, RateLimited):
        header = (b"retry-after", b"%d" % math.ceil(error.retry_after_s))
        return Answer(429, _document(429, "the key's rate is used up", str(error)), (header,))
    if isinstance(error, Overloaded):
        return _later(429, "too many requests are in flight", str(error))
    if isinstance(error, ReadOnly):
        return _later(503, "nothing can be changed now", str(error))
    if isinstance(error, Unavailable):
        return _later(503, "the owner can't be reached, retry with the same messageId", str(error))
    if isinstance(error, StoreFull):
        return _later(503, "the memory ceiling is reached", str(error))
    LOG.error("unexpected error", exc_info=error)
    return Answer(500, _document(500, "an internal error happened, retry with the same messageId"))


def http_problem(status: int, title: str, detail: str = "") -> Answer:
    """A problem document that has no field."""
    return Answer(status, _document(status, title, detail))


def _later(status: int, title: str, detail: str) -> Answer:
    return Answer(status, _document(status, title, detail), RETRY_LATER[status])


def _document(status: int, title: str, detail: str = "") -> bytes:
    return msgspec.json.encode(Problem(title, status, detail=detail))
