"""A shard's records on their way to the disk, and who waits for them.

Nothing is acknowledged before the record of it is durable at the level that the answer names, and
nothing that was read is answered before what it saw is: an answer waits for the last record that
was appended in its turn. Only an answer at level "memory" waits for nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.wal import End
from actors.wal_writer import SEGMENT_BYTES, WalWriter
from cluster.levels import Level

WAITING_RECORDS_MAX = 50_000
"""Records in memory that the disk does not have yet."""


class Journal:
    """The loop's side of a `WalWriter`. All methods are called in the loop.

    on_failed  called in the loop, once, when the log can't go on: nothing may be acknowledged
    """

    def __init__(
        self,
        folder: Path,
        end: End,
        on_failed: Callable[[OSError], None],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._on_failed = on_failed
        self._durable_s = self._loop.time()
        self.epoch = end.epoch + 1
        """Of all that is written from here on."""
        self.writer = WalWriter(
            folder,
            end,
            self.epoch,
            lambda seq: self._tell(self._durable),
            lambda error: self._tell(self._fail, error),
            segment_bytes,
        )
        self.append = self.writer.append

    @property
    def has_room(self) -> bool:
        """Whether the disk takes more; if not, writes must be refused before they are applied."""
        return self.writer.has_room

    @property
    def behind(self) -> bool:
        """Whether the disk is so slow that more must not be taken."""
        return self.writer.last_seq - self.writer.durable_seq > WAITING_RECORDS_MAX

    @property
    def settled(self) -> bool:
        """Whether all that was appended is durable."""
        return self.writer.durable_seq >= self.writer.last_seq

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that can be given now."""
        return ("memory", "disk")

    def after_all(self, act: Callable[[], None], level: Level = "disk") -> None:
        """Do `act` once all that was appended by now is durable at `level`.

        Acts of one level keep their order. At "memory" it is done at once.
        """
        if self.writer.failed is not None:
            return
        if level == "memory" or (not self._waiting and self.settled):
            act()
        else:
            self._waiting.append((self.writer.last_seq, act))

    async def sync(self) -> None:
        """Returns once all that was appended by now is durable. Raises OSError if it can't be."""
        if self.writer.failed is not None:
            raise self.writer.failed
        done = self._loop.create_future()
        self.after_all(lambda: None if done.done() else done.set_result(None))
        await done

    def report(self) -> dict[str, Any]:
        """How the log does: the disk's counts, and what waits for it now.

        stalledSeconds  since anything became durable, while something waits; 0 if nothing does
        """
        stalled_s = 0.0 if self.settled else self._loop.time() - self._durable_s
        return {
            "hasRoom": self.has_room,
            "waitingAnswers": len(self._waiting),
            "waitingRecords": self.writer.last_seq - self.writer.durable_seq,
            "stalledSeconds": round(stalled_s, 3),
            **self.writer.disk.report(),
        }

    def close(self) -> None:
        """Make durable what was appended, then stop."""
        self.writer.close()
        self._durable()

    def _tell(self, act: Callable[..., None], *args: OSError) -> None:
        try:
            self._loop.call_soon_threadsafe(act, *args)
        except RuntimeError:
            return  # The loop has ended, and with it all who waited.

    def _durable(self) -> None:
        durable_seq = self.writer.durable_seq
        self._durable_s = self._loop.time()
        while self._waiting and self._waiting[0][0] <= durable_seq:
            self._waiting.popleft()[1]()

    def _fail(self, error: OSError) -> None:
        self._waiting.clear()
        self._on_failed(error)
