"""Who calls, and what they may do. Keys are kept as SHA-256 in one file of mode 0600.

A key is `<role>_<43 base64url characters><6 hex digits of checksum>`: 256 random bits that a
scanner can recognise. `sk_` (server) may do everything of its tenant; `pk_` (public, in
browsers) may only track and decide for its own anonymous visitor, and a page may use it only
if the key lists the page's origin. The tenant comes from the key, never from the body. Two keys
of one tenant and role may be live at once, for rotation.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from cluster.access import (
    SECRET_BYTES,
    Role,
    StoredKey,
    key_id,
    read_keys,
    read_secret,
)
from cluster.config import Config
from cluster.errors import VALUE_SHOWN_MAX, AuthError, ConfigError, RequestError
from cluster.levels import Level
from serve.problems import Header
from serve.rate_limit import Bucket

LOG = logging.getLogger("onehop.serve")

DEFAULT_TENANT = "default"
KEYS_ENV = "keys.env"
CACHED_MAX = 10_000
RELOAD_S = 1.0
ANY_ORIGIN = b"*"
_KEY = re.compile(rb"(pk|sk)_([A-Za-z0-9_-]{43})([0-9a-f]{6})")
_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))


class Caller(NamedTuple):
    """Who a request speaks for. `meta` is what the owner is told ("s:default").

    origins  of pages that may use this pk_ key
    bucket   bounds how much this gateway takes of the key; None: nothing does
    """

    role: Role
    tenant: str
    meta: bytes
    expires_at: float = float("inf")
    origins: frozenset[bytes] = frozenset()
    bucket: Bucket | None = None


def caller(
    role: Role,
    tenant: str,
    expires_at: float = 0.0,
    origins: frozenset[bytes] = frozenset(),
    durability: Level | None = None,
) -> Caller:
    """
    >>> caller("pk", "shop").meta, caller("sk", "shop", durability="memory").meta
    (b'p:shop', b's:shop:memory')
    """
    meta = ":".join((role[0], tenant, *([durability] if durability else []))).encode()
    return Caller(role, tenant, meta, expires_at or float("inf"), origins)


def generate_key(
    role: Role, tenant: str, now: float, expires_at: float = 0, origins: tuple[str, ...] = ()
) -> tuple[str, StoredKey]:
    """A new key as text, to be shown once, and as it is kept."""
    body = urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=")
    text = b"%b_%b%b" % (role.encode(), body, _checksum(role.encode(), body))
    digest = sha256(text).hexdigest()
    stored = StoredKey(key_id(text), digest, role, tenant, now, expires_at, origins)
    return text.decode(), stored


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, in one step: whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def write_keys(path: Path, keys: Iterable[StoredKey]) -> None:
    write_private(path, msgspec.json.format(msgspec.json.encode(list(keys)), indent=1) + b"\n")


class PlainKeys(NamedTuple):
    """The keys of the first local start, as text."""

    sk: str
    pk: str


def ensure_keys(config: Config, now: float) -> PlainKeys | None:
    """See to it that there are keys. Returns those of `keys.env`, or None if an operator made them.

    A loopback host gets a pair at its first start. Raises ConfigError for another host without
    keys: nobody may be served there without one.
    """
    path = config.keys_path
    environment = config.data_path / KEYS_ENV
    if read_keys(path):
        return read_environment(environment)
    if not config.loopback:
        raise ConfigError(f"host {config.host} needs keys, and there are none in {path}")
    (sk, sk_stored), (pk, pk_stored) = (
        generate_key(role, DEFAULT_TENANT, now) for role in ("sk", "pk")
    )
    write_keys(path, [sk_stored, pk_stored])
    write_private(environment, f"ONEHOP_API_KEY={sk}\nONEHOP_BROWSER_KEY={pk}\n".encode())
    return PlainKeys(sk, pk)


def ensure_secret(config: Config) -> bytes:
    """The secret that gateways and shards share: made at the first start, then read."""
    path = config.secret_path
    if not path.exists():
        write_private(path, secrets.token_bytes(SECRET_BYTES))
    return read_secret(config)


class Keys:
    """Answers who a request's headers speak for. Reads the file again when it changes.

    keyless  whether a request without a key, from a loopback name, is served as sk_ of "default"
    """

    def __init__(self, path: Path, keyless: bool, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._keyless = caller("sk", DEFAULT_TENANT) if keyless else None
        self._verified: dict[bytes, Caller] = {}
        self._buckets: dict[str, Bucket] = {}
        self._stamp: tuple[int, int] | None = None
        self._checked_at = 0.0
        self._stored: list[StoredKey] = []
        self.origins: frozenset[bytes] = frozenset()
        """Origins that any pk_ key allows."""
        self._reload()

    def caller_of(self, headers: Sequence[Header]) -> Caller:
        """Who sends these headers (names lower case). Raises AuthError or RequestError (403)."""
        host = origin = b""
        for name, value in headers:
            if name == b"x-api-key" or name == b"authorization":
                found = self.caller_of_key(value)
                if found.role == "pk":
                    _check_origin(found, headers)
                return found
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        return self._keyless_caller(host, origin)

    def caller_of_key(self, value: bytes) -> Caller:
        """Who holds this key, given plainly or as "Bearer <key>". Raises AuthError."""
        now = self._clock()
        if now - self._checked_at >= RELOAD_S:
            self._reload()
        found = self._verified.get(value)
        if found is None:
            found = self._verify(value, now)
            if len(self._verified) >= CACHED_MAX:
                self._verified.clear()
            self._verified[value] = found
        if found.expires_at <= now:
            raise AuthError("the key has expired")
        return found

    def allows(self, origin: bytes) -> bool:
        """Whether any pk_ key allows pages of this origin."""
        if self._clock() - self._checked_at >= RELOAD_S:
            self._reload()
        return origin in self.origins or ANY_ORIGIN in self.origins

    def _keyless_caller(self, host: bytes, origin: bytes) -> Caller:
        if self._keyless is None:
            raise AuthError("send X-API-Key or Authorization: Bearer")
        # A page of another site can reach a loopback port, by its own name after DNS
        # rebinding or by a plain cross-site request: only loopback names get the free pass.
        if not _is_loopback_name(host):
            raise AuthError(f"without a key the Host must be a loopback name, got {_shown(host)}")
        if origin and not _is_loopback_name(urlsplit(origin.decode("latin-1")).netloc.encode()):
            raise RequestError(
                403, "another site's page needs a key", "Origin", _shown(origin), "a loopback name"
            )
        return self._keyless

    def _verify(self, value: bytes, now: float) -> Caller:
        scheme, _, rest = value.partition(b" ")
        text = rest.strip() if scheme.lower() == b"bearer" else value
        matched = _KEY.fullmatch(text)
        if matched is None:
            raise AuthError("the key is malformed, wanted pk_... or sk_...")
        role, body, checksum = matched.groups()
        if checksum != _checksum(role, body):
            raise AuthError("the key's checksum is wrong: mistyped or cut off")
        digest = sha256(text).hexdigest()
        match: StoredKey | None = None
        for key in self._stored:
            # Compare with every key, so that the time taken tells nothing about which.
            if hmac.compare_digest(key.sha256, digest):
                match = key
        if match is None or match.role != role.decode():
            raise AuthError("the key is unknown")
        origins = frozenset(origin.encode() for origin in match.origins)
        found = caller(match.role, match.tenant, match.expires_at, origins, match.durability)
        return found._replace(bucket=self._bucket(match))

    def _bucket(self, key: StoredKey) -> Bucket | None:
        """A key's bucket: the same one as long as its rate is, though the file is read again."""
        if key.rate is None:
            return None
        burst = key.burst or max(key.rate, 1.0)
        bucket = self._buckets.get(key.id)
        if bucket is None or (bucket.rate, bucket.burst) != (key.rate, burst):
            bucket = self._buckets[key.id] = Bucket(key.rate, burst)
        return bucket

    def _reload(self) -> None:
        self._checked_at = self._clock()
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
        except OSError:
            stamp = None
        if stamp == self._stamp and stamp is not None:
            return
        try:
            self._stored = read_keys(self._path)
        except ConfigError as error:
            if self._stamp is None:
                raise
            # A file that someone is editing must not take the service down: the last
            # good keys stay in force, and the log says so.
            LOG.error("keys not reloaded: %s", error)
        self._stamp = stamp
        self._verified.clear()
        known = {key.id for key in self._stored}
        self._buckets = {name: one for name, one in self._buckets.items() if name in known}
        self.origins = frozenset(origin.encode() for key in self._stored for origin in key.origins)


