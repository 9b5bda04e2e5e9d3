"""Who calls and whom the call is about. Pure."""

from __future__ import annotations

from typing import NamedTuple

from cluster.errors import RequestError
from cluster.keys import ANONYMOUS, USER, key_hash
from cluster.levels import LEVELS, Level

SECRET_ROLE = "s"
PUBLIC_ROLE = "p"


class Caller(NamedTuple):
    """What a key stands for. Role "s" may do all within its tenant; "p" is a browser's.

    durability  of messages that name none; None: the setting's
    """

    role: str
    tenant: str
    durability: Level | None = None

    @property
    def public(self) -> bool:
        return self.role == PUBLIC_ROLE


def parse_caller(meta: bytes) -> Caller:
    """The caller that a gateway speaks for, from a frame's meta, b"<role>:<tenant>[:<level>]".

    Raises RequestError if role or level is unknown or the tenant empty.
    """
    role, _, rest = meta.decode(errors="replace").partition(":")
    tenant, _, named = rest.partition(":")
    level = next((level for level in LEVELS if level == named), None)
    if role not in (SECRET_ROLE, PUBLIC_ROLE) or not tenant or (named and level is None):
        wanted = "<role>:<tenant>[:<level>]"
        raise RequestError(400, "the caller is not named", "meta", repr(meta), wanted)
    return Caller(role, tenant, level)


def person_key(caller: Caller, user_id: str | None, anonymous_id: str | None) -> bytes:
    """The key hash of the person a request is about; userId counts before anonymousId.

    Raises RequestError if neither or an unusable one is given, or if a public key names a user.
    """
    if user_id is not None:
        if caller.public:
            raise RequestError(
                403,
                "a public key may only speak for an anonymous visitor",
                "userId",
                repr(user_id),
                "anonymousId",
            )
        return key_hash(caller.tenant, USER, user_id)
    if anonymous_id is None:
        raise RequestError(422, "nobody is named", "userId", "nothing", "userId or anonymousId")
    return key_hash(caller.tenant, ANONYMOUS, anonymous_id)
