"""A data folder refuses settings that it was not made for, and remembers its epoch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from actors.layout import LayoutFile
from cluster.config import Config
from cluster.errors import ConfigError


def test_a_folder_keeps_its_shards_and_its_ring(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path), shards=2, ring_events_max=50)
    assert LayoutFile(config).check() == 0
    LayoutFile(config).save(7)
    assert LayoutFile(config).check() == 7
    for name, other in (("shards", 4), ("ring_events_max", 20)):
        changed = msgspec.structs.replace(config, **{name: other})
        made_with = getattr(config, name)
        with pytest.raises(ConfigError, match=f"{name} must stay {made_with} .*, got {other};"):
            LayoutFile(changed).check()
    assert LayoutFile(Config(data_dir=str(tmp_path), shards=4, durability="memory")).check() == 0


def test_a_layout_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    LayoutFile(config).save(1)
    (tmp_path / "shards" / "layout.json").write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"layout\.json"):
        LayoutFile(config).check()


def test_a_memory_cluster_leaves_no_layout(tmp_path: Path) -> None:
    LayoutFile(Config(data_dir=str(tmp_path), durability="memory")).save(3)
    assert not list(tmp_path.iterdir())
