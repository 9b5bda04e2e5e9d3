"""A note of what is durable: with it, no lost byte of the last batch passes for a torn write."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from actors.log_files import log_end
from actors.wal import SECTOR, WalCorrupt, segments
from actors.watermark import NAME, Watermark, acknowledged, check_end
from tests.actors.test_wal import Log, read, record


def test_a_sector_of_zeros_in_acknowledged_bytes_is_no_torn_tail(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    log = Log(whole)
    for number in range(3):
        log.batch(record(number, 3000))
    # A crash closes nothing.
    (path,) = segments(whole)
    end = log.writer._offset
    check_end(whole, log_end(whole))
    assert acknowledged(whole) == 3
    for start in range(0, end, SECTOR):
        folder = tmp_path / f"lost-{start}"
        shutil.copytree(whole, folder)
        with (folder / path.name).open("r+b") as file:
            file.seek(start)
            file.write(bytes(min(SECTOR, end - start)))
        with pytest.raises(WalCorrupt):
            check_end(folder, log_end(folder))
    with path.open("r+b") as file:
        file.truncate(end - 1)
    with pytest.raises(WalCorrupt, match="up to 3 it was acknowledged"):
        check_end(whole, log_end(whole))
    log.writer.close()


def test_what_was_never_acknowledged_is_cut_as_before(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    log = Log(whole)
    log.batch(record(0, 3000))
    behind = tmp_path / "behind"
    shutil.copytree(whole, behind)
    log.batch(record(1, 3000))
    shutil.copy(whole / NAME, tmp_path / "note")
    # The second batch was written, and the power went before its flush returned.
    shutil.copy(behind / NAME, whole / NAME)
    (path,) = segments(whole)
    with path.open("r+b") as file:
        file.truncate(log.writer._offset - 1)
    check_end(whole, log_end(whole))
    assert len(read(whole)) == 1
    # A data folder of an earlier release has no note.
    (whole / NAME).unlink()
    check_end(whole, log_end(whole))
    log.writer.close()


def test_a_note_half_written_leaves_the_one_before(tmp_path: Path) -> None:
    mark = Watermark(tmp_path, 5)
    for seq in range(6, 9):
        mark.note(seq)
        kept = (tmp_path / NAME).read_bytes()
        for byte in range(len(kept)):
            if kept[byte]:
                (tmp_path / NAME).write_bytes(
                    kept[:byte] + bytes([kept[byte] ^ 0x40]) + kept[byte + 1 :]
                )
                assert acknowledged(tmp_path) in (seq - 1, seq)
        (tmp_path / NAME).write_bytes(b"")
        assert acknowledged(tmp_path) == 0
        (tmp_path / NAME).write_bytes(kept)
        mark = Watermark(tmp_path, seq)
        mark.note(seq)
    mark.flush()
    assert mark.flushed
    mark.close()


def test_a_log_that_is_idle_has_its_note_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.wal_writer.IDLE_S", 0.01)
    log = Log(tmp_path)
    log.batch(record(0, 10))
    for _ in range(500):
        if log.writer._mark.flushed:
            break
        log.writer.wait(0.01)
    assert log.writer._mark.flushed
    log.writer.close()
