"""What a data folder was made for: it is never opened with settings that do not fit it.

Written when the first map is published, since from then on there is data to lose, and with every
map after it, so that epochs grow from one life of the cluster to the next.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from actors.wal import fsync_folder
from cluster.config import Config
from cluster.errors import ConfigError


class Layout(msgspec.Struct, frozen=True):
    """The settings on which the files of all shards depend, and the last epoch published."""

    shards: int
    ring_events_max: int
    epoch: int


class LayoutFile:
    """`shards/layout.json` of a data folder; with durability "memory" there is none."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._path = config.data_path / "shards" / "layout.json"

    def check(self) -> int:
        """The last epoch published; 0 if there was none.

        Raises ConfigError if the folder was made with other settings.
        """
        if self._config.durability != "disk":
            return 0
        try:
            layout = msgspec.json.decode(self._path.read_bytes(), type=Layout)
        except FileNotFoundError:
            return 0
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"layout file {self._path}: {error}") from None
        wanted: dict[str, Any] = msgspec.structs.asdict(layout)
        for name in ("shards", "ring_events_max"):
            got = getattr(self._config, name)
            if got != wanted[name]:
                raise ConfigError(
                    f"{name} must stay {wanted[name]} for the data in {self._config.data_path}, "
                    f"got {got}; change it back or name another data_dir"
                )
        return layout.epoch

    def save(self, epoch: int) -> None:
        """Make it durable that `epoch` was given out. Raises OSError."""
        if self._config.durability != "disk":
            return
        layout = Layout(self._config.shards, self._config.ring_events_max, epoch)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(layout))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._path)
        fsync_folder(self._path.parent)
