"""Calls about contacts as msgspec decodes them, and what they answer."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from actors.contact_rules import Channel
from actors.messages import Name, Strict

PURPOSES_MAX = 32
CHANNELS_MAX = 8


class Consents(Strict):
    """Body of `PUT /v1/profiles/{id}/consents`: by purpose, whether it was agreed to. Purposes that
    are not named stay as they are; null removes one."""

    consents: Annotated[dict[Name, bool | None], Meta(min_length=1, max_length=PURPOSES_MAX)]
    user_id: str | None = None
    anonymous_id: str | None = None


class Suppress(Strict):
    """Body of `POST /v1/profiles/{id}/suppress`.

    channels    none named: all
    until       ISO 8601 or milliseconds since 1970; None = for good
    suppressed  False lifts it
    """

    channels: Annotated[tuple[Channel, ...], Meta(max_length=CHANNELS_MAX)] = ()
    until: str | float | None = None
    suppressed: bool = True
    user_id: str | None = None
    anonymous_id: str | None = None


class Shown(msgspec.Struct, rename="camel", omit_defaults=True):
    """A message as `GET /v1/messages/{id}` tells of it."""

    id: str
    state: str
    channel: str
    webhook: str
    attempts: int
    due: str
    expires: str
    event: msgspec.Raw
    error: str = ""
