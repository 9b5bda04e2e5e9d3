"""How far a copy's log is durable, kept beside it: lost bytes must not pass for a torn tail.

Of the last batch of a log nothing in the log itself tells whether it was ever acknowledged. So
whoever writes the log notes each sequence number here once it is durable, before anybody hears of
it. That costs no flush: the mapped page outlives the process, and reaches the disk when the log has
been idle for a moment. What is lost with the machine's power is at most that moment's notes, and
then a torn tail is cut as if there were none; a note is never ahead of the log.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from struct import Struct, error
from zlib import crc32

from actors.wal import End, WalCorrupt

NAME = "acknowledged"
IDLE_S = 1.0
"""How long a note may be in memory only, once nothing is written any more."""
# Two places, written in turn: a process that dies while it writes one leaves the other.
_PLACE = Struct("<QI")
_PLACES = (0, 64)
_BYTES = 4096


class Watermark:
    """The writer's side."""

    def __init__(self, folder: Path, seq: int) -> None:
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _BYTES)
            self._map = mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
        self._turn = 0
        self.flushed = False
        """Whether the last note is on the disk."""
        self.note(seq)

    def note(self, seq: int) -> None:
        """All up to `seq` is durable."""
        packed = seq.to_bytes(8, "little")
        _PLACE.pack_into(self._map, _PLACES[self._turn], seq, crc32(packed))
        self._turn ^= 1
        self.flushed = False

    def flush(self) -> None:
        """From any thread. Raises OSError."""
        # In this order: a note made meanwhile is not on the disk.
        self.flushed = True
        self._map.flush()

    def close(self) -> None:
        self._map.close()


def acknowledged(folder: Path) -> int:
    """The last sequence number that is known to have been durable; 0 if nothing is known."""
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return 0
    found = 0
    for place in _PLACES:
        try:
            seq, crc = _PLACE.unpack_from(data, place)
        except error:
            continue
        if crc == crc32(seq.to_bytes(8, "little")):
            found = max(found, seq)
    return found


def check_end(folder: Path, end: End) -> None:
    """Raises WalCorrupt if the log in a folder ends before what was acknowledged of it."""
    seq = acknowledged(folder)
    if end.next_seq <= seq:
        reason = f"ends at sequence {end.next_seq - 1}, and up to {seq} it was acknowledged"
        raise WalCorrupt(str(end.path or folder), end.offset, reason)
