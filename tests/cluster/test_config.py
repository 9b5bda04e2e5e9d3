"""Settings: where they come from, what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import ENV_PREFIX, ENV_RESERVED, NAMES, Config, load
from cluster.errors import ConfigError


def test_flags_go_before_environment_before_file_before_defaults(tmp_path: Path) -> None:
    file = tmp_path / "onehop.toml"
    file.write_text("shards = 3\nport = 9001\ngateways = 5\n")
    environment = {"ONEHOP_SHARDS": "4", "ONEHOP_PORT": "9002", "HOME": "/root"}
    config = load(file, environment, {"port": 9003, "shards": None})
    assert (config.gateways, config.shards, config.port) == (5, 4, 9003)
    assert config.items_max == Config().items_max


def test_nothing_given_means_the_defaults_and_these_are_valid() -> None:
    assert load() == Config()
    assert msgspec.convert(msgspec.to_builtins(Config()), Config) == Config()


@pytest.mark.parametrize("reserved", sorted(ENV_RESERVED))
def test_names_that_others_read_are_no_settings(reserved: str) -> None:
    assert load(environment={reserved: "anything"}) == Config()
    assert reserved.removeprefix(ENV_PREFIX).lower() not in NAMES


@pytest.mark.parametrize("source", ["settings file", "environment", "flags"])
def test_an_unknown_name_is_refused_and_its_source_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{source}.*: unknown setting 'shard', wanted one of"):
        load_from(source, "shard", 2, tmp_path)


@pytest.mark.parametrize("source", ["settings file", "environment", "flags"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shards", 0),
        ("shards", 1025),
        ("shards", "many"),
        ("port", -1),
        ("port", 65536),
        ("request_timeout_s", 0),
        ("request_timeout_s", float("nan")),
        ("request_timeout_s", float("inf")),
        ("log_level", "LOUD"),
        ("demo", "perhaps"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_was_seen(
    source: str, name: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"{source}.*: {name}: .*, got '?{value}'?"):
        load_from(source, name, value, tmp_path)


def load_from(source: str, name: str, value: Any, folder: Path) -> Config:
    """The configuration with one setting from one source."""
    if source == "flags":
        return load(flags={name: value})
    if source == "environment":
        return load(environment={f"ONEHOP_{name.upper()}": str(value)})
    file = folder / "onehop.toml"
    file.write_text(f"{name} = {value!r}\n")
    return load(file)


@pytest.mark.parametrize(
    "content", [b"shards = ", b"\xff", b"shards = 2\nshards = 3"], ids=["cut", "bytes", "twice"]
)
def test_a_file_that_can_not_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load(file)
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load(tmp_path / "absent.toml")


@given(st.sampled_from(NAMES), st.text(st.characters(codec="utf-8"), max_size=20))
def test_any_text_in_the_environment_is_a_value_or_a_config_error(name: str, text: str) -> None:
    try:
        config = load(environment={f"ONEHOP_{name.upper()}": text})
    except ConfigError:
        return
    assert msgspec.convert(msgspec.to_builtins(config), Config) == config


def test_settings_never_change_after_they_were_read() -> None:
    with pytest.raises((AttributeError, FrozenInstanceError)):
        Config().port = 1  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(host: str, loopback: bool) -> None:
    assert Config(host=host).loopback is loopback


def test_paths_follow_the_data_dir_and_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert Config().data_path == Path("/home/ada/.onehop")
    assert Config(data_dir="/d").keys_path == Path("/d/keys.json")
    assert Config(data_dir="/d", keys_file="~/k").keys_path == Path("/home/ada/k")
