"""At which level a message is acknowledged: its own wish, else its key's, else the setting.

The rule: a level that can't be given is refused before anything changes, and never lowered.
"""

from __future__ import annotations

import re

from actors.journal import Journal
from actors.people import Caller
from cluster.errors import RequestError
from cluster.levels import LEVELS, Level

_NAMED = re.compile(rb'"durability":"[a-z]+"')


def level_of(asked: Level | None, caller: Caller, default: Level, journal: Journal | None) -> Level:
    """The level of a message. Raises RequestError (503) if it is not to be had now.

    asked    what the message says; None: what the caller's key says, or else the setting `default`
    journal  None: there is no log, and no more is kept than `default` says
    """
    level = asked or caller.durability or default
    if level == "memory" or level == default == "disk":
        return level
    offered = (default,) if journal is None else journal.levels
    if level in offered:
        return level
    lower = LEVELS[: LEVELS.index(level)]
    raise RequestError(
        503,
        "this durability can't be given now, and nothing was applied",
        "durability",
        repr(level),
        " or ".join(repr(name) for name in lower if name == "memory" or name in offered),
    )


def at_level(answer: bytes, level: Level) -> bytes:
    """A stored answer that names the level at which it is given this time.

    >>> at_level(b'{"profileVersion":1,"durability":"memory"}', "disk")
    b'{"profileVersion":1,"durability":"disk"}'
    """
    # The first is the answer's own: ids and names that a caller chose stand behind it.
    return _NAMED.sub(b'"durability":"%b"' % level.encode(), answer, count=1)
