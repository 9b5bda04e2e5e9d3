"""Who may connect to a shard: gateways by the cluster's secret, SDKs by their sk_ key."""

from __future__ import annotations

import time

from actors.people import SECRET_ROLE, Caller
from cluster.access import StoredKey, read_keys, read_secret
from cluster.config import Config

GATEWAY = "gateway"
RELOAD_S = 1.0


class Principals:
    """Answers who a hello speaks for. Reads the keys again, at most once per RELOAD_S."""

    def __init__(self, config: Config) -> None:
        self._path = config.keys_path
        self._secret = read_secret(config)
        self._keys: dict[str, StoredKey] = {}
        self._read_at_s = -RELOAD_S

    def secret_of(self, principal: str) -> tuple[bytes, Caller | None] | None:
        """(secret, caller) of a principal; caller None: each frame's meta names it. None: unknown.

        An SDK's secret is the SHA-256 of its key, which is what the keys file holds.
        """
        if principal == GATEWAY:
            return self._secret, None
        if time.monotonic() - self._read_at_s >= RELOAD_S:
            self._keys = {key.id: key for key in read_keys(self._path)}
            self._read_at_s = time.monotonic()
        key = self._keys.get(principal)
        # A browser's key must not reach a shard, nor one with a rate: only gateways limit those.
        if key is None or key.role != "sk" or key.rate is not None:
            return None
        if 0 < key.expires_at <= time.time():
            return None
        return bytes.fromhex(key.sha256), Caller(SECRET_ROLE, key.tenant, key.durability)
