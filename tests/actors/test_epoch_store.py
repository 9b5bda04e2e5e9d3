"""The table of claims on disk: compare-and-swap, refusal of other settings, older data folders."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from pathlib import Path

import msgspec
import pytest

from actors.copies import MAKING_S, CopyFolder, CopyFound, CopyState, copies_here, remove_copy
from actors.custody import Custody
from actors.epoch_store import FileEpochStore, MemoryEpochStore, check_folder
from actors.layout import Layout
from cluster.config import Config
from cluster.errors import ConfigError
from cluster.keys import split_evenly
from cluster.ownership import Copy, EpochStore, Table, claim_of, take_over
from tests.actors.local_nodes import LocalNodes


def table_of(shards: int) -> Table:
    ranges = enumerate(split_evenly(shards))
    return Table(tuple(claim_of(str(i), r, 1, Copy(f"c{i}")) for i, r in ranges), 50)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_of_many_swaps_of_one_version_one_is_done(tmp_path: Path, kind: str) -> None:
    async def act() -> None:
        config = Config(data_dir=str(tmp_path))
        store: EpochStore = FileEpochStore(config) if kind == "file" else MemoryEpochStore()
        assert await store.read() == (0, None)
        table = table_of(2)
        assert await store.swap(0, table)
        for version in range(1, 5):
            wanted = [
                table.with_claim(take_over(table.claims[0], Copy("c0", f"n{i}"))) for i in range(8)
            ]
            done = await asyncio.gather(*(store.swap(version, one) for one in wanted))
            assert sum(done) == 1
            assert await store.read() == (version + 1, wanted[done.index(True)])
            assert not await store.swap(version, table)

    asyncio.run(act())


def test_a_folder_keeps_its_ring(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path), shards=2, ring_events_max=50)
    assert check_folder(config) is None
    asyncio.run(FileEpochStore(config).swap(0, table_of(2)))
    assert check_folder(config) == table_of(2)
    changed = msgspec.structs.replace(config, ring_events_max=20)
    with pytest.raises(ConfigError, match=r"ring_events_max must stay 50 .*, got 20;"):
        check_folder(changed)
    # Shards are split and merged: the setting is for a new folder.
    assert check_folder(msgspec.structs.replace(config, shards=4)) == table_of(2)
    assert check_folder(Config(data_dir=str(tmp_path), shards=4, durability="memory")) is None


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    asyncio.run(FileEpochStore(config).swap(0, table_of(2)))
    (tmp_path / "shards" / "table.json").write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"table\.json"):
        check_folder(config)


def test_a_folder_from_before_there_were_claims_is_taken_over(tmp_path: Path) -> None:
    nodes = LocalNodes(tmp_path, 1, Config(shards=2))
    config = nodes.configs["n0"]
    for shard in ("0", "1"):
        folder = config.data_path / "shards" / shard
        folder.mkdir(parents=True)
        (folder / "wal-0000000000000001.log").write_bytes(shard.encode())
    layout = config.data_path / "shards" / "layout.json"
    layout.write_bytes(msgspec.json.encode(Layout(2, 50, 41)))

    async def act() -> None:
        custody = Custody(config, FileEpochStore(config), nodes)
        table = await custody.open()
        assert [claim.owner.copy_id for claim in table.claims] == ["c0", "c0"]
        assert await custody.publish() > 41
        place = await custody.place("1", 0)
        path = nodes.folder("n0", place.copy_id, "1").path
        assert (path / "wal-0000000000000001.log").read_bytes() == b"1"

    asyncio.run(act())
    assert [found.shard_id for found in copies_here(config)] == ["0", "1"]


def test_a_copy_that_a_process_holds_is_not_removed(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    folder = CopyFolder(config, "0", "c1")
    folder.create(CopyState(made_for=3))
    folder.lock(0.0)
    remove_copy(config, "0", "c1")
    assert [found.copy_id for found in copies_here(config)] == ["c1"]
    folder.unlock()
    remove_copy(config, "0", "c1")
    assert not copies_here(config)
    assert not folder.path.exists()


def test_copies_that_go_while_they_are_listed_are_no_error(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    ended = threading.Event()

    def come_and_go() -> None:
        for number in itertools.count(1):
            if ended.is_set():
                return
            CopyFolder(config, str(number), "c1").create(CopyState())
            remove_copy(config, str(number), "c1")

    CopyFolder(config, "0", "c0").create(CopyState())
    comer = threading.Thread(target=come_and_go)
    comer.start()
    try:
        for _ in range(500):
            assert CopyFound("0", "c0", 0) in copies_here(config)
    finally:
        ended.set()
        comer.join()


def test_a_copy_that_was_half_made_is_no_copy_and_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(data_dir=str(tmp_path))

    def crash(path: Path, data: bytes) -> None:
        path.with_suffix(".tmp").write_bytes(data)
        raise OSError("the power went")

    with monkeypatch.context() as patched:
        patched.setattr("actors.copies.write_durably", crash)
        with pytest.raises(OSError, match="power"):
            CopyFolder(config, "16", "c1").create(CopyState())
    (half,) = (tmp_path / "shards" / "16").iterdir()
    long_ago_s = time.time() - 2 * MAKING_S
    os.utime(half, (long_ago_s, long_ago_s))
    assert not copies_here(config)
    deadline_s = time.monotonic() + 10.0
    while (tmp_path / "shards" / "16").exists():
        assert time.monotonic() < deadline_s, "what was left is not deleted"
        time.sleep(0.01)
    CopyFolder(config, "16", "c2").create(CopyState(sealed=3))
    assert CopyFolder(config, "16", "c2").state.sealed == 3
