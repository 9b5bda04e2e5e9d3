"""The error tree. Every failure that crosses a module boundary is one of these.

Errors that cross processes take positional arguments only, so that they pickle.
A `RequestError` becomes an RFC 9457 problem document: it names the field, the
value seen and the value wanted.
"""

from __future__ import annotations

VALUE_SHOWN_MAX = 80


class OnehopError(Exception):
    """Root of all errors raised by onehop."""


class ConfigError(OnehopError):
    """A setting is unknown, has the wrong type or is out of bounds."""


class FrameError(OnehopError):
    """Bytes on a connection are not a valid frame; the connection must be closed."""


class AuthError(OnehopError):
    """A hello, key or token is missing or wrong."""


class Unavailable(OnehopError):
    """The owner can't be reached within the deadline; retry with the same messageId."""


class ReadOnly(Unavailable):
    """The disk is full: until there is room again nothing changes, and reads are served."""


class Overloaded(OnehopError):
    """More requests are in flight than the bound allows; retry after a pause."""


class StoreFull(OnehopError):
    """The memory ceiling is reached and nothing may be evicted."""


class IllegalTransition(OnehopError):
    """A bug: an event that can't happen in this state of a state machine. Nothing has changed."""


class RequestError(OnehopError):
    """The caller's input is wrong. State is unchanged.

    status  HTTP status, 4xx
    title   what is wrong, one sentence without the value
    field   path of the offending field, "" if there is none
    seen    the value that was seen, cut to VALUE_SHOWN_MAX characters
    wanted  what would have been accepted
    """

    def __init__(
        self, status: int, title: str, field: str = "", seen: str = "", wanted: str = ""
    ) -> None:
        super().__init__(status, title, field, seen, wanted)
        self.status = status
        self.title = title
        self.field = field
        self.seen = seen if len(seen) <= VALUE_SHOWN_MAX else seen[: VALUE_SHOWN_MAX - 1] + "…"
        self.wanted = wanted

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        seen = f", got {self.seen}" if self.seen else ""
        wanted = f", wanted {self.wanted}" if self.wanted else ""
        return f"{where}{self.title}{seen}{wanted}"
