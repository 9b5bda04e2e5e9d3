"""Drives an owner's `Primary`: the connection to its backup, and the claim in the epoch store.

Plain asyncio without Ray. Batches leave for the backup while the own disk syncs them. A backup that
falls behind or is new is caught up from memory, else from the log's files, else with a snapshot.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from actors.backup import MORE
from actors.follower import Piece
from actors.journal import Journal
from actors.log_files import encoded
from actors.snapshot import snapshot_end, snapshots
from actors.wal import Reader, WalCorrupt, decode_batch
from actors.wal_writer import Written
from actors.wire import ClientWire, connect
from cluster.errors import AuthError
from cluster.frames import Op
from cluster.ownership import Claim, Copy, EpochStore, NotEntitled, change, drop_backup, recruit
from cluster.replication import HEARTBEAT_S, Link, Primary, Standing
from cluster.replication_messages import Action, CatchUp, Reply, Swap, TakeIn

LOG = logging.getLogger("onehop.actors")

TICK_S = HEARTBEAT_S / 4
CONNECT_S = 1.0
RETRY_S = 0.2
RECENT_BYTES_MAX = 16 << 20
PART_BYTES = 4 << 20
PIECE_BYTES = 1 << 20
LAST_PART_BYTES = 256 << 10
CAUGHT_UP_POLL_S = 0.005
_decode = msgspec.msgpack.Decoder(Reply).decode
_encode = msgspec.msgpack.Encoder().encode


class Peer(msgspec.Struct, frozen=True):
    """A backup, or a candidate, and where it listens."""

    copy: Copy
    host: str
    port: int


class Replicator:
    """One owner's way to its backup. All methods are called in the loop.

    folder      of the own copy
    on_deposed  called once, when the range is another's: nothing may be acknowledged
    take_in     writes and applies batches that the backup has and this copy lacks, durably; only
                before there is a journal
    files       held while files of the log are read, and while others are removed
    """

    def __init__(
        self,
        shard_id: str,
        copy_id: str,
        folder: Path,
        primary: Primary,
        store: EpochStore,
        secret: bytes,
        on_deposed: Callable[[str], None],
        take_in: Callable[[list[bytes]], Awaitable[None]],
        files: asyncio.Lock,
    ) -> None:
        self.primary = primary
        self.journal: Journal | None = None
        self.peer: Peer | None = None
        self.files = files
        self._shard_id = shard_id
        self._copy_id = copy_id
        self._folder = folder
        self._store = store
        self._secret = secret
        self._on_deposed = on_deposed
        self._take_in = take_in
        self._loop = asyncio.get_running_loop()
        self._wire: ClientWire | None = None
        self._links = 0
        self._recent: deque[Written] = deque()
        self._recent_bytes = 0
        self._connecting = False
        self._taking_in = False
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._run())

    # What others ask.

    def follow(self, peer: Peer, epoch: int) -> None:
        """Where the backup listens now; or a candidate, made for the owner of that epoch."""
        primary = self.primary
        if epoch != primary.epoch or primary.standing is Standing.DEPOSED:
            return
        if self.peer is not None and self.peer.copy.copy_id == peer.copy.copy_id:
            if peer != self.peer:
                self.peer = peer
                self._hang_up()
        elif primary.standing is Standing.ALONE:
            self._hang_up()
            primary.follow()
            self.peer = peer
        self._changed.set()

    def follow_known(self, peer: Peer) -> None:
        """Where the backup listens that the claim names; before there was any."""
        self.peer = peer
        self._changed.set()

    async def met(self) -> None:
        """Returns once the owner may write: it is alone, or its backup has nothing beyond it."""
        while not self.primary.met:
            await asyncio.sleep(0.01)

    def on_batch(self, batch: Written) -> None:
        """A batch is on its way to the own disk."""
        now_s = self._loop.time()
        self._recent.append(batch)
        self._recent_bytes += len(batch.data)
        while self._recent_bytes > RECENT_BYTES_MAX:
            self._recent_bytes -= len(self._recent.popleft().data)
        request = self.primary.written(
            batch.first_seq, batch.records_n, batch.previous, batch.crc, now_s
        )
        if request is not None and self._wire is not None:
            self._wire.send(Op.REPLICATE, _encode(request), batch.data)

    def reclaimed(self) -> None:
        """The claim was made anew, with the next epoch."""
        self._do(self.primary.reclaimed(self._loop.time()))
        if self.journal is not None:
            self.journal.writer.epoch = self.primary.epoch
        self._after_change()

    def report(self) -> dict[str, Any]:
        """How replication does, for `GET /v1/shards` and metrics."""
        primary = self.primary
        paired = primary.replicates
        return {
            "epoch": primary.epoch,
            "standing": primary.standing.value,
            "link": primary.link.value,
            "copy": self._copy_id,
            "backupCopy": self.peer.copy.copy_id if self.peer and paired else None,
            "backupNode": self.peer.copy.node_id if self.peer and paired else None,
            "lagRecords": primary.next_seq - 1 - primary.backup_seq if paired else 0,
        }

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._hang_up()

    # The driver.

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # A machine refused a transition, or the like: who does not know may not go on.
            LOG.critical("replication of shard %s fails", self._shard_id, exc_info=task.exception())
            self._on_deposed(f"replication failed: {task.exception()!r}")

    async def _run(self) -> None:
        while True:
            self._do(self.primary.tick(self._loop.time()))
            if self.primary.link is Link.DOWN:
                self._hang_up()
                if self.peer is not None and not self._connecting:
                    self._connecting = True
                    self._spawn(self._connect(self.peer))
            self._after_change()
            self._changed.clear()
            try:
                async with asyncio.timeout(TICK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _connect(self, peer: Peer) -> None:
        try:
            wire = await connect((peer.host, peer.port), self._secret, CONNECT_S)
        except (OSError, AuthError, TimeoutError) as error:
            LOG.info("shard %s does not reach its backup: %r", self._shard_id, error)
            await asyncio.sleep(RETRY_S)
            return
        finally:
            self._connecting = False
        if peer is not self.peer or self.primary.link is not Link.DOWN:
            wire.close()
            return
        self._wire = wire
        self._links += 1
        wire.on_frame = self._on_frame
        wire.on_lost = lambda: self._on_lost(wire)
        wire.send(Op.FOLLOW, b"", _encode((self._shard_id, peer.copy.copy_id)))
        self._do(self.primary.linked(self._loop.time()))
        self._after_change()

    def _hang_up(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.on_lost = _nothing
            wire.close()
        if self.primary.link is not Link.DOWN:
            self.primary.unlinked()

    def _on_lost(self, wire: ClientWire) -> None:
        if wire is self._wire:
            self._wire = None
            self.primary.unlinked()
            self._changed.set()

    def _on_frame(self, op: int, status: int, meta: bytes, body: bytes) -> None:
        now_s = self._loop.time()
        if op == Op.SNAPSHOT:
            if meta == MORE:
                self.primary.seeding(now_s)
            else:
                self._do(self.primary.seeded(now_s))
            return
        for action in self.primary.receive(_decode(meta), now_s):
            if isinstance(action, TakeIn):
                self._spawn(self._fetched(body, self._links))
            else:
                self._do([action])
        self._after_change()

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, CatchUp):
                self._spawn(self._catch_up(action, self._links))
            elif isinstance(action, Swap):
                self._spawn(self._swap(action.recruit))
            elif not isinstance(action, TakeIn) and self._wire is not None:
                self._wire.send(Op.REPLICATE, _encode(action))

    def _after_change(self) -> None:
        if self.primary.standing is Standing.DEPOSED:
            self._on_deposed(f"its epoch {self.primary.epoch} is over")
        elif self.journal is not None:
            self.journal.flush()

    async def _fetched(self, body: bytes, links: int) -> None:
        """Take in what the backup has beyond this copy's log."""
        data = msgspec.msgpack.decode(body, type=list[bytes])
        if links != self._links or self.journal is not None or self._taking_in:
            return
        self._taking_in = True
        try:
            await self._take_in(data)
        finally:
            self._taking_in = False
        last = encoded(decode_batch(data[-1]))
        next_seq = last.first_seq + last.records_n
        LOG.warning("shard %s took in %d batches of its backup", self._shard_id, len(data))
        if links == self._links and self.primary.link is Link.FETCHING:
            self._do(self.primary.took_in(next_seq, last.crc, self._loop.time()))

    async def _swap(self, recruits: bool) -> None:
        primary, peer = self.primary, self.peer
        epoch = primary.epoch

        def make(claim: Claim) -> Claim:
            if not recruits:
                return drop_backup(claim, epoch, self._copy_id)
            assert peer is not None
            return recruit(claim, epoch, self._copy_id, peer.copy)

        try:
            await change(self._store, self._shard_id, make, _pause)
        except NotEntitled as error:
            LOG.warning("shard %s: %s", self._shard_id, error)
            primary.deposed()
            self._after_change()
            return
        if not recruits:
            self.peer = None
        self._do(primary.swapped(self._loop.time()))
        if self.journal is not None:
            self.journal.writer.epoch = primary.epoch
        LOG.info("shard %s is %s at epoch %d", self._shard_id, primary.standing, primary.epoch)
        self._changed.set()
        self._after_change()

    # Catching up.

    async def _catch_up(self, action: CatchUp, links: int) -> None:
        """Send the log from the backup's end on, until what is written next can be sent live."""
        next_seq, crc = action.next_seq, action.crc
        primary = self.primary

        def over() -> bool:
            return links != self._links or primary.link is not Link.CATCHING_UP

        while not over():
            wire = self._wire
            assert wire is not None
            part = self._recent_part(next_seq, crc)
            if part is not None and sum(len(batch.data) for batch in part) <= LAST_PART_BYTES:
                # In one turn: nothing is written between the last of these and the first live one.
                for batch in part:
                    self._send_old(batch, wire)
                self._do(primary.caught_up())
                self._after_change()
                return
            if part is None:
                async with self.files:
                    part = await asyncio.to_thread(self._read_part, next_seq, crc)
                    if part is None:
                        await self._seed_or_give_up(next_seq, wire, over)
                        return
            for batch in part:
                if over():
                    return
                self._send_old(batch, wire)
                next_seq, crc = batch.first_seq + batch.records_n, batch.crc
                await wire.drain()
            # From `caught_up` on answers wait for it, so the rest must be little by then.
            while not over() and primary.backup_seq < next_seq - 1:
                await asyncio.sleep(CAUGHT_UP_POLL_S)

    def _recent_part(self, next_seq: int, crc: int) -> list[Written] | None:
        """All from there on out of memory; None if memory does not reach back so far."""
        if (next_seq, crc) == (self.primary.next_seq, self.primary.crc):
            return []
        recent = [batch for batch in self._recent if batch.first_seq >= next_seq]
        if not recent or (recent[0].first_seq, recent[0].previous) != (next_seq, crc):
            return None
        return recent

    async def _seed_or_give_up(
        self, next_seq: int, wire: ClientWire, over: Callable[[], bool]
    ) -> None:
        """The log does not reach back to where the backup ends."""
        kept = snapshots(self._folder)
        if next_seq == 1 and kept:
            await self._send_snapshot(kept[-1], wire)
        elif not over():
            LOG.warning("shard %s can't catch its backup up", self._shard_id)
            self._do(self.primary.diverged())
            self._after_change()

    def _send_old(self, batch: Written, wire: ClientWire) -> None:
        request = self.primary.append(
            batch.first_seq, batch.records_n, batch.previous, batch.crc, self._loop.time()
        )
        wire.send(Op.REPLICATE, _encode(request), batch.data)

    def _read_part(self, next_seq: int, crc: int) -> list[Written] | None:
        """Some batches of the files from there on; None if the log has none that follows."""
        found: list[Written] = []
        size = 0
        try:
            for batch in Reader(self._folder, next_seq):
                if batch.first_seq < next_seq:
                    continue
                if not found and (batch.first_seq, batch.previous) != (next_seq, crc):
                    return None
                found.append(encoded(batch))
                size += len(found[-1].data)
                if size > PART_BYTES:
                    break
        except WalCorrupt as error:
            # A batch that is being written at this moment may look like anything.
            if not found:
                LOG.info("shard %s reads its log for its backup: %s", self._shard_id, error)
        return found or None

    async def _send_snapshot(self, path: Path, wire: ClientWire) -> None:
        """What an empty copy begins with; its answer to the last piece leads to another seal."""
        LOG.info("shard %s sends %s, %s", self._shard_id, path.name, snapshot_end(path))
        with path.open("rb") as file:
            offset = 0
            data = await asyncio.to_thread(file.read, PIECE_BYTES)
            while data:
                following = await asyncio.to_thread(file.read, PIECE_BYTES)
                piece = Piece(path.name, offset, not following)
                wire.send(Op.SNAPSHOT, _encode((self.primary.epoch, piece)), data)
                await wire.drain()
                offset += len(data)
                data = following


async def _pause() -> None:
    await asyncio.sleep(RETRY_S)


def _nothing() -> None:
    """Nobody cares any more."""
