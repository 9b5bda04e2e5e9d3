"""The archive against a shard that logs, compacts and dies, and against a store that fails."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import msgspec
import pytest

from actors.archive import (
    CLUSTER,
    RESTORE_S,
    Archive,
    ArchiveCorrupt,
    Store,
    newest_manifest,
    shard_state,
)
from actors.cluster_archive import ClusterArchive, cluster_state
from actors.recovery import drop_superfluous
from actors.restore import restore
from actors.wal import WalCorrupt, segments
from cluster.errors import ConfigError
from cluster.keys import HASH_SPACE, KeyRange
from cluster.ownership import Claim, Copy, Table, claim_of
from tests.actors.test_wal import Log, read, record

SCOPE = "shards/0"


class Kept:
    """A log in a data folder, and its archive beside it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.shard = self.data / "shards" / "0"
        self.uri = str(folder / "archive")
        self.written: list[bytes] = []
        self.shard.mkdir(parents=True)
        (self.shard / "copy.json").write_text("{}")
        self.reopen()

    def reopen(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.log = Log(self.shard, epoch)
        self.archive = Archive(Store(self.uri), SCOPE, self.data)

    def write(self, count: int, size: int = 3000) -> None:
        fresh = [record(len(self.written) + i, size) for i in range(count)]
        for one in fresh:
            self.log.batch(one)
        self.written += fresh

    def step(self) -> None:
        self.archive.step(self.epoch, shard_state(self.shard))

    def restored(self, folder: Path) -> list[bytes]:
        shutil.rmtree(folder, ignore_errors=True)
        restore(self.uri, folder)
        return read(folder / "shards" / "0")

    def objects(self) -> set[str]:
        return set(Store(self.uri).names(SCOPE))


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_what_was_archived_is_restored_at_every_step(kept: Kept, tmp_path: Path) -> None:
    generator = random.Random(1)
    for _ in range(20):
        kept.write(generator.randrange(1, 12))
        kept.step()
        assert kept.archive.next_seq == len(kept.written) + 1
        assert kept.restored(tmp_path / "again") == kept.written
    kept.log.writer.close()
    assert len(segments(kept.shard)) > 3


def test_only_what_is_new_goes_up(kept: Kept) -> None:
    kept.write(10)
    kept.step()
    before = kept.archive.bytes_written
    kept.step()
    assert kept.archive.bytes_written == before
    kept.write(1)
    kept.step()
    assert 3000 < kept.archive.bytes_written - before < 3200
    kept.log.writer.close()


def test_an_archive_goes_on_after_a_restart_without_beginning_anew(
    kept: Kept, tmp_path: Path
) -> None:
    kept.write(30)
    kept.step()
    kept.log.writer.close()
    kept.reopen(epoch=2)
    kept.write(2)
    kept.step()
    assert kept.archive.bytes_written < 10_000
    assert kept.restored(tmp_path / "again") == kept.written
    kept.log.writer.close()


def test_what_a_power_loss_took_back_is_archived_anew(kept: Kept, tmp_path: Path) -> None:
    kept.write(5)
    first = shard_state(kept.shard).extents[-1].stop
    kept.step()
    kept.write(3)
    kept.step()
    kept.log.writer.close()
    # The last three batches were archived, and are not on the disk.
    path = segments(kept.shard)[0]
    data = path.read_bytes()
    assert first is not None
    path.write_bytes(data[:first] + bytes(len(data) - first))
    kept.written = kept.written[:5]
    kept.reopen(epoch=2)
    assert kept.log.found == kept.written
    kept.write(4, size=1000)
    kept.step()
    assert kept.restored(tmp_path / "again") == kept.written
    kept.log.writer.close()


def test_the_state_before_the_last_leaves_in_time_though_nothing_more_is_written(
    kept: Kept,
) -> None:
    kept.archive = Archive(Store(kept.uri), SCOPE, kept.data, before_s=0.2)
    kept.write(60)
    kept.step()
    secret = kept.written[0][:16]
    *_, active = segments(kept.shard)
    # As a compaction does after somebody was erased: the snapshot tells of them no more.
    (kept.shard / active.name.replace("wal-", "snap-").replace(".log", ".bin")).write_bytes(b"s")
    assert drop_superfluous(kept.shard) > 0
    kept.step()

    def told() -> bool:
        return any(secret in kept.archive._store.read(f"{SCOPE}/{n}") for n in kept.objects())

    # Who restores at this moment still finds the state that they began with.
    assert told()
    kept.step()
    assert told()
    time.sleep(0.2)
    # Also an archive that begins anew meanwhile knows when its time is up.
    kept.archive = Archive(Store(kept.uri), SCOPE, kept.data, before_s=0.2)
    kept.step()
    assert not told()
    assert kept.archive.lag_s(kept.archive.next_seq) == 0.0


def test_what_a_snapshot_made_superfluous_leaves_the_archive_too(
    kept: Kept, tmp_path: Path
) -> None:
    kept.write(60)
    kept.step()
    before = kept.objects()
    *_, active = segments(kept.shard)
    # As a compaction does: a snapshot up to where the active segment begins.
    (kept.shard / active.name.replace("wal-", "snap-").replace(".log", ".bin")).write_bytes(b"s")
    assert drop_superfluous(kept.shard) > 0
    for _ in range(3):
        kept.write(1)
        kept.step()
    after = kept.objects()
    gone = {name for name in before if name.startswith("shards/0/wal-")} - after
    assert len(gone) == 2
    restore(kept.uri, tmp_path / "again")
    names = {path.name for path in (tmp_path / "again" / "shards" / "0").iterdir()}
    assert names == {path.name for path in kept.shard.iterdir()} - {"spare", "acknowledged"}
    kept.log.writer.close()


def test_a_store_that_fails_is_told_and_made_good(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.write(3)
    kept.step()
    kept.write(3)
    real = Store.write
    calls = []

    def fail(store: Store, name: str, parts: object) -> None:
        calls.append(name)
        raise OSError("injected")

    monkeypatch.setattr(Store, "write", fail)
    kept.archive.try_step(1, lambda: shard_state(kept.shard))
    assert calls
    assert kept.archive.failures == 1
    assert kept.archive.lag_s(7) > 0.0
    monkeypatch.setattr(Store, "write", real)
    assert kept.restored(tmp_path / "again") == kept.written[:3]
    kept.step()
    assert kept.archive.lag_s(7) == 0.0
    assert kept.restored(tmp_path / "again") == kept.written
    kept.log.writer.close()


def test_a_deposed_owner_changes_the_archive_no_more(kept: Kept, tmp_path: Path) -> None:
    kept.write(3)
    kept.step()
    taken = Archive(Store(kept.uri), SCOPE, kept.data)
    taken.step(2, shard_state(kept.shard))
    kept.write(3)
    taken.step(2, shard_state(kept.shard))
    before = kept.objects()
    kept.write(1)
    kept.step()
    assert kept.archive.fenced
    assert kept.objects() == before
    assert kept.restored(tmp_path / "again") == kept.written[:6]
    kept.log.writer.close()


@pytest.mark.parametrize("what", ["bit", "cut", "gone"])
def test_a_damaged_piece_restores_nothing(kept: Kept, tmp_path: Path, what: str) -> None:
    kept.write(5)
    kept.step()
    kept.log.writer.close()
    (name,) = (n for n in kept.objects() if n.startswith("shards/0/wal-"))
    path = Path(kept.uri) / SCOPE / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if what == "bit" else data[:-1])
    if what == "gone":
        path.unlink()
    with pytest.raises((ArchiveCorrupt, FileNotFoundError)):
        restore(kept.uri, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not list(tmp_path.glob("*.restoring"))


def test_a_log_that_does_not_hang_together_is_not_restored(kept: Kept, tmp_path: Path) -> None:
    kept.write(60)
    state = shard_state(kept.shard)
    missing = state._replace(extents=[state.extents[0], *state.extents[2:]])
    kept.archive.step(1, missing)
    kept.log.writer.close()
    with pytest.raises(WalCorrupt):
        restore(kept.uri, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_restoring_needs_an_archive_and_an_empty_folder(kept: Kept, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no archive"):
        restore(str(tmp_path / "nowhere"), tmp_path / "again")
    with pytest.raises(ConfigError, match="archive_uri"):
        restore("gopher://x", tmp_path / "again")
    kept.write(1)
    kept.step()
    kept.log.writer.close()
    with pytest.raises(ConfigError, match="must be empty"):
        restore(kept.uri, kept.data)


def test_no_piece_leads_out_of_the_folder(kept: Kept, tmp_path: Path) -> None:
    kept.write(1)
    kept.step()
    kept.log.writer.close()
    store = Store(kept.uri)
    found = newest_manifest(store, SCOPE, store.names(SCOPE))
    assert found is not None
    (path,) = Path(kept.uri, SCOPE).glob("manifest-*")
    path.write_text(path.read_text().replace('"shards/0/', '"../shards/'))
    with pytest.raises(ArchiveCorrupt, match="must lie in the data folder"):
        restore(kept.uri, tmp_path / "again")


def test_files_of_no_shard_are_kept_and_keys_are_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("models/default/m1", "shards/layout.json", "keys.json", "cluster.secret", "a.tmp"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(name)
    (data / "shards" / "0").mkdir()
    (data / "shards" / "0" / "wal-1.log").write_text("of the shard")
    uri = str(tmp_path / "archive")
    archive = Archive(Store(uri), CLUSTER, data)
    archive.step(1, cluster_state(data))
    (data / "models/default/m1").write_text("a newer model")
    archive.step(1, cluster_state(data))
    restore(uri, tmp_path / "again")
    found = {
        p.relative_to(tmp_path / "again").as_posix() for p in (tmp_path / "again").rglob("*.*")
    }
    assert found == {"shards/layout.json"}
    assert (tmp_path / "again/models/default/m1").read_text() == "a newer model"
    assert (tmp_path / "again").stat().st_mode & 0o077 == 0


def test_a_restored_table_of_claims_names_what_was_restored(tmp_path: Path) -> None:
    data = tmp_path / "data"
    half = HASH_SPACE // 2
    claims = (
        claim_of("0", KeyRange(0, half), 4, Copy("c1", "n1")),
        # Its backup took over after the table was archived.
        Claim("1", f"{half:x}", f"{HASH_SPACE:x}", 6, Copy("c2", "n1"), Copy("c3", "n2")),
    )
    table = msgspec.to_builtins(Table(claims, 50, "replica"))
    (data / "shards").mkdir(parents=True)
    (data / "shards/table.json").write_bytes(msgspec.json.encode({"version": 9, "table": table}))
    uri = str(tmp_path / "archive")
    Archive(Store(uri), CLUSTER, data).step(1, cluster_state(data))
    for shard, copy in (("0", "c1"), ("1", "c3")):
        folder = data / "shards" / shard / copy
        log = Log(folder)
        log.batch(b"x")
        log.writer.close()
        (folder / "copy.json").write_text("{}")
        Archive(Store(uri), f"shards/{shard}", data).step(1, shard_state(folder))
    restore(uri, tmp_path / "again")
    found = msgspec.json.decode((tmp_path / "again/shards/table.json").read_bytes())
    settled = msgspec.convert(found["table"], Table)
    assert found["version"] == 10
    assert [claim.owner.copy_id for claim in settled.claims] == ["c1", "c3"]
    assert [claim.epoch for claim in settled.claims] == [5, 7]
    assert [claim.backup for claim in settled.claims] == [None, None]
    for path in Path(uri, "shards/1").rglob("manifest-*"):
        path.unlink()
    with pytest.raises(ArchiveCorrupt, match="no copy of shard 1"):
        restore(uri, tmp_path / "without")


def test_a_table_is_archived_once_its_shards_are_and_shards_that_are_gone_leave(
    tmp_path: Path,
) -> None:
    data, uri = tmp_path / "data", str(tmp_path / "archive")
    store = Store(uri)

    def table_of(shard_id: str) -> None:
        table = Table((claim_of(shard_id, KeyRange(0, HASH_SPACE), 4, Copy("c", "n")),), 50)
        (data / "shards").mkdir(parents=True, exist_ok=True)
        document = {"version": 9, "table": msgspec.to_builtins(table)}
        (data / "shards/table.json").write_bytes(msgspec.json.encode(document))

    def archive_shard(shard_id: str) -> None:
        folder = data / "shards" / shard_id / "c"
        log = Log(folder)
        log.batch(shard_id.encode())
        log.writer.close()
        (folder / "copy.json").write_text("{}")
        Archive(Store(uri), f"shards/{shard_id}", data).step(1, shard_state(folder))

    def restored(name: str) -> set[str]:
        restore(uri, tmp_path / name)
        return {path.name for path in (tmp_path / name / "shards").iterdir() if path.is_dir()}

    archive = ClusterArchive(store, data)
    archive_shard("0")
    table_of("0")
    archive.step(1, {"0"}, 0.0)
    table_of("1")
    archive.step(1, {"1"}, 1.0)
    assert restored("before") == {"0"}, "the new shard is not in the archive yet"
    archive_shard("1")
    archive.step(1, {"1"}, 2.0)
    assert restored("after") == {"1"}
    assert store.shards() == {"0", "1"}, "a restore may be reading the older table"
    archive.step(1, {"1"}, 2.0 + RESTORE_S)
    assert store.shards() == {"1"}
    assert restored("later") == {"1"}
