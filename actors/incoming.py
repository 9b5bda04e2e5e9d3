"""A shard that is to be: it copies what its sources hold, follows their logs, and then serves.

Plain asyncio without Ray. What it takes over is in its own copy of a log, durably, before it owns
anything; until the table names it, all of it can be thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from actors import records
from actors.copies import CopyFolder, CopyState
from actors.extraction import Numbers, Successor, take_range
from actors.journal import Journal
from actors.outgoing import Begun, Tail
from actors.owner import Owned, Surroundings
from actors.quiet import quietly
from actors.recovery import replay
from actors.replicator import Peer, Replicator
from actors.shard import Shard
from actors.snapshot import write_snapshot
from actors.state import ShardState
from actors.wal import End, decode_batch, fsync_folder
from cluster.errors import OnehopError, Unavailable
from cluster.keys import HASH_SPACE, KeyRange
from cluster.ownership import Claim, NotEntitled
from cluster.replication import Primary

LOG = logging.getLogger("onehop.actors")

PIECE_BYTES = 4 << 20
RESTED_BYTES_MAX = 512 << 20
"""So much is read and written with rests; with more, the sources would have to keep too much for
us of what they write meanwhile."""
TURN_RECORDS = 200
"""Records applied in one turn of the loop."""
ITEM_S = 5.0
"""How long to wait for items that a record is about."""
FIRST_SEQ = 2
"""Of the own log: the snapshot with what was copied stands before it."""


class Source(NamedTuple):
    """A shard whose keys, or a part of them, are taken over. start: of its range."""

    shard_id: str
    start: int


class Order(msgspec.Struct, frozen=True):
    """What a target is to own, and from whom it takes that over.

    peer  where the backup listens that the claim names
    """

    handoff: str
    claim: Claim
    sources: list[Source]
    peer: Peer | None = None


class SourceLog(Protocol):
    """A source's log, wherever it runs. All raise Unavailable if it can't be reached."""

    async def begin(self, handoff: str) -> Begun: ...

    async def read(self, name: str, offset: int, size: int) -> bytes: ...

    async def tail(self, next_seq: int) -> Tail: ...


class _Following(msgspec.Struct):
    """How far one source's log is taken in. next_seq, last_seq: of the source's log."""

    log: SourceLog
    successor: Successor
    next_seq: int
    last_seq: int


class Incoming:
    """One per target.

    handoff  its name
    claim    what the target is to own, if it comes to that
    peer     the backup that the claim names, which gets what this copy writes; None: it names none
    """

    def __init__(
        self,
        shard: Shard,
        folder: CopyFolder,
        handoff: str,
        claim: Claim,
        peer: Peer | None,
        around: Surroundings,
    ) -> None:
        self.owned: Owned | None = None
        self._shard = shard
        self._folder = folder
        self._handoff = handoff
        self._claim = claim
        self._peer = peer
        self._around = around
        self._following: dict[str, _Following] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._progress = asyncio.Event()

    async def copy(self, sources: Mapping[Source, SourceLog]) -> None:
        """Take over what the sources hold now, into memory and onto the own disk.

        Raises Unavailable, StoreFull, WalCorrupt, OSError.
        """
        self._shard.learns = False
        self._folder.create(CopyState(sealed=self._claim.epoch, served=True))
        self._folder.lock(0.0)
        hurried = False
        for source, log in sources.items():
            begun = await log.begin(self._handoff)
            folder = self._folder.path / f"incoming-{source.shard_id}"
            hurried = hurried or sum(size for _, size in begun.files) > RESTED_BYTES_MAX
            try:
                await self._fetch(log, begun, folder)
                heir = source.start in self._shard.key_range
                numbers = await quietly(self._extract, folder, heir, begun.next_seq, hurried)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, True)
            successor = Successor(self._shard, heir, numbers)
            self._following[source.shard_id] = _Following(
                log, successor, begun.next_seq, begun.next_seq - 1
            )
        # The first call to a store takes as long as a freeze may: not then.
        await self._around.store.read()
        end = End(FIRST_SEQ, self._claim.epoch, None, 0, 0)
        # The sources keep for us what they write meanwhile.
        await quietly(write_snapshot, self._shard, self._folder.path, end, hurried)
        await self._open_log(end)
        # Until the backup has all of it: when the sources are frozen nobody is to wait for that.
        assert self.owned is not None
        self._shard.log(records.Followed(self._handoff))
        await self.owned.journal.sync()

    async def _fetch(self, log: SourceLog, begun: Begun, folder: Path) -> None:
        """Bring the files of a source here: by name if they are on this disk, else piecewise."""
        folder.mkdir()
        for name, size in begun.files:
            path = folder / Path(name).name
            try:
                os.link(Path(begun.folder) / path.name, path)
                continue
            except OSError:
                LOG.info("%s is fetched, since it is not on this disk", name)
            with path.open("wb") as file:
                for offset in range(0, size, PIECE_BYTES):
                    piece = await log.read(name, offset, min(PIECE_BYTES, size - offset))
                    await asyncio.to_thread(file.write, piece)

    def _extract(self, folder: Path, heir: bool, next_seq: int, hurried: bool) -> Numbers:
        config = self._shard.config
        whole = ShardState("source", KeyRange(0, HASH_SPACE), config, now=self._shard.now)
        whole.learns = False
        end = replay(whole, folder, hurried=hurried)
        if end.next_seq != next_seq:
            raise Unavailable(f"the source's files end before {end.next_seq}, wanted {next_seq}")
        return take_range(self._shard, whole, heir)

    async def _open_log(self, end: End) -> None:
        shard, around = self._shard, self._around
        primary = Primary(self._claim.epoch, self._peer is not None, end.next_seq, end.crc)
        replicator = Replicator(
            shard.shard_id,
            self._folder.copy_id,
            self._folder.path,
            primary,
            around.store,
            around.secret,
            around.leave,
            _nothing_to_take_in,
            asyncio.Lock(),
        )
        if self._peer is not None:
            replicator.follow_known(self._peer)
        await replicator.met()
        journal = Journal(
            self._folder.path,
            end,
            lambda error: around.leave(f"its log failed: {error}"),
            around.config.wal_segment_bytes,
            primary,
            replicator.on_batch if around.config.level == "replica" else None,
        )
        replicator.journal = shard.journal = journal
        shard.replication = replicator.report
        fsync_folder(self._folder.path)
        self.owned = Owned(self._claim, journal, replicator)

    # Following.

    def follow(self) -> None:
        """Take in what the sources write, from now on."""
        for source_id, following in self._following.items():
            self._tasks.append(asyncio.create_task(self._follow(source_id, following)))

    @property
    def lag(self) -> int:
        """Records that the sources had when they were last asked, and that are not taken in.

        Raises Unavailable if a source can't be followed any more.
        """
        self._check()
        return sum(one.last_seq - one.next_seq + 1 for one in self._following.values())

    async def finish(self, last_seqs: Mapping[str, int]) -> None:
        """Returns once all up to these sequences is in the own log, durably. Raises Unavailable."""
        while any(self._following[one].next_seq <= seq for one, seq in last_seqs.items()):
            self._check()
            self._progress.clear()
            await self._progress.wait()
        self.close()
        assert self.owned is not None
        await self.owned.journal.sync()

    async def own(self) -> None:
        """Own the range. Raises NotEntitled if the table does not say so."""
        table = (await self._around.store.read())[1]
        if table is None or table.claim(self._claim.shard_id) != self._claim:
            raise NotEntitled(f"the table does not give {self._claim.shard_id} to this copy")
        self._shard.learns = True
        # It finds the timers that it took over in the ledgers.
        self._shard.watch.knows_timers = False

    def close(self) -> None:
        """Follow no more."""
        for task in self._tasks:
            task.cancel()

    def _check(self) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled():
                error = task.exception()
                raise Unavailable(f"a source can't be followed: {error!r}")

    async def _follow(self, source_id: str, following: _Following) -> None:
        try:
            while True:
                tail = await following.log.tail(following.next_seq)
                for data in tail.batches:
                    await self._take_in(following, data)
                following.last_seq = max(tail.last_seq, following.next_seq - 1)
                self._progress.set()
        finally:
            self._progress.set()

    async def _take_in(self, following: _Following, data: bytes) -> None:
        batch = decode_batch(data)
        skipped = max(following.next_seq - batch.first_seq, 0)
        for count, encoded in enumerate(batch.records[skipped:], 1):
            record = records.decode(encoded)
            await self._wait_for_items(following.successor, record)
            following.successor.apply(record)
            following.next_seq = batch.first_seq + skipped + count
            if count % TURN_RECORDS == 0:
                await asyncio.sleep(0)

    async def _wait_for_items(self, successor: Successor, record: records.AnyRecord) -> None:
        deadline_s = asyncio.get_running_loop().time() + ITEM_S
        while successor.lacks(record):
            if asyncio.get_running_loop().time() > deadline_s:
                raise Unavailable("the coordinator did not tell of an item that a source has")
            await asyncio.sleep(0.005)


async def _nothing_to_take_in(batches: Sequence[bytes]) -> None:
    raise OnehopError(f"a new copy's backup can't be ahead of it, and is by {len(batches)} batches")
