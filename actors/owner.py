"""From a copy on this node's disk to a shard that owns its range and may answer.

Drives `cluster.takeover`: claim -> seal -> replay -> wait -> serve. Plain asyncio without Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from actors import records
from actors.copies import CopyFolder
from actors.journal import Journal
from actors.log_files import encoded
from actors.recovery import LOCK_WAIT_S, recover
from actors.replicator import Peer, Replicator
from actors.shard import Shard
from actors.wal import End, WalCorrupt, decode_batch
from actors.wal_writer import CopyWriter
from actors.watermark import check_end
from cluster.config import Config
from cluster.ownership import Claim, Copy, EpochStore, NotEntitled, change, take_over
from cluster.replication import LEASE_S, Primary
from cluster.takeover import Step, Takeover

LOG = logging.getLogger("onehop.actors")

CLAIM_RETRY_S = 0.2


class Surroundings(NamedTuple):
    """What a taker needs of the world.

    release(epoch)  makes the process that follows with this copy seal it and let go; how long a
                    lease of its may last. Raises whatever it fails with: then the lock decides
    leave(reason)   ends this process
    """

    config: Config
    node_id: str
    store: EpochStore
    secret: bytes
    release: Callable[[int], Awaitable[float]]
    leave: Callable[[str], None]


class Owned(NamedTuple):
    """A shard that serves."""

    claim: Claim
    journal: Journal
    replicator: Replicator


async def take_ownership(
    shard: Shard, folder: CopyFolder, peer: Peer | None, around: Surroundings
) -> Owned:
    """Take the range over with this copy.

    peer  where the backup listens that the claim names, if it is known
    Raises NotEntitled if the table does not name the copy, Unavailable if another process holds
    it, WalCorrupt if its log can't be trusted or lacks what was acknowledged.
    """
    loop = asyncio.get_running_loop()
    table = (await around.store.read())[1]
    own = table is not None and table.claim(shard.shard_id).owner.copy_id == folder.copy_id
    if own:
        # The lock is the fence between two lives of one copy, so it comes before the claim.
        folder.lock(LOCK_WAIT_S)
    takeover = Takeover(folder.state.served)
    make = partial(take_over, copy=Copy(folder.copy_id, around.node_id))
    try:
        claim = await change(around.store, shard.shard_id, make, _pause)
    except NotEntitled:
        takeover.claimed(False)
        folder.unlock()
        raise
    takeover.claimed(True)
    lease_s = LEASE_S if own else await _seal(folder, claim.epoch, around)
    folder.save(replace(folder.state, sealed=claim.epoch))
    takeover.sealed(lease_s, loop.time())
    end = recover(shard, folder.path)
    takeover.replayed()
    primary = Primary(claim.epoch, claim.backup is not None, end.next_seq, end.crc)
    log = _Log(shard, folder, around.config, end)
    replicator = Replicator(
        shard.shard_id,
        folder.copy_id,
        folder.path,
        primary,
        around.store,
        around.secret,
        around.leave,
        log.take_in,
        asyncio.Lock(),
    )
    if peer is not None and claim.backup and peer.copy.copy_id == claim.backup.copy_id:
        replicator.follow_known(peer)
    while (wait_s := takeover.wait_s(loop.time())) > 0 or takeover.step is not Step.SERVE:
        await asyncio.sleep(wait_s)
    await replicator.met()
    try:
        # What is missing at the end the backup may have given by now.
        check_end(folder.path, log.end)
    except WalCorrupt:
        replicator.close()
        folder.unlock()
        raise
    folder.save(replace(folder.state, served=True))
    journal = Journal(
        folder.path,
        log.end,
        lambda error: around.leave(f"its log failed: {error}"),
        around.config.wal_segment_bytes,
        primary,
        replicator.on_batch if around.config.level == "replica" else None,
    )
    replicator.journal = shard.journal = journal
    shard.replication = replicator.report
    LOG.info("shard %s is owned at epoch %d, %s", shard.shard_id, claim.epoch, primary.standing)
    return Owned(claim, journal, replicator)


async def _seal(folder: CopyFolder, epoch: int, around: Surroundings) -> float:
    """Let nobody else append to the copy any more; how long a lease that it granted may last."""
    try:
        lease_s = await around.release(epoch)
    except Exception as error:
        LOG.warning("copy %s is taken without its follower: %s", folder.copy_id, error)
        lease_s = LEASE_S
    # Who followed with this copy has let go of it now, or has died, or must be ended by others.
    folder.lock(LOCK_WAIT_S)
    return lease_s


class _Log:
    """The own log before there is a journal: what the backup has beyond it is taken in."""

    def __init__(self, shard: Shard, folder: CopyFolder, config: Config, end: End) -> None:
        self.end = end
        self._shard = shard
        self._folder = folder
        self._config = config

    async def take_in(self, batches: list[bytes]) -> None:
        """Write batches to the log, durably, and apply their records. Raises OSError."""
        errors: list[OSError] = []
        writer = CopyWriter(
            self._folder.path,
            self.end,
            lambda seq: None,
            errors.append,
            self._config.wal_segment_bytes,
        )
        decoded = [decode_batch(data) for data in batches]
        for batch in decoded:
            writer.append_batch(encoded(batch))
        await asyncio.to_thread(writer.close)
        if errors:
            raise errors[0]
        for batch in decoded:
            for record in batch.records:
                self._shard.replay(records.decode(record))
        self.end = writer.end


async def _pause() -> None:
    await asyncio.sleep(CLAIM_RETRY_S)
