"""A shard's records on their way to the disk, and who waits for them.

Nothing is acknowledged before the record of it is durable at the level that the answer names, and
nothing that was read is answered before what it saw is, wherever a successor may come from: an
answer waits for the last record that was appended in its turn. And no answer leaves while another
may own the range (`cluster.replication`). Only level "memory" waits for nothing but that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.wal import End
from actors.wal_writer import SEGMENT_BYTES, WalWriter, Written
from cluster.errors import Unavailable
from cluster.levels import Level
from cluster.replication import Primary

Act = Callable[[], None]
_LEVELS: tuple[Level, ...] = ("memory", "disk")
_ALL_LEVELS: tuple[Level, ...] = ("memory", "disk", "replica")

WAITING_RECORDS_MAX = 50_000
"""Records in memory that the disk does not have yet."""


class Journal:
    """The loop's side of a `WalWriter`. All methods are called in the loop.

    on_failed  called once, when the log can't go on: nothing may be acknowledged
    primary    the owner that this log is of; None: one without a backup
    on_batch   called with each batch before it is written
    """

    def __init__(
        self,
        folder: Path,
        end: End,
        on_failed: Callable[[OSError], None],
        segment_bytes: int = SEGMENT_BYTES,
        primary: Primary | None = None,
        on_batch: Callable[[Written], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.primary = primary or Primary(end.epoch + 1, False, end.next_seq, end.crc)
        self._waiting: dict[Level, deque[tuple[int, Act, Act | None]]] = {
            "memory": deque(),
            "disk": deque(),
            "replica": deque(),
        }
        self._on_failed = on_failed
        self._on_batch = on_batch
        self._durable_s = self._loop.time()
        self.writer = WalWriter(
            folder,
            end,
            self.primary.epoch,
            lambda seq: self._durable(),
            self._fail,
            segment_bytes,
            on_batch,
            self._loop,
        )
        self.append = self.writer.append
        self.rouse = self.writer.rouse

    @property
    def epoch(self) -> int:
        """Of all that is written from here on."""
        return self.primary.epoch

    @property
    def has_room(self) -> bool:
        """Whether the disk takes more; if not, writes must be refused before they are applied."""
        return self.writer.has_room

    @property
    def behind(self) -> bool:
        """Whether a disk, or the backup, is so slow that more must not be taken."""
        safe_seq = min(self.writer.durable_seq, self.primary.acked_seq)
        return self.writer.last_seq - safe_seq > WAITING_RECORDS_MAX

    @property
    def settled(self) -> bool:
        """Whether all that was appended is on the own disk."""
        return self.writer.durable_seq >= self.writer.last_seq

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that can be given now."""
        primary = self.primary
        if primary.replicates and primary.may_answer(self._loop.time()):
            return _ALL_LEVELS
        return _LEVELS

    @property
    def read_level(self) -> Level:
        """What reads have to wait for: every copy that may take over."""
        return "replica" if self.primary.replicates else "disk"

    def after_all(self, act: Act, level: Level = "disk", refuse: Act | None = None) -> None:
        """Do `act` once all that was appended by now is durable at `level`.

        Acts of one level keep their order. If `level` can't be reached any more, `refuse` is done
        instead; without it, what is left is waited for.
        """
        if self.writer.failed is not None:
            return
        waiting, last_seq = self._waiting[level], self.writer.last_seq
        ready = not waiting and last_seq <= self._reached(level)
        if ready and self.primary.may_answer(self._loop.time()):
            act()
            return
        waiting.append((last_seq, act, refuse))

    def listen(self, listener: Callable[[Written], None] | None) -> None:
        """Tell of batches from now on, beside whom they are told to anyway."""
        told = [one for one in (self._on_batch, listener) if one is not None]

        def tell(batch: Written) -> None:
            for one in told:
                one(batch)

        self.writer.on_batch = tell if told else None

    async def sync(self) -> None:
        """Returns once all that was appended by now is durable, on all copies there are.

        Raises OSError if it can't be, Unavailable if a copy was lost meanwhile: it is on the
        other, and may be repeated.
        """
        if self.writer.failed is not None:
            raise self.writer.failed
        done = self._loop.create_future()
        lost = Unavailable("the backup was lost meanwhile; repeat it")
        self.after_all(
            lambda: None if done.done() else done.set_result(None),
            self.read_level,
            lambda: None if done.done() else done.set_exception(lost),
        )
        await done

    def flush(self) -> None:
        """Answer what may be answered now. Called after whatever changes the primary."""
        primary = self.primary
        now_s = self._loop.time()
        if not primary.may_answer(now_s):
            return
        if self._waiting["replica"] and not primary.replicates:
            self._give_up()
        for level, waiting in self._waiting.items():
            reached = self._reached(level)
            while waiting and waiting[0][0] <= reached:
                waiting.popleft()[1]()

    def _give_up(self) -> None:
        """Nobody else has what these wait for: the level that they were promised is gone."""
        waiting = self._waiting["replica"]
        for seq, act, refuse in list(waiting):
            if refuse is None:
                self._waiting["disk"].append((seq, act, None))
            else:
                refuse()
        waiting.clear()

    def _reached(self, level: Level) -> int:
        primary = self.primary
        if level == "memory":
            return self.writer.last_seq
        if level == "disk" and primary.replicates:
            return primary.local_seq
        return primary.acked_seq

    def report(self) -> dict[str, Any]:
        """How the log does: the disk's counts, and what waits for it now.

        stalledSeconds  since anything became durable, while something waits; 0 if nothing does
        """
        stalled_s = 0.0 if self.settled else self._loop.time() - self._durable_s
        return {
            "hasRoom": self.has_room,
            "waitingAnswers": sum(map(len, self._waiting.values())),
            "waitingRecords": self.writer.last_seq - self.writer.durable_seq,
            "stalledSeconds": round(stalled_s, 3),
            **self.writer.disk.report(),
        }

    def close(self) -> None:
        """Make durable what was appended, then stop."""
        self.writer.close()
        self._durable()

    def _durable(self) -> None:
        self._durable_s = self._loop.time()
        self.primary.durable(self.writer.durable_seq)
        self.flush()

    def _fail(self, error: OSError) -> None:
        for waiting in self._waiting.values():
            waiting.clear()
        self._on_failed(error)
