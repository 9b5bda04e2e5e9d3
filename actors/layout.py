"""The layout file of data folders from before there were claims: read once, to take them over."""

from __future__ import annotations

import msgspec

from cluster.config import Config
from cluster.errors import ConfigError


class Layout(msgspec.Struct, frozen=True):
    """The settings on which the files of all shards depend, and the last epoch published."""

    shards: int
    ring_events_max: int
    epoch: int


def old_layout(config: Config) -> Layout | None:
    """`shards/layout.json`; None if there is none. Raises ConfigError if it can't be read."""
    path = config.data_path / "shards" / "layout.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Layout)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"layout file {path}: {error}") from None
