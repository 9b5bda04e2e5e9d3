"""Who may own which range, on which copy of its log: the table, and how it changes. Pure.

The table is one small document in an `EpochStore`, changed by compare-and-swap of its version, so
that several claims can change in one step. Every change of a claim gives it the next epoch, and
nobody but its maker ever holds that epoch: what carries an older one is refused everywhere.

    take over   the holder of the owner copy, or of the backup copy, becomes the owner
    drop        the owner goes on without its backup, which may never take over then
    recruit     the owner names a backup, which holds by then all that was acknowledged

A copy is a folder with a shard's log; only copies that the newest table names may take over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from msgspec.structs import replace

from cluster.errors import OnehopError, Unavailable
from cluster.keys import HASH_SPACE, KeyRange
from cluster.levels import Level


class Copy(msgspec.Struct, frozen=True):
    """One copy of a shard's log, and the node that had it when the claim was made."""

    copy_id: str
    node_id: str = ""


class Claim(msgspec.Struct, frozen=True):
    """Who owns one range. start, stop: hexadecimal text, as in `partition_map.Owner`."""

    shard_id: str
    start: str
    stop: str
    epoch: int
    owner: Copy
    backup: Copy | None = None

    @property
    def range(self) -> KeyRange:
        return KeyRange(int(self.start, 16), int(self.stop, 16))

    def names(self, copy_id: str) -> bool:
        """Whether this copy may take over."""
        return copy_id == self.owner.copy_id or (
            self.backup is not None and copy_id == self.backup.copy_id
        )


class NotEntitled(OnehopError):
    """A copy, or an owner by its epoch, has no right to change the claim of its shard."""


class Table(msgspec.Struct, frozen=True):
    """All claims, in order of their ranges, and the settings on which all copies' files depend.

    level          what durability "auto" stands for here; never lowered by itself
    epochs_before  map epochs that were given out before there was a table
    """

    claims: tuple[Claim, ...]
    ring_events_max: int
    level: Level = "disk"
    epochs_before: int = 0

    def __post_init__(self) -> None:
        expected = 0
        for entry in self.claims:
            if entry.range.start != expected:
                raise ValueError(
                    f"claims must cover the hash space without gap or overlap: {entry.shard_id} "
                    f"starts at {entry.range.start:x}, wanted {expected:x}"
                )
            expected = entry.range.stop
            if entry.epoch < 1:
                raise ValueError(f"epoch must be >= 1, got {entry.epoch}")
        if expected != HASH_SPACE:
            raise ValueError(f"claims must end at {HASH_SPACE:x}, got {expected:x}")
        if len({entry.shard_id for entry in self.claims}) < len(self.claims):
            raise ValueError("a shard must have one claim")

    def claim(self, shard_id: str) -> Claim:
        """The claim of a shard. Raises NotEntitled if there is none: it was merged away."""
        for entry in self.claims:
            if entry.shard_id == shard_id:
                return entry
        raise NotEntitled(f"shard {shard_id} is not in the table")

    def with_claim(self, claim: Claim) -> Table:
        """The table with this claim in place of the one before."""
        return replace(
            self,
            claims=tuple(claim if one.shard_id == claim.shard_id else one for one in self.claims),
        )


class EpochStore(Protocol):
    """Keeps the table. Linearizable: a swap that returned is seen by every later read.

    Both raise Unavailable if the store can't be reached; a swap's outcome is unknown then.
    """

    async def read(self) -> tuple[int, Table | None]:
        """(version, table); (0, None) before the first swap."""

    async def swap(self, version: int, table: Table) -> bool:
        """Replace the table of `version`, as version + 1; False if that is not the version now."""


def claim_of(
    shard_id: str, key_range: KeyRange, epoch: int, owner: Copy, backup: Copy | None = None
) -> Claim:
    """A `Claim` from a KeyRange."""
    return Claim(shard_id, f"{key_range.start:x}", f"{key_range.stop:x}", epoch, owner, backup)


def take_over(claim: Claim, copy: Copy) -> Claim:
    """The holder of `copy` owns the range. An owner's copy keeps its backup, a backup's has none:
    the copy that it leaves behind may hold what nobody else has, and was acknowledged to nobody.

    Raises NotEntitled if the claim does not name the copy.

    >>> claim = claim_of("0", KeyRange(0, HASH_SPACE), 4, Copy("a"), Copy("b"))
    >>> taken = take_over(claim, Copy("b", "node-2"))
    >>> taken.epoch, taken.owner, taken.backup
    (5, Copy(copy_id='b', node_id='node-2'), None)
    """
    if not claim.names(copy.copy_id):
        raise NotEntitled(
            f"copy {copy.copy_id} may not own shard {claim.shard_id}: epoch {claim.epoch} names "
            f"{claim.owner.copy_id}" + (f" and {claim.backup.copy_id}" if claim.backup else "")
        )
    backup = claim.backup if copy.copy_id == claim.owner.copy_id else None
    return replace(claim, epoch=claim.epoch + 1, owner=copy, backup=backup)


def drop_backup(claim: Claim, epoch: int, copy_id: str) -> Claim:
    """The owner goes on alone. Raises NotEntitled if it is not the owner of that epoch any more."""
    _check_owner(claim, epoch, copy_id)
    return replace(claim, epoch=epoch + 1, backup=None)


def recruit(claim: Claim, epoch: int, copy_id: str, backup: Copy) -> Claim:
    """The owner names its backup. Raises NotEntitled as `drop_backup` does, and if it has one."""
    _check_owner(claim, epoch, copy_id)
    if claim.backup is not None or backup.copy_id == copy_id:
        raise NotEntitled(f"shard {claim.shard_id} has a backup at epoch {epoch}")
    return replace(claim, epoch=epoch + 1, backup=backup)


def _check_owner(claim: Claim, epoch: int, copy_id: str) -> None:
    if claim.epoch != epoch or claim.owner.copy_id != copy_id:
        raise NotEntitled(
            f"copy {copy_id} was deposed at epoch {epoch} of shard {claim.shard_id}: "
            f"{claim.owner.copy_id} owns it at {claim.epoch}"
        )


async def change(
    store: EpochStore,
    shard_id: str,
    make: Callable[[Claim], Claim],
    pause: Callable[[], Awaitable[None]],
) -> Claim:
    """Swap a shard's claim for `make(claim)`, again until it is known what came of it.

    An attempt whose outcome is unknown may still be under way; it can't happen any more once the
    version has moved on. So this ends with an answer, or with the caller's process.
    Returns the new claim. Raises NotEntitled, from `make` or if somebody else changed the claim.
    """
    while True:
        try:
            version, table = await store.read()
            break
        except Unavailable:
            await pause()
    if table is None:
        raise NotEntitled("there is no table yet")
    before = table.claim(shard_id)
    wanted = make(before)
    while True:
        try:
            if await store.swap(version, table.with_claim(wanted)):
                return wanted
            version, read = await store.read()
        except Unavailable:
            await pause()
            continue
        if read is None:
            raise NotEntitled("the table is gone")
        table = read
        now = table.claim(shard_id)
        if now == wanted:
            return wanted
        if now != before:
            raise NotEntitled(
                f"shard {shard_id} was claimed by another: epoch {now.epoch}, wanted {wanted.epoch}"
            )