def header_of(headers: Sequence[Header], wanted: bytes) -> bytes:
    """The first value under a lower-case name; empty without one."""
    for name, value in headers:
        if name == wanted:
            return value
    return b""


def read_environment(path: Path) -> PlainKeys | None:
    """The keys of a `keys.env`; None without such a file."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    values = dict(line.partition("=")[::2] for line in lines)
    return PlainKeys(values.get("ONEHOP_API_KEY", ""), values.get("ONEHOP_BROWSER_KEY", ""))


def _checksum(role: bytes, body: bytes) -> bytes:
    return sha256(role + b"_" + body).hexdigest()[:6].encode()


def _check_origin(caller: Caller, headers: Sequence[Header]) -> None:
    """Raises RequestError (403) if a pk_ key is used by a page whose origin it does not list.

    A request without Origin does not come from a page."""
    origin = header_of(headers, b"origin")
    if origin and origin not in caller.origins and ANY_ORIGIN not in caller.origins:
        raise RequestError(
            403, "the key is not for this origin", "Origin", _shown(origin), "one it lists"
        )


def _is_loopback_name(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        return name[1:].partition("]")[0] in _LOOPBACK_NAMES
    return name.partition(":")[0] in _LOOPBACK_NAMES


def _shown(value: bytes) -> str:
    return repr(value[:VALUE_SHOWN_MAX].decode("latin-1"))
