"""An owner and its backup over real files and sockets: what is acknowledged is on both."""

from __future__ import annotations

import asyncio
import errno
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from actors import custody, replicator
from actors.compact import compact, tidy
from actors.copies import CopyFolder, CopyState, copies_here
from actors.custody import Custody, Place, Pulse
from actors.epoch_store import FileEpochStore
from actors.follower import Follower, Piece
from actors.owner import Owned, Surroundings, take_ownership
from actors.people import Caller
from actors.replicator import Peer
from actors.shard import Shard
from actors.wal import SECTOR, WalCorrupt, segments
from actors.warm_up import warm_up
from cluster.config import Config
from cluster.errors import Unavailable
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from cluster.levels import Level
from cluster.ownership import EpochStore, NotEntitled
from cluster.replication import LEASE_S, Standing
from cluster.replication_messages import Seal, Sealed
from tests.actors.local_nodes import SECRET, LocalNodes

SERVER = Caller("s", "default")
CONFIG = Config(
    shards=1,
    profiles_max=4096,
    profile_bytes_max=1 << 22,
    items_max=64,
    wal_segment_bytes=1 << 16,
    durability="replica",
)
WAIT_S = 20.0


class Running:
    """An owner that serves on a node."""

    def __init__(
        self, shard: Shard, owned: Owned, node_id: str, folder: CopyFolder, left: list[str]
    ) -> None:
        self.shard, self.owned, self.node_id, self.left = shard, owned, node_id, left
        self.folder = folder

    @property
    def standing(self) -> Standing:
        return self.owned.replicator.primary.standing

    async def track(self, person: str, message_id: str, level: Level = "replica") -> int:
        """The status that a caller gets, when it gets it; 0 if it gets none within a second."""
        body = {"userId": person, "event": "Seen", "messageId": message_id, "durability": level}
        status, _ = self.shard.handle(Op.TRACK, SERVER, msgspec.json.encode(body), 0)
        if status != 200:
            return status
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def settle(status: int) -> None:
            if not done.done():
                done.set_result(status)

        journal = self.owned.journal
        journal.after_all(lambda: settle(200), self.shard.level, lambda: settle(503))
        await asyncio.wait([done], timeout=1.0)
        return done.result() if done.done() else 0

    def version(self, person: str) -> int:
        status, answer = self.shard.handle(
            Op.PROFILE_GET, SERVER, msgspec.json.encode({"userId": person}), 0
        )
        return msgspec.json.decode(answer)["eventsTotal"] if status == 200 else 0

    def stop(self) -> None:
        """As if it had been killed: nothing is said to anybody."""
        self.owned.replicator.close()
        self.owned.journal.writer.close()
        self.folder.unlock()


