"""Keys and the cluster's secret as they lie on disk: read here, by gateways and shards alike."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cluster.config import Config
from cluster.errors import ConfigError
from cluster.levels import Level

Role = Literal["pk", "sk"]
# As a browser serializes it: lower case, no path, no slash at the end.
Origin = Annotated[str, Meta(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+)$", max_length=256)]

SECRET_BYTES = 32
LIVE_KEYS_MAX = 2
_ID_DIGITS = 12


def key_id(text: bytes) -> str:
    """How a key is named where the key itself must not be: the start of its SHA-256.

    >>> key_id(b"sk_example")
    '2408e9af1eb5'
    """
    return sha256(text).hexdigest()[:_ID_DIGITS]


class StoredKey(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A key at rest. Times are seconds since 1970; expires_at 0 means never.

    origins     of pages that may use this pk_ key, as browsers write them; "*" allows every page
    durability  of messages that name none; None: the setting's
    rate        messages a second that each gateway takes of this key; None: no bound
    burst       messages at once; None: as many as in one second
    """

    id: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    role: Role
    # Tenants have folders: "." and ".." are none of theirs.
    tenant: Annotated[str, Meta(pattern="^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$")]
    created_at: float
    expires_at: float = 0.0
    origins: tuple[Origin, ...] = ()
    durability: Level | None = None
    rate: Annotated[float, Meta(gt=0)] | None = None
    burst: Annotated[float, Meta(ge=1)] | None = None


def check_private(path: Path, what: str) -> None:
    """Raises ConfigError if others than its owner may read a file, OSError if there is none.

    A mounted Kubernetes Secret is root's, and the pod's own group may read it: that will do.
    """
    stat = path.stat()
    mounted = (
        stat.st_uid == 0 and os.getuid() != 0 and stat.st_gid in (*os.getgroups(), os.getgid())
    )
    if stat.st_mode & (0o037 if mounted else 0o077):
        raise ConfigError(f"{what} {path}: mode must be 0600, got {stat.st_mode & 0o777:04o}")


def read_keys(path: Path) -> list[StoredKey]:
    """The keys of a file; none if there is no file. Raises ConfigError if it can't be used."""
    try:
        check_private(path, "keys file")
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"keys file {path}: {error}") from None
    try:
        keys = msgspec.json.decode(data, type=list[StoredKey])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys file {path}: {error}") from None
    now = time.time()
    for key in keys:
        if key.origins and key.role != "pk":
            raise ConfigError(f"keys file {path}: origins are for pk_ keys, got some on {key.id}")
        live = sum(
            1
            for other in keys
            if (other.tenant, other.role) == (key.tenant, key.role)
            and (not other.expires_at or other.expires_at > now)
        )
        if live > LIVE_KEYS_MAX:
            raise ConfigError(
                f"keys file {path}: live {key.role}_ keys of tenant {key.tenant!r} "
                f"must be <= {LIVE_KEYS_MAX}, got {live}"
            )
    return keys


def read_secret(config: Config) -> bytes:
    """Raises ConfigError if the file is missing, readable by others or of another size."""
    path = config.secret_path
    try:
        check_private(path, "secret file")
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"secret file {path}: {error}") from None
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"secret file {path}: size must be {SECRET_BYTES}, got {len(secret)}")
    return secret
