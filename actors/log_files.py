"""A copy's log, read for another copy of it: batches as the bytes that they are."""

from __future__ import annotations

from pathlib import Path

from actors.snapshot import snapshot_end, snapshots
from actors.wal import Batch, End, Reader, encode_batch, segments
from actors.wal_writer import Written

FETCH_BYTES = 4 << 20


def log_end(folder: Path) -> End:
    """Where a copy's log ends. Raises WalCorrupt if it can't be trusted."""
    kept = snapshots(folder)
    start = snapshot_end(kept[-1]) if kept else End(1, 0, None, 0, 0)
    if not segments(folder):
        return start
    reader = Reader(folder, start.next_seq)
    for _ in reader:
        pass
    return reader.end if reader.end.path is not None else start


def batches_from(folder: Path, next_seq: int, crc: int) -> list[Batch] | None:
    """Some batches from `next_seq` on, in order; None if the log has none that follows `crc`."""
    found: list[Batch] = []
    size = 0
    for batch in Reader(folder, next_seq):
        if batch.first_seq < next_seq:
            continue
        if not found and (batch.first_seq, batch.previous) != (next_seq, crc):
            return None
        found.append(batch)
        size += sum(map(len, batch.records))
        if size > FETCH_BYTES:
            break
    return found or None


def encoded(batch: Batch) -> Written:
    """A batch that was read, as the bytes that it was read from."""
    data, crc = encode_batch(batch.epoch, batch.first_seq, batch.previous, batch.records)
    return Written(data, batch.first_seq, len(batch.records), batch.previous, crc)
