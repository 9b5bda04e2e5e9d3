"""The Lease as epoch store, against a server with Kubernetes' rules of conflict."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from actors.epoch_store import open_store, reached_directly
from actors.lease_store import LEASE, TABLE, TABLE_BYTES_MAX, VERSION, LeaseStore, in_cluster
from cluster.config import Config
from cluster.errors import ConfigError, Unavailable
from cluster.keys import split_evenly
from cluster.ownership import Copy, NotEntitled, Table, change, claim_of, take_over
from tests.actors.lease_server import LeaseServer

Scene = Callable[[LeaseServer, Callable[[], LeaseStore]], Awaitable[None]]


def table(shards: int = 2, ring: int = 0) -> Table:
    claims = tuple(
        claim_of(f"{i}", key_range, 1, Copy(f"a{i}", "n1"), Copy(f"b{i}", "n2"))
        for i, key_range in enumerate(split_evenly(shards))
    )
    return Table(claims, ring)


def play(folder: Path, scene: Scene, seed: int = 0) -> None:
    """Run a scene against a server, as a pod does: by its environment and service account."""

    async def run() -> None:
        (folder / "namespace").write_text("shop\n")
        (folder / "token").write_text("t-1")
        stores: list[LeaseStore] = []
        async with LeaseServer(folder, "t-1", random.Random(seed)) as server:
            environment = {
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": server.url.rpartition(":")[2],
            }

            def store() -> LeaseStore:
                stores.append(in_cluster(environment, folder))
                return stores[-1]

            try:
                await scene(server, store)
            finally:
                for one in stores:
                    await one.close()

    asyncio.run(run())


def test_a_table_is_read_back_as_it_was_swapped_in(tmp_path: Path):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        store = new_store()
        assert await store.read() == (0, None)
        assert await store.swap(0, table())
        assert await new_store().read() == (1, table())
        assert await store.swap(1, table(3))
        assert await store.read() == (2, table(3))
        assert list(server.leases) == [("shop", LEASE)]

    play(tmp_path, scene)


def test_a_swap_of_an_older_version_is_refused_and_changes_nothing(tmp_path: Path):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        store = new_store()
        assert await store.swap(0, table())
        for version in (0, 2, 7):
            assert not await store.swap(version, table(5))
        assert await store.read() == (1, table())

    play(tmp_path, scene)


@pytest.mark.parametrize("seed", range(3))
def test_of_swaps_at_once_each_counts_or_is_refused(tmp_path: Path, seed: int):
    writers, each = 8, 10

    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        refused = 0

        async def add() -> None:
            nonlocal refused
            store = new_store()
            for _ in range(each):
                while True:
                    version, read = await store.read()
                    wanted = (
                        table()
                        if read is None
                        else replace(read, ring_events_max=read.ring_events_max + 1)
                    )
                    if await store.swap(version, wanted):
                        break
                    refused += 1

        await asyncio.gather(*(add() for _ in range(writers)))
        version, read = await new_store().read()
        assert read is not None
        assert version == writers * each == server.writes
        # The first made it, with 0.
        assert read.ring_events_max == writers * each - 1
        assert refused > 0, "the writers never met"

    play(tmp_path, scene, seed)


@pytest.mark.parametrize("seed", range(4))
def test_of_two_that_take_over_one_wins_though_answers_get_lost(tmp_path: Path, seed: int):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        store = new_store()
        assert await store.swap(0, table(6))
        server.fail_share = 0.4

        async def pause() -> None:
            await asyncio.sleep(0)

        async def takes(shard: str, copy: Copy) -> bool:
            try:
                claim = await change(new_store(), shard, lambda c: take_over(c, copy), pause)
            except NotEntitled:
                return False
            return claim.owner == copy

        for i in range(6):
            won = await asyncio.gather(
                takes(f"{i}", Copy(f"b{i}", "n3")), takes(f"{i}", Copy(f"b{i}", "n4"))
            )
            server.fail_share, kept = 0.0, server.fail_share
            _, read = await store.read()
            server.fail_share = kept
            assert read is not None
            claim = read.claim(f"{i}")
            # The second may take over from the first, never beside it.
            assert any(won)
            assert claim.epoch >= 2
            assert claim.owner.node_id in ("n3", "n4")
            assert won[0 if claim.owner.node_id == "n3" else 1]

    play(tmp_path, scene, seed)


def test_a_lost_answer_is_an_unknown_outcome_not_a_refusal(tmp_path: Path):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        store = new_store()
        assert await store.swap(0, table())
        server.fail_share = 1.0
        with pytest.raises(Unavailable, match="can't be reached"):
            await store.swap(1, table(3))

    play(tmp_path, scene)


def test_a_new_token_is_used_at_once(tmp_path: Path):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        store = new_store()
        server.token = "t-2"
        with pytest.raises(Unavailable, match="401"):
            await store.read()
        (tmp_path / "token").write_text("t-2")
        assert await store.read() == (0, None)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, ConfigError), (422, ConfigError), (500, Unavailable), (429, Unavailable)],
)
def test_what_waiting_can_not_mend_is_told_apart(
    tmp_path: Path, status: int, error: type[Exception]
):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        server.statuses = [status]
        with pytest.raises(error, match=f"{status}"):
            await new_store().read()

    play(tmp_path, scene)


def test_what_others_wrote_into_the_lease_stays(tmp_path: Path):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        store = new_store()
        await store.swap(0, table())
        lease = server.leases["shop", LEASE]
        lease["metadata"]["annotations"]["someone/else"] = "note"
        lease["metadata"]["labels"] = {"team": "shop"}
        assert await store.swap(1, table(3))
        metadata = server.leases["shop", LEASE]["metadata"]
        assert metadata["annotations"]["someone/else"] == "note"
        assert metadata["annotations"][VERSION] == "2"
        assert metadata["labels"] == {"team": "shop"}

    play(tmp_path, scene)


def test_a_table_that_can_not_be_read_stops_everything(tmp_path: Path):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        store = new_store()
        await store.swap(0, table())
        annotations = server.leases["shop", LEASE]["metadata"]["annotations"]
        annotations[TABLE] = annotations[TABLE][:-9]
        with pytest.raises(ConfigError, match="can't be read"):
            await store.read()
        with pytest.raises(ConfigError, match="can't be read"):
            await store.swap(1, table())

    play(tmp_path, scene)


def test_a_table_of_a_thousand_shards_fits_and_a_larger_one_is_refused(tmp_path: Path):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        store = new_store()
        long_node = "f" * 56  # Ray's node ids
        claims = tuple(
            claim_of(f"{i}", r, 10**6, Copy(f"{i:08x}", long_node), Copy(f"{i:08x}b", long_node))
            for i, r in enumerate(split_evenly(700))
        )
        assert await store.swap(0, Table(claims, 50))
        many = tuple(
            replace(claims[0], shard_id=f"{i}", start=f"{r.start:x}", stop=f"{r.stop:x}")
            for i, r in enumerate(split_evenly(1024))
        )
        with pytest.raises(ConfigError, match=f"<= {TABLE_BYTES_MAX} bytes"):
            await store.swap(1, Table(many, 50))
        assert (await store.read())[0] == 1

    play(tmp_path, scene)


def test_only_the_service_accounts_authority_is_trusted(tmp_path: Path):
    async def scene(server: LeaseServer, new_store: Callable[[], LeaseStore]) -> None:
        other = tmp_path / "other"
        other.mkdir()
        async with LeaseServer(other, "t-1"):
            (tmp_path / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
        with pytest.raises(Unavailable, match="certificate"):
            await new_store().read()

    play(tmp_path, scene)


def test_outside_of_a_pod_it_says_what_is_missing(tmp_path: Path):
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST"):
        in_cluster({}, tmp_path)
    given = {"KUBERNETES_SERVICE_HOST": "a", "KUBERNETES_SERVICE_PORT": "1"}
    with pytest.raises(ConfigError, match="service account"):
        in_cluster(given, tmp_path)


def test_the_settings_choose_the_lease_and_every_node_asks_it_by_itself(tmp_path: Path):
    lease = Config(epoch_store="lease", data_dir=str(tmp_path))
    assert reached_directly(lease)
    assert not reached_directly(Config(data_dir=str(tmp_path)))
    # This is no pod.
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST"):
        open_store(lease)
    open_store(Config(epoch_store="lease", durability="memory"))