class World:
    """Nodes, a store, and what a coordinator would do."""

    def __init__(self, root: Path, nodes: int) -> None:
        self.nodes = LocalNodes(root, nodes, CONFIG)
        self.store: EpochStore = FileEpochStore(
            msgspec.structs.replace(CONFIG, data_dir=str(root / "store"))
        )
        self.custody = Custody(self.nodes.configs["n0"], self.store, self.nodes)

    async def start(self, tries: int = 0) -> Running:
        return await self.start_at(await self.custody.place("0", tries))

    async def start_at(self, place: Place) -> Running:
        config = msgspec.structs.replace(
            self.nodes.configs[place.node_id], durability=self.custody.config.durability
        )
        shard = Shard("0", KeyRange(0, HASH_SPACE), config)
        folder = self.nodes.folder(place.node_id, place.copy_id)

        async def release(epoch: int) -> float:
            return await self.nodes.release(place.node_id, "0", place.copy_id, epoch)

        left: list[str] = []
        around = Surroundings(config, place.node_id, self.store, SECRET, release, left.append)
        owned = await take_ownership(shard, folder, place.peer, around)
        return Running(shard, owned, place.node_id, folder, left)

    async def tend(self, owner: Running) -> None:
        """What the coordinator does once a second."""
        primary = owner.owned.replicator.primary
        pulse = Pulse(0, primary.epoch, primary.standing.value, primary.link.value)

        class Handle:
            async def follow(self, peer: Peer, epoch: int) -> None:
                owner.owned.replicator.follow(peer, epoch)

        await self.custody.tend("0", owner.node_id, pulse, Handle())

    async def pair(self, owner: Running) -> None:
        await self.wait(owner, lambda: "replica" in owner.owned.journal.levels)

    async def wait(self, owner: Running, wanted: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not wanted():
            assert time.monotonic() < deadline_s, owner.owned.replicator.report()
            await self.tend(owner)
            await asyncio.sleep(0.05)


def with_world(root: Path, act: Callable[[World], Awaitable[None]], nodes: int = 3) -> None:
    async def run() -> None:
        world = World(root, nodes)
        await world.custody.open()
        try:
            await asyncio.wait_for(act(world), 90)
        finally:
            await world.nodes.close()

    # Compiling in the midst of it would stand still for longer than a lease.
    warm_up(CONFIG)
    asyncio.run(run())


def test_what_was_acknowledged_is_there_when_the_owners_node_and_its_copy_are_gone(
    tmp_path: Path,
) -> None:
    async def act(world: World) -> None:
        owner = await world.start()
        assert await owner.track("ada", "early") == 503
        await world.pair(owner)
        for number in range(50):
            assert await owner.track("ada", f"m{number}") == 200
        node_id = owner.node_id
        owner.stop()
        world.nodes.dead.add(node_id)
        shutil.rmtree(world.nodes.configs[node_id].data_path)
        started_s = time.monotonic()
        successor = await world.start()
        assert time.monotonic() - started_s < LEASE_S + 2
        assert successor.node_id != node_id
        assert successor.version("ada") == 50
        # The answer is known, so that a repeat counts once; and it waits for two copies again.
        assert await successor.track("ada", "m7") == 503
        await world.pair(successor)
        assert await successor.track("ada", "m7") == 200
        assert successor.version("ada") == 50
        assert await successor.track("ada", "m50") == 200
        successor.stop()

    with_world(tmp_path, act)


def test_an_owner_whose_backup_took_over_acknowledges_nothing_and_leaves(tmp_path: Path) -> None:
    async def act(world: World) -> None:
        stale = await world.start()
        await world.pair(stale)
        assert await stale.track("ada", "m0") == 200
        claim = await world.custody.claim("0")
        assert claim.backup is not None
        place = Place(claim.backup.copy_id, claim.backup.node_id)
        taking = asyncio.create_task(world.start_at(place))
        while not stale.left:
            status = await stale.track("ada", f"late{time.monotonic_ns()}", "disk")
            if taking.done():
                assert status != 200
            await asyncio.sleep(0.05)
        successor = await taking
        assert await stale.track("ada", "never") in (0, 503)
        assert stale.standing is Standing.DEPOSED
        assert not stale.owned.journal.primary.may_answer(time.monotonic())
        assert successor.version("ada") >= 1
        stale.stop()
        # Its copy is none that may own any more.
        with pytest.raises(NotEntitled):
            await world.start_at(Place(claim.owner.copy_id, claim.owner.node_id))
        successor.stop()

    with_world(tmp_path, act)


def lose_the_end(folder: Path) -> None:
    """Turn the last sector of a log into zeros, which looks like a torn write."""
    path = segments(folder)[-1]
    end = len(path.read_bytes().rstrip(b"\0"))
    with path.open("r+b") as file:
        start = (end - 1) // SECTOR * SECTOR
        file.seek(start)
        file.write(bytes(end - start))


def test_a_copy_that_lost_acknowledged_bytes_neither_serves_nor_backs_up(tmp_path: Path) -> None:
    async def act(world: World) -> None:
        owner = await world.start()
        await world.pair(owner)
        for number in range(20):
            assert await owner.track("ada", f"m{number}") == 200
        owner.stop()
        lose_the_end(owner.folder.path)
        peer = owner.owned.replicator.peer
        assert peer is not None
        # Nobody can mend it: it must not pass for a log whose last write was torn.
        world.nodes.dead.add(peer.copy.node_id)
        with pytest.raises(WalCorrupt, match="acknowledged"):
            await world.start()
        # And as a backup it has no say in what was acknowledged.
        with pytest.raises(WalCorrupt, match="acknowledged"):
            await world.nodes.follow(owner.node_id, "0", owner.folder.copy_id, None)

    with_world(tmp_path, act)


def test_an_owner_takes_in_what_its_backup_has_beyond_its_own_log(tmp_path: Path) -> None:
    async def act(world: World) -> None:
        owner = await world.start()
        await world.pair(owner)
        for number in range(20):
            assert await owner.track("ada", f"m{number}") == 200
        owner.stop()
        # The backup has what was lost.
        lose_the_end(owner.folder.path)
        again = await world.start()
        assert again.node_id == owner.node_id
        assert again.version("ada") == 20
        await world.pair(again)
        assert await again.track("ada", "m19") == 200
        assert await again.track("ada", "m20") == 200
        assert again.version("ada") == 21
        again.stop()
        # And the log that was mended is a log.
        assert (await world.start()).version("ada") == 21

    with_world(tmp_path, act)


def test_every_byte_of_the_erased_leaves_the_backups_files_with_the_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.follower.COMPACT_S", 0.05)
    secret = "a-very-private-word"

    def told(node_id: str) -> bool:
        files = [path for path in (tmp_path / node_id).rglob("*") if path.is_file()]
        return any(secret.encode() in path.read_bytes() for path in files)

    async def act(world: World) -> None:
        owner = await world.start()
        await world.pair(owner)
        peer = owner.owned.replicator.peer
        assert peer is not None
        nodes = (owner.node_id, peer.copy.node_id)

        def ask(op: Op, body: dict[str, object]) -> None:
            raw = msgspec.json.encode({"userId": "ada"} | body)
            assert owner.shard.handle(op, SERVER, raw, 0)[0] == 200

        ask(Op.IDENTIFY, {"traits": {"x": secret}})
        assert await owner.track("bob", "m1") == 200
        ask(Op.PROFILE_DELETE, {})
        await owner.owned.journal.sync()
        assert [told(node) for node in nodes] == [True, True]
        # What makes files be written anew is the erasure's age.
        owner.shard.tombstones.unpurged_s -= CONFIG.erase_within_s
        files = owner.owned.replicator.files
        await tidy(owner.shard, owner.folder.path, owner.shard.config, files)
        await world.wait(owner, lambda: not any(map(told, nodes)))
        assert await owner.track("bob", "m2") == 200
        owner.stop()
        world.nodes.dead.add(owner.node_id)
        successor = await world.start()
        assert [successor.version(person) for person in ("ada", "bob")] == [0, 2]
        successor.stop()

    with_world(tmp_path, act)


def test_a_new_backup_begins_with_the_snapshot_and_catches_up_while_the_owner_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than the log holds from the snapshot on.
    monkeypatch.setattr(replicator, "RECENT_BYTES_MAX", 1 << 15)

    async def act(world: World) -> None:
        owner = await world.start()

        async def write_some(first: int, count: int) -> None:
            for number in range(first, first + count):
                assert await owner.track(f"u{number % 40}", f"m{number}", "disk") == 200

        await write_some(0, 1500)
        folder = owner.folder.path
        assert len(segments(folder)) > 3
        assert compact(folder, world.nodes.configs[owner.node_id]) is not None
        for path in segments(folder)[:-1]:
            path.unlink()
        await write_some(1500, 500)
        writing = True

        async def write() -> int:
            number = 0
            while writing:
                assert await owner.track(f"u{number % 40}", f"w{number}", "disk") == 200
                number += 1
                # The backup shares this loop: it must be able to be the faster of the two.
                await asyncio.sleep(0.002)
            return number

        writer = asyncio.create_task(write())
        await world.pair(owner)
        writing = False
        count = 2000 + await writer
        assert await owner.track("last", "last") == 200
        owner.stop()
        world.nodes.dead.add(owner.node_id)
        successor = await world.start()
        assert sum(successor.version(f"u{number}") for number in range(40)) == count
        assert successor.version("last") == 1
        successor.stop()

    with_world(tmp_path, act)


def test_a_lost_backup_is_dropped_and_replaced_and_what_waited_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custody, "CLEAN_S", 0.1)

    async def act(world: World) -> None:
        owner = await world.start()
        await world.pair(owner)
        claim = await world.custody.claim("0")
        assert claim.backup is not None
        lost = claim.backup.node_id
        await world.nodes.backups[lost].close()
        world.nodes.dead.add(lost)
        statuses = set()
        while owner.standing is not Standing.ALONE:
            statuses.add(await owner.track("ada", f"m{time.monotonic_ns()}"))
        assert statuses <= {0, 200, 503}
        assert await owner.track("ada", "alone") == 503
        await world.pair(owner)
        now = await world.custody.claim("0")
        assert now.backup is not None
        assert now.backup.node_id not in (lost, owner.node_id)
        assert await owner.track("ada", "again") == 200
        # A node that comes back late has a copy of who was erased since, and that goes too.
        await world.tend(owner)
        assert len(copies_here(world.nodes.configs[lost])) == 1
        world.nodes.dead.clear()
        await world.wait(owner, lambda: len(copies_here(world.nodes.configs[lost])) == 0)
        owner.stop()

    with_world(tmp_path, act)


