"""A shard's side of giving its range away: it is followed, freezes, and is released or goes on.

Plain asyncio without Ray. Followers get the files of the log as they are, then its batches from
memory. What may happen when is decided by `cluster.handoff.Gate`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from pathlib import Path
from typing import NamedTuple

from actors.contacts import Contacts
from actors.endpoint import Endpoint
from actors.records import Followed
from actors.replicator import Replicator
from actors.shard import Shard
from actors.snapshot import snapshots
from actors.wal import first_seq_of, segments
from actors.wal_writer import Written
from cluster.errors import Unavailable
from cluster.handoff import Gate, Gating, claim_again
from cluster.ownership import EpochStore, NotEntitled, change
from cluster.replication import Link, Standing

LOG = logging.getLogger("onehop.actors")

TAIL_BYTES_MAX = 256 << 20
"""Batches that are kept for followers; one that falls further behind has to begin anew."""
PART_BYTES = 4 << 20
TAIL_S = 0.05
"""How long a follower's question waits for something new."""
FORGOTTEN_S = 300.0
"""Who did not ask for so long follows no more."""
WATCH_S = 0.02
STORE_RETRY_S = 0.05
SEAL_TRIES = 5
SETTLED = {(Standing.ALONE, Link.DOWN), (Standing.PAIRED, Link.LIVE)}


class Begun(NamedTuple):
    """What a follower begins with: files of a folder, by name and size, and where they end."""

    folder: str
    files: list[tuple[str, int]]
    next_seq: int


class Tail(NamedTuple):
    """Batches, byte for byte, and the last sequence that the log has by now."""

    batches: list[bytes]
    last_seq: int


