"""A real full disk (a small tmpfs): read-only for everything, and back by itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.journal import Journal
from actors.messages import Item
from actors.people import Caller
from actors.recovery import recover
from actors.shard import Shard
from cluster.config import Config
from cluster.errors import ReadOnly
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange

SERVER = Caller("s", "default")
SEGMENT = 1 << 18
CONFIG = Config(profiles_max=2048, profile_bytes_max=1 << 22, items_max=64, profile_ttl_s=1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a disk of its own, of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def new_shard() -> Shard:
    return Shard("0", KeyRange(0, HASH_SPACE), CONFIG)


async def settle(shard: Shard, has_room: bool) -> None:
    assert shard.journal is not None
    for _ in range(200):
        if shard.journal.has_room is has_room:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"has_room is not {has_room}")


def test_everything_is_read_only_on_a_full_disk_and_goes_on_when_there_is_room(
    small_disk: Path,
) -> None:
    body = msgspec.json.encode({"userId": "a", "event": "Searched"})
    item = msgspec.json.encode([Item("i1")])
    column: dict[str, NDArray[Any]] = {
        "key_hi": np.zeros(1, np.int64),
        "key_lo": np.zeros(1, np.int64),
        "item": np.full(1, -1, np.int32),
        "type": np.zeros(1, np.uint8),
        "value": np.zeros(1, np.float32),
        "time": np.ones(1, np.uint32),
    }

    async def act() -> int:
        shard = new_shard()
        folder = small_disk / "shard"
        end = recover(shard, folder)
        shard.journal = Journal(folder, end, lambda error: pytest.fail(str(error)), SEGMENT)
        assert shard.handle(Op.TRACK, SERVER, body, 0)[0] == 200
        hog = small_disk / "hog"
        free = os.statvfs(small_disk)
        hog.write_bytes(bytes(free.f_bavail * free.f_bsize))
        # The spare segment is used up, then there is room for no other.
        taken = 1
        while shard.journal.has_room:
            assert shard.handle(Op.TRACK, SERVER, body, 0)[0] == 200
            taken += 1
            if taken % 100 == 0:
                await shard.journal.sync()
        for op in (Op.TRACK, Op.PAGE, Op.IDENTIFY, Op.DECIDE, Op.PROFILE_DELETE):
            status, answer = shard.handle(op, SERVER, body, 0)
            assert (status, b"disk is full" in answer) == (503, True)
        for change in (
            lambda: shard.check_disk(),
            lambda: shard.loads.events("t", "default", column),
        ):
            with pytest.raises(ReadOnly):
                change()
        assert shard.sweep() == 0
        assert shard.handle(Op.PROFILE_GET, SERVER, b'{"userId":"a"}', 0)[0] == 200
        assert shard.stats()["log"]["hasRoom"] is False
        # What passed the check before the disk was full still fits: the coordinator asks first.
        shard.put_items("default", item)
        await shard.journal.sync()
        hog.unlink()
        await settle(shard, True)
        assert shard.handle(Op.TRACK, SERVER, body, 0)[0] == 200
        await shard.journal.sync()
        shard.journal.close()
        return taken + 1

    events = asyncio.run(act())
    again = new_shard()
    recover(again, small_disk / "shard")
    assert again.store.events_total == events
    assert again.handle(Op.ITEM_GET, SERVER, b"i1", 0)[0] == 200