def test_two_processes_never_own_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.owner.LOCK_WAIT_S", 0.2)

    async def act(world: World) -> None:
        owner = await world.start()
        epoch = owner.owned.claim.epoch
        with pytest.raises(Unavailable, match="in use"):
            await world.start()
        assert (await world.custody.claim("0")).epoch == epoch
        owner.stop()
        assert (await world.start()).owned.claim.epoch == epoch + 1

    with_world(tmp_path, act, nodes=1)


def test_a_snapshot_with_a_piece_that_failed_is_never_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = msgspec.structs.replace(CONFIG, data_dir=str(tmp_path))

    async def act() -> None:
        folder = CopyFolder(config, "0", "c1")
        folder.create(CopyState(made_for=1))
        follower = Follower(folder, config)
        assert isinstance(await follower.seal(Seal(1)), Sealed)
        pieces = [Piece("snap-0000000000000009.bin", at, at == 6) for at in (0, 3, 6)]
        write, failing = follower._write_piece, True

        def flaky(offset: int, data: bytes) -> None:
            if offset == 3 and failing:
                raise OSError(errno.EIO, "a bad block")
            write(offset, data)

        monkeypatch.setattr(follower, "_write_piece", flaky)
        # All three came in one read.
        taken = await asyncio.gather(
            *(follower.take_piece(1, piece, b"abc") for piece in pieces), return_exceptions=True
        )
        assert taken[0] is True
        assert isinstance(taken[1], OSError)
        assert taken[2] is False
        assert not list(folder.path.glob("snap-*"))
        # The owner begins again, and an older one has no say in it.
        failing = False
        assert await follower.take_piece(1, pieces[0], b"abc")
        assert not await follower.take_piece(0, pieces[1], b"xyz")
        assert await follower.take_piece(1, pieces[1], b"def")
        with pytest.raises(WalCorrupt):
            await follower.take_piece(1, pieces[2], b"ghi")
        assert (folder.path / pieces[0].name).read_bytes() == b"abcdefghi"
        assert not follower.running

    asyncio.run(act())