class Outgoing:
    """One per owner that has a log; idle until somebody follows it."""

    def __init__(
        self,
        shard: Shard,
        endpoint: Endpoint,
        folder: Path,
        copy_id: str,
        replicator: Replicator,
        store: EpochStore,
        contacts: Contacts,
    ) -> None:
        assert shard.journal is not None
        self.gate = Gate(replicator.primary.epoch)
        self._shard = shard
        self._journal = shard.journal
        self._endpoint = endpoint
        self._folder = folder
        self._copy_id = copy_id
        self._replicator = replicator
        self._store = store
        self._contacts = contacts
        self._loop = asyncio.get_running_loop()
        self._batches: deque[Written] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._asked_s = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._deciding: asyncio.Task[None] | None = None

    # To be followed.

    async def begin(self, handoff: str) -> Begun:
        """Let others follow the log from here on. Raises Unavailable."""
        async with self._replicator.files:
            self._asked_s = self._loop.time()
            if not self._shard.followed:
                self._shard.followed = True
                self._journal.listen(self._keep)
                self._watching = asyncio.create_task(self._watch())
            sealed, next_seq = await self._sealed(handoff)
            files = [*snapshots(self._folder)[-1:], *sealed]
            sizes = [(path.name, path.stat().st_size) for path in files]
            return Begun(str(self._folder), sizes, next_seq)

    async def _sealed(self, handoff: str) -> tuple[list[Path], int]:
        """Segments that change no more, and the first sequence behind them. Raises Unavailable."""
        for _ in range(SEAL_TRIES):
            self._journal.writer.seal()
            self._shard.log(Followed(handoff))
            await self._journal.sync()
            *sealed, active = segments(self._folder)
            next_seq = first_seq_of(active)
            # A batch that was under way when all this began may have opened the segment unheard.
            if sealed and not (self._batches and self._batches[0].first_seq > next_seq):
                return sealed, next_seq
        raise Unavailable("the log can't begin a new segment now")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A piece of a file that `begin` named. Raises OSError."""
        with (self._folder / Path(name).name).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    async def tail(self, next_seq: int) -> Tail:
        """Batches from there on; waits a moment if there are none. Raises Unavailable."""
        self._asked_s = self._loop.time()
        if not self._shard.followed:
            raise Unavailable("its log is not followed")
        if self._journal.writer.last_seq < next_seq:
            self._news.clear()
            try:
                async with asyncio.timeout(TAIL_S):
                    await self._news.wait()
            except TimeoutError:
                return Tail([], self._journal.writer.last_seq)
        part: list[bytes] = []
        size = 0
        for batch in self._batches:
            if batch.first_seq + batch.records_n <= next_seq:
                continue
            if not part and batch.first_seq > next_seq:
                raise Unavailable("a follower is too far behind")
            part.append(batch.data)
            size += len(batch.data)
            if size > PART_BYTES:
                break
        return Tail(part, self._journal.writer.last_seq)

    def _keep(self, batch: Written) -> None:
        self._batches.append(batch)
        self._bytes += len(batch.data)
        while self._bytes > TAIL_BYTES_MAX:
            self._bytes -= len(self._batches.popleft().data)
        self._news.set()

    def _end(self) -> None:
        self._shard.followed = False
        self._journal.listen(None)
        self._batches.clear()
        self._bytes = 0

    # To be frozen, and what comes of it.

    async def freeze(self, handoff: str, epoch: int) -> int:
        """Hold what arrives; the last sequence of the log, once that is durable.

        Raises NotEntitled, Unavailable.
        """
        primary = self._replicator.primary
        if self.gate.gating is Gating.OPEN:
            self.gate.epoch = primary.epoch
            if (primary.standing, primary.link) not in SETTLED:
                raise Unavailable(f"its backup is not settled: {primary.standing}, {primary.link}")
        self.gate.freeze(handoff, epoch, self._loop.time())
        self._shard.paused = True
        self._endpoint.hold()
        self._contacts.stop()
        await self._journal.sync()
        return self._journal.writer.last_seq

    async def resume(self, handoff: str) -> None:
        """Claim the range again if it froze for this handoff, and be followed no more."""
        if self.gate.gating is Gating.FROZEN and self.gate.handoff == handoff:
            self._decide()
        if self._deciding is not None:
            # Its own work: it ends whether or not who asked for it is still there.
            await asyncio.shield(self._deciding)
        if self.gate.gating is Gating.OPEN:
            self._end()

    def release(self, handoff: str, map_epoch: int) -> None:
        """The table has been swapped: send everybody to the map of that epoch."""
        if self.gate.handoff == handoff and self.gate.gating is not Gating.OPEN:
            self._shard.epoch = map_epoch
            self._go()

    async def _watch(self) -> None:
        while self._shard.followed:
            await asyncio.sleep(WATCH_S)
            now_s = self._loop.time()
            if self.gate.must_claim(now_s):
                self._decide()
            elif self.gate.gating is Gating.OPEN and now_s - self._asked_s > FORGOTTEN_S:
                LOG.warning("shard %s is followed by nobody any more", self._shard.shard_id)
                self._end()

    def _decide(self) -> None:
        self.gate.claim()
        self._deciding = asyncio.create_task(self._claim_again())

    async def _claim_again(self) -> None:
        gate, primary = self.gate, self._replicator.primary
        if primary.epoch == gate.epoch:
            try:
                await change(
                    self._store,
                    self._shard.shard_id,
                    lambda claim: claim_again(claim, gate.epoch, self._copy_id),
                    _pause,
                )
            except NotEntitled as error:
                LOG.warning("shard %s: %s", self._shard.shard_id, error)
                self._go()
                return
            self._replicator.reclaimed()
        # Or else its backup was dropped or recruited meanwhile, which was a claim as well.
        gate.claimed(primary.epoch)
        LOG.warning("shard %s goes on at epoch %d", self._shard.shard_id, primary.epoch)
        self._shard.paused = False
        self._contacts.begin()
        self._endpoint.go_on()

    def _go(self) -> None:
        """Others own the range: answer nothing any more but where they may be found."""
        self.gate.deposed()
        self._shard.gone = True
        self._endpoint.go_on()


async def _pause() -> None:
    await asyncio.sleep(STORE_RETRY_S)
