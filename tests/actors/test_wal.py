"""The log against every cut, every flipped bit and every lost sector."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from actors import wal_writer
from actors.wal import (
    _BATCH,
    BATCH_BYTES_MAX,
    RECORD_BYTES_MAX,
    SECTOR,
    SEGMENT_BYTES_HEADER,
    End,
    Reader,
    WalCorrupt,
    read_segment,
    segments,
)
from actors.wal_writer import SEGMENT_BYTES, WalWriter
from actors.watermark import Watermark


class Log:
    """A writer whose appends wait until they are durable."""

    def __init__(self, folder: Path, epoch: int = 1, segment_bytes: int = 1 << 16) -> None:
        reader = Reader(folder)
        self.found = [r for batch in reader for r in batch.records]
        self.errors: list[OSError] = []
        self.writer = WalWriter(
            folder, reader.end, epoch, lambda seq: None, self.errors.append, segment_bytes
        )

    def batch(self, *records: bytes) -> None:
        for record in records:
            self.writer.append(record)
        while self.writer.durable_seq < self.writer.last_seq and not self.errors:
            assert self.writer.wait(10.0)


def wal_full(log: Log) -> bool:
    return not log.writer.has_room


def read(folder: Path) -> list[bytes]:
    return [record for batch in Reader(folder) for record in batch.records]


def record(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def write_log(
    folder: Path, batches: int, sizes: range, seed: int = 3, **settings: int
) -> list[list[bytes]]:
    """A log of one record per batch; returns the records."""
    generator = random.Random(seed)
    log = Log(folder, **settings)
    written = []
    for number in range(batches):
        written.append([record(number + seed, generator.choice(sizes))])
        log.batch(*written[-1])
    log.writer.close()
    return written


def test_what_was_durable_is_read_again_across_segments_and_reopening(tmp_path: Path) -> None:
    written: list[bytes] = []
    for epoch in range(1, 5):
        log = Log(tmp_path, epoch)
        assert log.found == written
        for number in range(40):
            fresh = [record(number * i, 100 * i) for i in range(1, 4)]
            log.batch(*fresh)
            written += fresh
        log.writer.close()
    assert read(tmp_path) == written
    assert len(segments(tmp_path)) > 1


def test_reading_may_begin_in_a_later_segment(tmp_path: Path) -> None:
    write_log(tmp_path, 60, range(2000, 4000))
    everything = [(b.first_seq + i, r) for b in Reader(tmp_path) for i, r in enumerate(b.records)]
    assert [seq for seq, _ in everything] == list(range(1, 61))
    segments(tmp_path)[0].unlink()
    later = [(b.first_seq + i, r) for b in Reader(tmp_path, 50) for i, r in enumerate(b.records)]
    assert later == everything[-len(later) :]
    assert later[0][0] <= 50
    with pytest.raises(WalCorrupt, match="missing"):
        list(Reader(tmp_path, 1))


def test_a_log_cut_at_any_byte_keeps_every_whole_batch(tmp_path: Path) -> None:
    source = tmp_path / "source"
    written = write_log(source, 30, range(1, 5000))
    path = segments(source)[0]
    data = path.read_bytes()
    assert len(data) == 1 << 16
    stops = _batch_stops(source)
    assert len(stops) > 15
    folder = tmp_path / "cut"
    folder.mkdir()
    target = folder / path.name
    target.write_bytes(data)
    for at in range(len(data) - 1, -1, -1):
        os.truncate(target, at)
        if at < SEGMENT_BYTES_HEADER:
            with pytest.raises(WalCorrupt):
                read(folder)
        else:
            whole = sum(1 for stop in stops if stop <= at)
            assert read(folder) == [r for batch in written[:whole] for r in batch]


def _batch_stops(folder: Path) -> list[int]:
    """Where each batch of the first segment ends, by reading ever longer files."""
    data = segments(folder)[0].read_bytes()
    stops, offset = [], SEGMENT_BYTES_HEADER
    while any(data[offset : offset + 4]):
        offset += _BATCH.size + _BATCH.unpack_from(data, offset)[3]
        stops.append(offset)
    return stops


def test_any_flipped_bit_is_found_and_never_read_as_data(tmp_path: Path) -> None:
    written = write_log(tmp_path, 12, range(200, 320), segment_bytes=1 << 12)
    path = segments(tmp_path)[0]
    data = path.read_bytes()
    whole = [r for batch in written for r in batch]
    used = _batch_stops(tmp_path)[-1]
    assert len(data) == 1 << 12
    descriptor = os.open(path, os.O_WRONLY)
    for bit in range(len(data) * 8):
        os.pwrite(descriptor, bytes([data[bit // 8] ^ 1 << bit % 8]), bit // 8)
        try:
            found = read(tmp_path)
        except WalCorrupt:
            found = None
        # The header's padding carries nothing, and nothing behind the end may be read as data.
        ignored = found == whole and (36 <= bit // 8 < 64 or bit // 8 >= used)
        assert found is None or ignored, bit
        os.pwrite(descriptor, data[bit // 8 : bit // 8 + 1], bit // 8)
    os.close(descriptor)


def test_whatever_a_power_loss_left_of_the_batch_under_way_the_rest_is_read(tmp_path: Path) -> None:
    generator = random.Random(11)
    torn = 0
    for number in range(40):
        folder = tmp_path / str(number)
        sizes = range(1, generator.choice((40, 600, 4000, 12_000)))
        written = write_log(folder, 5, sizes, seed=number)
        path = segments(folder)[0]
        whole = path.read_bytes()
        start, stop = _batch_stops(folder)[-2:]
        sectors = range(start - start % SECTOR, stop, SECTOR)
        before = [record for batch in written[:-1] for record in batch]
        for _ in range(50):
            # Its sectors reach the disk in any order: any subset may be there when power goes.
            data = bytearray(whole)
            lost = generator.sample(sectors, generator.randint(0, len(sectors)))
            for at in lost:
                data[max(at, start) : min(at + SECTOR, stop)] = bytes(
                    min(at + SECTOR, stop) - max(at, start)
                )
            path.write_bytes(data)
            found = read(folder)
            gone = bytes(data) != whole
            torn += gone
            assert found == (before if gone else before + written[-1])
        log = Log(folder, epoch=2)
        log.batch(b"after")
        log.writer.close()
        assert read(folder) == [*found, b"after"]
    assert torn > 500


def test_a_last_batch_with_lost_sectors_is_torn_an_earlier_one_is_corrupt(tmp_path: Path) -> None:
    written = write_log(tmp_path, 8, range(3000, 3001))
    path = segments(tmp_path)[0]
    whole = path.read_bytes()
    stops = [64, *_batch_stops(tmp_path)]
    generator = random.Random(5)
    for batch in range(8):
        inside = [
            s
            for s in range(0, len(whole), SECTOR)
            if stops[batch] <= s and s + SECTOR <= stops[batch + 1]
        ]
        for _ in range(8):
            data = bytearray(whole)
            for sector in generator.sample(inside, generator.randint(1, len(inside))):
                data[sector : sector + SECTOR] = bytes(SECTOR)
            path.write_bytes(data)
            if batch == 7:
                assert read(tmp_path) == [r for b in written[:7] for r in b]
            else:
                with pytest.raises(WalCorrupt):
                    read(tmp_path)


def test_writing_goes_on_behind_a_torn_tail(tmp_path: Path) -> None:
    written = write_log(tmp_path, 5, range(3000, 3001))
    path = segments(tmp_path)[0]
    os.truncate(path, _batch_stops(tmp_path)[-1] - 10)
    log = Log(tmp_path, epoch=2)
    assert log.found == [r for batch in written[:4] for r in batch]
    log.batch(b"new")
    log.writer.close()
    assert read(tmp_path) == [*log.found, b"new"]


def test_a_missing_or_exchanged_segment_is_found(tmp_path: Path) -> None:
    write_log(tmp_path / "a", 100, range(2000, 4000))
    paths = segments(tmp_path / "a")
    assert len(paths) > 3
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / paths[1].name).unlink()
    with pytest.raises(WalCorrupt):
        read(tmp_path / "b")
    shutil.rmtree(tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write_log(tmp_path / "c", 100, range(2000, 4000), seed=3000)
    shutil.copy(segments(tmp_path / "c")[1], tmp_path / "b" / paths[1].name)
    with pytest.raises(WalCorrupt):
        read(tmp_path / "b")


@pytest.mark.parametrize(
    ("device", "code"), [("/dev/full", errno.ENOSPC), (os.devnull, errno.EINVAL)]
)
def test_a_failed_write_or_sync_fails_the_log_for_good(
    tmp_path: Path, device: str, code: int
) -> None:
    log = Log(tmp_path)
    log.batch(b"first")
    # One fails to write, the other to sync.
    descriptor = os.open(device, os.O_WRONLY)
    os.dup2(descriptor, log.writer._descriptor)
    os.close(descriptor)
    log.batch(b"second")
    assert [error.errno for error in log.errors] == [code]
    with pytest.raises(OSError, match=os.strerror(code)):
        log.writer.append(b"third")
    # Nobody is left who could try again.
    log.writer._thread.join(10.0)
    assert not log.writer._thread.is_alive()
    log.writer.close()
    assert read(tmp_path) == [b"first"]


def test_an_error_beside_the_batches_fails_the_log_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_writer, "IDLE_S", 0.01)
    log = Log(tmp_path)

    def refuse(mark: Watermark) -> None:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(Watermark, "flush", refuse)
    log.batch(b"first")
    log.writer.wait(10.0)
    assert [error.errno for error in log.errors] == [errno.EIO]
    log.writer.close()


def test_a_loop_hears_of_what_is_durable(tmp_path: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        durable: asyncio.Queue[int] = asyncio.Queue()
        end = End(1, 0, None, 0, 0)
        writer = WalWriter(tmp_path, end, 1, durable.put_nowait, print, 1 << 16, None, loop)
        for number in range(3):
            writer.append(record(number, 10))
        assert [await asyncio.wait_for(durable.get(), 10) for _ in range(2)] == [1, 3]
        writer.close()

    asyncio.run(run())
    assert read(tmp_path) == [record(number, 10) for number in range(3)]


def test_whether_it_was_roused_or_not_a_log_writes_what_is_appended(tmp_path: Path) -> None:
    log = Log(tmp_path)
    generator = random.Random(5)
    for number in range(300):
        for _ in range(generator.randrange(3)):
            log.writer.rouse()
        # Before, while and after the thread stays awake for it.
        time.sleep(generator.choice((0, 0, 0.00005, 0.0002, 0.001)))
        if generator.random() < 0.8:
            log.batch(record(number, 100))
    log.writer.rouse()
    time.sleep(0.1)
    used_s = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used_s < 0.1, "nobody asked: it sleeps again"
    written = log.writer.last_seq
    log.writer.close()
    assert len(read(tmp_path)) == written > 200


def test_no_room_for_a_spare_segment_is_told_before_the_log_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path)
    full = True
    real = os.posix_fallocate

    def allocate(descriptor: int, offset: int, size: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "injected")
        real(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(wal_writer, "IDLE_S", 0.01)
    for _ in range(20):
        log.batch(record(1, 4000))
    assert wal_full(log)
    count = len(segments(tmp_path))
    log.writer.seal()
    for known_full in (True, False):
        # Also if that is found out only when the segment is to begin.
        log.writer.has_room = not known_full
        log.batch(b"goes on in the segment that there is")
    assert len(segments(tmp_path)) == count
    full = False
    for _ in range(1000):
        if not wal_full(log):
            break
        log.batch(b"x")
    assert not wal_full(log)
    log.batch(b"begins the segment that was to begin")
    assert len(segments(tmp_path)) == count + 1
    log.writer.close()
    assert not log.errors


def test_records_appended_while_a_batch_syncs_share_the_next_sync(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for number in range(5000):
        log.writer.append(b"%d" % number)
    log.batch()
    log.writer.close()
    assert log.writer.disk.batches < 1000
    assert read(tmp_path) == [b"%d" % number for number in range(5000)]


def test_records_share_a_batch_only_as_far_as_they_fit(tmp_path: Path) -> None:
    sizes = [BATCH_BYTES_MAX // 3, RECORD_BYTES_MAX, 1, BATCH_BYTES_MAX // 2, BATCH_BYTES_MAX // 2]
    log = Log(tmp_path, segment_bytes=SEGMENT_BYTES)
    log.batch(*(bytes(size) for size in sizes))
    with pytest.raises(ValueError, match="a record must be"):
        log.writer.append(bytes(RECORD_BYTES_MAX + 1))
    log.batch(b"after")
    log.writer.close()
    assert not log.errors
    assert [len(r) for r in read(tmp_path)] == [*sizes, 5]


def test_a_failure_of_any_kind_fails_the_log_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path)

    def refuse(*_: object) -> None:
        raise MemoryError("injected")

    monkeypatch.setattr(wal_writer, "encode_batch", refuse)
    log.batch(b"lost")
    assert ["injected" in str(error) for error in log.errors] == [True]
    log.writer.close()


def test_blocks_that_were_never_written_are_not_read(tmp_path: Path) -> None:
    written = write_log(tmp_path, 20, range(10, 9000), segment_bytes=4 << 20)
    (path,) = segments(tmp_path)
    # In this order: blocks that somebody has read count as written.
    found = read_segment(path)
    whole = path.read_bytes()
    assert len(whole) == 4 << 20
    assert len(found) < 1 << 20
    assert found == whole[: len(found)]
    assert not any(whole[len(found) :])
    assert read(tmp_path) == [record for batch in written for record in batch]
    # A file that was copied has no holes, and is the same log.
    path.write_bytes(whole)
    assert read(tmp_path) == [record for batch in written for record in batch]
