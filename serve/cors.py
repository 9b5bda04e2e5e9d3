"""What a page of another site may do, and how its browser is told (CORS).

Its one rule: only the list of a pk_ key opens anything. A browser asks first, without the key
(preflight): it is told yes if any pk_ key allows its origin; the key itself is held against its
own list when the request comes (serve/auth.py). No cookie or other credential of the browser's
own is ever involved.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import RequestError
from serve.auth import Keys, header_of
from serve.problems import Answer, Header, answer_of

METHODS = b"POST, OPTIONS"
PREFLIGHT_S = 600
"""How long a browser may remember a yes; Chrome keeps none longer than two hours."""
_BY_ORIGIN: Header = (b"vary", b"Origin")


def preflight(keys: Keys, headers: Sequence[Header]) -> Answer:
    """The answer to OPTIONS on a route that browsers may call: 204, or 403 for an origin that
    no pk_ key allows. Without Origin it only names the methods."""
    origin = header_of(headers, b"origin")
    allow = (b"allow", METHODS)
    if not origin:
        return Answer(204, b"", (allow,))
    if not keys.allows(origin):
        shown = origin.decode("latin-1")
        refused = answer_of(
            RequestError(403, "no key allows this origin", "Origin", shown, "an origin of a key")
        )
        return refused._replace(headers=(_BY_ORIGIN,))
    return Answer(
        204,
        b"",
        (
            allow,
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", b"POST"),
            (b"access-control-allow-headers", b"content-type, x-api-key, authorization"),
            (b"access-control-max-age", b"%d" % PREFLIGHT_S),
            _BY_ORIGIN,
        ),
    )


def readable(answer: Answer, keys: Keys, headers: Sequence[Header]) -> Answer:
    """The answer, with leave for the page that asked to read it if a key allows its origin."""
    origin = header_of(headers, b"origin")
    if not origin or not keys.allows(origin):
        return answer
    more = (
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"retry-after"),
        _BY_ORIGIN,
    )
    return answer._replace(headers=answer.headers + more)
