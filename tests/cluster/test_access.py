"""Keys as they lie on disk."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cluster.access import StoredKey, read_keys
from cluster.errors import ConfigError


def write(path: Path, tenant: str) -> None:
    path.write_bytes(msgspec.json.encode([StoredKey("k", "0" * 64, "sk", tenant, 1.0)]))
    path.chmod(0o600)


def test_a_tenant_can_be_the_name_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for tenant in ("default", "a", "shop-1.eu", "x" * 64):
        write(path, tenant)
        assert read_keys(path)[0].tenant == tenant
    for tenant in ("", ".", "..", "../models", "a/b", ".hidden", "x" * 65):
        write(path, tenant)
        with pytest.raises(ConfigError, match="tenant"):
            read_keys(path)
