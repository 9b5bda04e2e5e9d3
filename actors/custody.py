"""Which copy of which shard lies where: founds the table, places owners, recruits backups.

Plain asyncio without Ray. It proposes only; who may own is decided by the epoch store, and by the
owners and backups themselves. So what it believes may be old, and nothing breaks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from actors.copies import CopyFound, CopyState, new_copy_id
from actors.epoch_store import adopt_old_folder
from actors.replicator import Peer
from cluster.config import Config
from cluster.errors import ConfigError, OnehopError, Unavailable
from cluster.keys import split_evenly
from cluster.levels import Level
from cluster.ownership import Claim, Copy, EpochStore, Table, claim_of
from cluster.replication import Link, Standing

LOG = logging.getLogger("onehop.actors")

STORE_RETRY_S = 0.2
STORE_S = 30.0
CANDIDATE_S = 120.0
"""How long a candidate may take to catch up before another is tried."""
CLEAN_S = 600.0
"""Between two looks for copies that nobody needs: a node may come back with one, and with people in
it who were erased since."""
CLEAN_TRIES = 10
CLEAN_PAUSE_S = 1.0
OWN_TRIES = 2
"""Starts of the owner's copy that may fail before its backup takes over."""


class Place(msgspec.Struct, frozen=True):
    """Where an owner is to be started, with which copy, and where its backup listens."""

    copy_id: str = ""
    node_id: str = ""
    peer: Peer | None = None


class Pulse(msgspec.Struct, frozen=True):
    """What an owner says of itself when it is asked whether it lives."""

    pid: int
    epoch: int = 0
    standing: str = Standing.ALONE.value
    link: str = Link.DOWN.value


class Nodes(Protocol):
    """The nodes of the cluster. What takes a node raises Unavailable if it does not answer."""

    def alive(self) -> list[str]:
        """Ids of the nodes that may hold copies, in a stable order."""

    async def copies(self, node_id: str) -> list[CopyFound]: ...

    async def create(self, node_id: str, shard_id: str, copy_id: str, state: CopyState) -> None: ...

    async def remove(self, node_id: str, shard_id: str, copy_id: str) -> None: ...

    async def follow(
        self, node_id: str, shard_id: str, copy_id: str, made_for: int | None
    ) -> tuple[str, int]:
        """Let a copy follow its owner; where. made_for None: the copy must be there already."""

    async def check(self, node_id: str) -> None:
        """See to it that what keeps the backups there answers, or is ended."""

    async def kill(self, node_id: str, pid: int) -> None:
        """SIGKILL, which a process that was stopped takes too."""


class Follows(Protocol):
    """An owner, as far as it is told of its backup."""

    async def follow(self, peer: Peer, epoch: int) -> None: ...


