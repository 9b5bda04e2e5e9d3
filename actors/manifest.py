"""What an import has counted, row group by row group, and the rows it refused.

Two files per import: `<id>.jsonl`, a line per finished row group, and `<id>.rejects.jsonl`, a
line per sampled reject. Lines are only appended; a torn last line is ignored. What *was applied*
is known by the owners alone, so a lost manifest costs counts, never a doubled event.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from actors.import_rows import Reject
from cluster.errors import RequestError

SAMPLES_MAX = 1000
"""Rejects written per reason and attempt; all are counted."""


class GroupCount(msgspec.Struct, frozen=True):
    """Rows of a row group: all, those that were accepted, the others by reason."""

    rows: int
    accepted: int
    rejected: dict[str, int]

    def plus(self, other: GroupCount) -> GroupCount:
        """The sum of both.

        >>> GroupCount(3, 2, {"id_null": 1}).plus(GroupCount(1, 0, {"id_null": 1})).rejected
        {'id_null': 2}
        """
        rejected = dict(self.rejected)
        for reason, count in other.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
        return GroupCount(self.rows + other.rows, self.accepted + other.accepted, rejected)

    def without(self, reason: str, count: int) -> GroupCount:
        """`count` of the accepted rows refused after all."""
        return self.plus(GroupCount(0, -count, {reason: count} if count else {}))


class _Line(msgspec.Struct, frozen=True):
    source: str
    group: int
    count: GroupCount


NOTHING = GroupCount(0, 0, {})


class Manifest:
    """The two files of one import, held by one process at a time.

    keep  False counts in memory and writes rejects only: for a dry run
    """

    def __init__(self, folder: Path, import_id: str, keep: bool = True) -> None:
        """Raises RequestError if another process is running this import."""
        folder.mkdir(parents=True, exist_ok=True)
        dry = "" if keep else ".dry"
        self.path = folder / f"{import_id}{dry}.jsonl"
        self.rejects_path = folder / f"{import_id}{dry}.rejects.jsonl"
        self._counts: dict[tuple[str, int], GroupCount] = {}
        self._sampled: dict[str, int] = {}
        self._file = _locked(self.path, import_id)
        if keep:
            self._read()
        else:
            self._file.truncate(0)
        self._rejects = self.rejects_path.open("ab" if self._counts else "wb")

    def counted(self, source: str) -> set[int]:
        """Row groups of a source that were finished."""
        return {group for name, group in self._counts if name == source}

    def total(self) -> GroupCount:
        """The sum over all finished row groups."""
        total = NOTHING
        for count in self._counts.values():
            total = total.plus(count)
        return total

    def finish(self, source: str, group: int, count: GroupCount, samples: list[Reject]) -> None:
        """Note a row group as finished; its rejects are written unless it was finished before."""
        if (source, group) not in self._counts:
            for reject in samples:
                written = self._sampled.get(reject.reason, 0)
                if written < SAMPLES_MAX:
                    self._sampled[reject.reason] = written + 1
                    self._rejects.write(msgspec.json.encode(reject) + b"\n")
            self._rejects.flush()
        self._counts[source, group] = count
        self._file.write(msgspec.json.encode(_Line(source, group, count)) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Release both files."""
        self._rejects.close()
        self._file.close()

    def _read(self) -> None:
        decoder = msgspec.json.Decoder(_Line)
        whole = 0
        for text in self._file:
            try:
                line = decoder.decode(text)
            except msgspec.DecodeError:
                break
            self._counts[line.source, line.group] = line.count
            whole += len(text)
        # What follows a torn line can't be trusted, and must not stand before new lines.
        self._file.seek(whole)
        self._file.truncate(whole)


def _locked(path: Path, import_id: str) -> BinaryIO:
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RequestError(
            409, "the same import is already running", "events", import_id, "one at a time"
        ) from None
    return file
