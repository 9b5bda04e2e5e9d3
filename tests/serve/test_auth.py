from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from cluster.access import check_private, read_keys, read_secret
from cluster.config import Config
from cluster.errors import AuthError, ConfigError, RequestError
from serve.auth import (
    Keys,
    ensure_keys,
    ensure_secret,
    generate_key,
    write_keys,
)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def keys_of(path: Path, clock: Clock | None = None, keyless: bool = False) -> Keys:
    return Keys(path, keyless, clock or Clock())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_names_its_role_and_tenant(path: Path):
    sk, sk_stored = generate_key("sk", "shop", 0)
    pk, pk_stored = generate_key("pk", "shop", 0)
    write_keys(path, [sk_stored, pk_stored])
    keys = keys_of(path)
    assert keys.caller_of([(b"x-api-key", sk.encode())])[:3] == ("sk", "shop", b"s:shop")
    assert keys.caller_of([(b"authorization", b"Bearer " + pk.encode())]).meta == b"p:shop"


def test_the_file_holds_no_key_and_only_its_owner_reads_it(path: Path):
    text, stored = generate_key("sk", "shop", 0)
    write_keys(path, [stored])
    assert text.encode() not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_others_may_read_is_refused(path: Path):
    write_keys(path, [])
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="mode must be 0600, got 0640"):
        keys_of(path)


@pytest.mark.parametrize("at", [3, 20, 47, 50])
def test_one_changed_character_is_refused(path: Path, at: int):
    text, stored = generate_key("sk", "shop", 0)
    write_keys(path, [stored])
    wrong = text[:at] + ("a" if text[at] != "a" else "b") + text[at + 1 :]
    with pytest.raises(AuthError):
        keys_of(path).caller_of_key(wrong.encode())


def test_a_wrong_key_is_never_answered_as_keyless(path: Path):
    write_keys(path, [])
    other, _ = generate_key("sk", "shop", 0)
    with pytest.raises(AuthError, match="unknown"):
        keys_of(path, keyless=True).caller_of(
            [(b"host", b"localhost"), (b"x-api-key", other.encode())]
        )


def test_a_key_expires_also_when_it_was_verified_before(path: Path):
    clock = Clock()
    text, stored = generate_key("sk", "shop", 0, expires_at=clock.now + 10)
    write_keys(path, [stored])
    keys = keys_of(path, clock)
    assert keys.caller_of_key(text.encode()).tenant == "shop"
    clock.now += 11
    with pytest.raises(AuthError, match="expired"):
        keys.caller_of_key(text.encode())


def test_a_withdrawn_key_stops_and_a_new_one_works_without_a_restart(path: Path):
    clock = Clock()
    old, old_stored = generate_key("sk", "shop", 0)
    write_keys(path, [old_stored])
    keys = keys_of(path, clock)
    keys.caller_of_key(old.encode())
    new, new_stored = generate_key("sk", "shop", 0)
    write_keys(path, [new_stored])
    clock.now += 2
    with pytest.raises(AuthError):
        keys.caller_of_key(old.encode())
    assert keys.caller_of_key(new.encode()).tenant == "shop"


def test_a_broken_file_leaves_the_last_good_keys_in_force(path: Path):
    clock = Clock()
    text, stored = generate_key("sk", "shop", 0)
    write_keys(path, [stored])
    keys = keys_of(path, clock)
    path.write_bytes(b"[")
    clock.now += 2
    assert keys.caller_of_key(text.encode()).tenant == "shop"


def test_three_live_keys_of_one_role_are_refused_and_expired_ones_do_not_count(path: Path):
    stored = [generate_key("sk", "shop", 0)[1] for _ in range(3)]
    write_keys(path, stored)
    with pytest.raises(ConfigError, match="must be <= 2, got 3"):
        read_keys(path)
    write_keys(path, [*stored[:2], msgspec.structs.replace(stored[2], expires_at=1.0)])
    assert len(read_keys(path)) == 3


@pytest.mark.parametrize("host", [b"localhost:8000", b"127.0.0.1", b"[::1]:8000", b"LOCALHOST"])
def test_without_a_key_a_loopback_name_is_served(path: Path, host: bytes):
    keys = keys_of(path, keyless=True)
    assert keys.caller_of([(b"host", host)]).meta == b"s:default"


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example", b"", b"10.0.0.1"])
def test_without_a_key_another_name_is_refused_as_dns_rebinding(path: Path, host: bytes):
    with pytest.raises(AuthError, match="loopback name"):
        keys_of(path, keyless=True).caller_of([(b"host", host)])


def test_without_a_key_another_sites_page_is_refused(path: Path):
    keys = keys_of(path, keyless=True)
    host = (b"host", b"127.0.0.1:8000")
    keys.caller_of([host, (b"origin", b"http://localhost:3000")])
    for origin in (b"https://evil.example", b"null", b"http://localhost.evil.example"):
        with pytest.raises(RequestError) as caught:
            keys.caller_of([host, (b"origin", origin)])
        assert caught.value.status == 403


def test_without_a_key_nobody_is_served_unless_allowed(path: Path):
    with pytest.raises(AuthError, match="X-API-Key"):
        keys_of(path).caller_of([(b"host", b"localhost")])


def test_the_first_local_start_makes_keys_once(tmp_path: Path):
    config = Config(data_dir=str(tmp_path))
    made = ensure_keys(config, 0)
    assert made is not None
    assert ensure_keys(config, 0) == made
    assert keys_of(config.keys_path).caller_of_key(made.sk.encode()).role == "sk"
    assert os.stat(tmp_path / "keys.env").st_mode & 0o777 == 0o600


def test_another_address_without_keys_refuses(tmp_path: Path):
    with pytest.raises(ConfigError, match="needs keys"):
        ensure_keys(Config(host="0.0.0.0", data_dir=str(tmp_path)), 0)


def test_the_secret_is_made_once_and_private(tmp_path: Path):
    config = Config(data_dir=str(tmp_path))
    assert ensure_secret(config) == ensure_secret(config) == read_secret(config)
    (tmp_path / "cluster.secret").chmod(0o644)
    with pytest.raises(ConfigError, match="0600"):
        read_secret(config)


def test_a_secret_file_of_its_own_is_read_and_made_there(tmp_path: Path):
    config = Config(data_dir=str(tmp_path), secret_file=str(tmp_path / "mounted" / "secret"))
    assert ensure_secret(config) == (tmp_path / "mounted" / "secret").read_bytes()
    assert not (tmp_path / "cluster.secret").exists()


@pytest.mark.parametrize(
    ("mode", "owner", "ours", "fine"),
    [
        (0o400, 0, 10001, True),
        (0o440, 0, 10001, True),  # a Secret that Kubernetes mounted
        (0o460, 0, 10001, False),  # whom else its group has may write it
        (0o444, 0, 10001, False),
        (0o440, 10001, 10001, False),  # our own file, opened to a group by somebody
        (0o440, 0, 0, False),
    ],
)
def test_only_a_mounted_secret_may_be_read_by_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, ours: int, fine: bool
):
    path = tmp_path / "secret"
    path.write_bytes(bytes(32))
    path.chmod(mode)
    seen = list(path.stat())
    seen[4:6] = owner, 10001
    monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat_result(seen))
    monkeypatch.setattr(os, "getuid", lambda: ours)
    monkeypatch.setattr(os, "getgroups", lambda: [10001])
    if fine:
        check_private(path, "secret file")
    else:
        with pytest.raises(ConfigError, match="mode must be 0600"):
            check_private(path, "secret file")