class Custody:
    """One per coordinator."""

    def __init__(self, config: Config, store: EpochStore, nodes: Nodes) -> None:
        self.config = config
        self.store = store
        self.nodes = nodes
        self.version = 0
        self.table: Table | None = None
        self.draining: set[str] = set()
        """Nodes that are to go: no new copy is made there."""
        self._candidates: dict[str, tuple[int, float, Peer]] = {}
        self._cleaned: dict[str, tuple[int, float]] = {}

    async def open(self) -> Table:
        """Read the table, or found it. From here on `config.durability` names a level.

        Raises ConfigError if the settings do not fit the data, Unavailable.
        """
        await self.read()
        alive = self.nodes.alive()
        if self.table is None:
            await self._found(alive)
        table = self.table
        assert table is not None
        level = table.level
        if self.config.durability != "auto":
            level = self.config.durability
        elif len(alive) > 1:
            level = "replica"
        if self.config.ring_events_max != table.ring_events_max:
            raise ConfigError(
                f"ring_events_max must stay {table.ring_events_max} for the data that is there, "
                f"got {self.config.ring_events_max}"
            )
        if level != table.level:
            await self._swap(msgspec.structs.replace(table, level=level))
        self.config = msgspec.structs.replace(self.config, durability=level)
        return self._known

    async def read(self) -> Table | None:
        """The table as it is now. Raises Unavailable after STORE_S without an answer."""
        deadline_s = asyncio.get_running_loop().time() + STORE_S
        while True:
            try:
                self.version, self.table = await self.store.read()
                return self.table
            except Unavailable:
                if asyncio.get_running_loop().time() > deadline_s:
                    raise
                await asyncio.sleep(STORE_RETRY_S)

    async def publish(self) -> int:
        """A map epoch that no map had before."""
        await self._swap(self._known)
        return self.map_epoch

    @property
    def map_epoch(self) -> int:
        """The last map epoch that was given out; it only ever grows."""
        return self.version + self._known.epochs_before

    async def claim(self, shard_id: str) -> Claim:
        await self.read()
        return self._known.claim(shard_id)

    @property
    def _known(self) -> Table:
        if self.table is None:
            raise Unavailable("there is no table of claims yet")
        return self.table

    async def _swap(self, table: Table) -> None:
        """Change what is no shard's claim, over whatever changed meanwhile."""
        while not await self.store.swap(self.version, table):
            known = await self.read()
            if known is not None:
                table = msgspec.structs.replace(table, claims=known.claims)
        self.version, self.table = self.version + 1, table

    async def _found(self, alive: list[str]) -> None:
        adopted = await asyncio.to_thread(adopt_old_folder, self.config)
        if adopted is not None:
            table = adopted
        else:
            pairs = self.config.level == "replica" or len(alive) > 1
            level: Level = "replica" if pairs else "disk"
            claims = []
            for number, key_range in enumerate(split_evenly(self.config.shards)):
                node_id, copy_id = alive[number % len(alive)], new_copy_id()
                await self.nodes.create(node_id, str(number), copy_id, CopyState(served=True))
                claims.append(claim_of(str(number), key_range, 1, Copy(copy_id, node_id)))
            table = Table(tuple(claims), self.config.ring_events_max, level)
        if await self.store.swap(0, table):
            self.version, self.table = 1, table
        else:
            await self.read()

    # Placing owners.

    async def place(self, shard_id: str, tries: int) -> Place:
        """Which copy to start as the owner, and where, after so many failed tries.

        Raises Unavailable if no node that answers has a copy that may own.
        """
        claim = await self.claim(shard_id)
        found = await self._inventory(shard_id)
        owner_nodes = found.get(claim.owner.copy_id, [])
        backup_nodes = found.get(claim.backup.copy_id, []) if claim.backup else []
        if owner_nodes and not (backup_nodes and tries >= OWN_TRIES):
            node_id = _pick(claim.owner, owner_nodes, int(claim.start, 16))
            return Place(
                claim.owner.copy_id, node_id, await self._peer(claim, backup_nodes, node_id)
            )
        if claim.backup is not None and backup_nodes:
            node_id = _pick(claim.backup, backup_nodes, 0)
            LOG.warning("shard %s is to be taken over by its backup on %s", shard_id, node_id)
            await self.nodes.check(node_id)
            return Place(claim.backup.copy_id, node_id)
        raise Unavailable(
            f"no node that answers has copy {claim.owner.copy_id} of shard {shard_id}"
            + (f" or {claim.backup.copy_id}" if claim.backup else "")
        )

    async def _inventory(self, shard_id: str) -> dict[str, list[str]]:
        """Nodes by the copy that they have of a shard."""
        alive = self.nodes.alive()
        answers = await asyncio.gather(*map(self.nodes.copies, alive), return_exceptions=True)
        found: dict[str, list[str]] = {}
        for node_id, copies in zip(alive, answers, strict=True):
            if isinstance(copies, BaseException):
                LOG.warning("node %s does not say which copies it has: %r", node_id, copies)
                continue
            for copy in copies:
                if copy.shard_id == shard_id:
                    found.setdefault(copy.copy_id, []).append(node_id)
        return found

    async def _peer(self, claim: Claim, nodes: list[str], owner_node: str) -> Peer | None:
        others = [node for node in nodes if node != owner_node]
        if claim.backup is None or not others or self.config.level != "replica":
            return None
        node_id = _pick(claim.backup, others, int(claim.start, 16))
        try:
            host, port = await self.nodes.follow(
                node_id, claim.shard_id, claim.backup.copy_id, None
            )
        except OnehopError as error:
            LOG.warning("shard %s: its backup does not start: %s", claim.shard_id, error)
            return None
        return Peer(Copy(claim.backup.copy_id, node_id), host, port)

    # Backups.

    async def tend(self, shard_id: str, owner_node: str, pulse: Pulse, owner: Follows) -> None:
        """See to it that an owner that lives has a backup, or will. Called about once a second."""
        if self.config.level != "replica":
            return
        if pulse.standing == Standing.ALONE:
            peer = await self._candidate(shard_id, owner_node, pulse.epoch)
            if peer is not None:
                await owner.follow(peer, pulse.epoch)
        elif pulse.standing == Standing.PAIRED and pulse.link == Link.DOWN:
            claim = await self.claim(shard_id)
            nodes = (await self._inventory(shard_id)).get(
                claim.backup.copy_id if claim.backup else "", []
            )
            peer = await self._peer(claim, nodes, owner_node)
            if peer is not None:
                await owner.follow(peer, pulse.epoch)
        elif pulse.standing == Standing.PAIRED:
            now_s = asyncio.get_running_loop().time()
            epoch, cleaned_s = self._cleaned.get(shard_id, (-1, now_s))
            if epoch != pulse.epoch or now_s > cleaned_s + CLEAN_S:
                self._candidates.pop(shard_id, None)
                await self._clean(shard_id)
                self._cleaned[shard_id] = (pulse.epoch, now_s)

    async def _candidate(self, shard_id: str, owner_node: str, epoch: int) -> Peer | None:
        """A copy for the owner of that epoch to recruit; made if there is none yet."""
        now_s = asyncio.get_running_loop().time()
        known = self._candidates.get(shard_id)
        alive = self.nodes.alive()
        if known is not None and known[0] == epoch and known[2].copy.node_id in alive:
            if now_s - known[1] < CANDIDATE_S:
                copy = known[2].copy
                host, port = await self.nodes.follow(copy.node_id, shard_id, copy.copy_id, epoch)
                return Peer(copy, host, port)
            alive = [node for node in alive if node != known[2].copy.node_id] or alive
        peer = await self._new_candidate(shard_id, owner_node, epoch, alive)
        if peer is not None:
            self._candidates[shard_id] = (epoch, now_s, peer)
        return peer

    async def candidate(self, shard_id: str, owner_node: str, epoch: int) -> Peer | None:
        """A new copy for a shard that is to be; None if there is no second node."""
        return await self._new_candidate(shard_id, owner_node, epoch, self.nodes.alive())

    async def _new_candidate(
        self, shard_id: str, owner_node: str, epoch: int, alive: list[str]
    ) -> Peer | None:
        others = [node for node in alive if node != owner_node and node not in self.draining]
        if not others:
            return None
        load = dict.fromkeys(others, 0)
        for claim in self._known.claims:
            if claim.backup is not None and claim.backup.node_id in load:
                load[claim.backup.node_id] += 1
        for _, _, peer in self._candidates.values():
            if peer.copy.node_id in load:
                load[peer.copy.node_id] += 1
        copy = Copy(new_copy_id(), min(others, key=lambda node: load[node]))
        host, port = await self.nodes.follow(copy.node_id, shard_id, copy.copy_id, epoch)
        return Peer(copy, host, port)

    async def clean_gone(self, living: Callable[[], Collection[str]]) -> None:
        """Remove copies of shards that the table names no more, `living` ones aside. Those whose
        processes are still about to end are looked at again."""
        for _ in range(CLEAN_TRIES):
            if not await self._remove_gone(living):
                return
            await asyncio.sleep(CLEAN_PAUSE_S)

    async def _remove_gone(self, living: Callable[[], Collection[str]]) -> int:
        """Returns how many copies there were to be removed."""
        table = await self.read()
        assert table is not None
        named = {claim.shard_id for claim in table.claims}
        found = 0
        for node_id in self.nodes.alive():
            try:
                for copy in await self.nodes.copies(node_id):
                    # Asked anew each time: a reshape may have begun meanwhile.
                    if copy.shard_id not in named and copy.shard_id not in living():
                        found += 1
                        LOG.info("copy %s of shard %s is removed", copy.copy_id, copy.shard_id)
                        await self.nodes.remove(node_id, copy.shard_id, copy.copy_id)
            except OnehopError as error:
                LOG.warning("copies on node %s are not cleaned up: %s", node_id, error)
        return found

    async def _clean(self, shard_id: str) -> None:
        """Remove copies that no claim names and no swap under way may name: one that was made for
        an epoch can be recruited by the owner of that epoch only."""
        claim = await self.claim(shard_id)
        for node_id in self.nodes.alive():
            for copy in await self.nodes.copies(node_id):
                useless = copy.made_for < claim.epoch and not claim.names(copy.copy_id)
                if copy.shard_id == shard_id and useless:
                    LOG.info("copy %s of shard %s is removed", copy.copy_id, shard_id)
                    await self.nodes.remove(node_id, shard_id, copy.copy_id)


def _pick(copy: Copy, nodes: list[str], spread: int) -> str:
    """The node that had the copy, or else one of those that have it now."""
    return copy.node_id if copy.node_id in nodes else nodes[spread % len(nodes)]
