"""What a log gives back: the same profiles, answers, decisions and items, to the byte."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors import records, snapshot
from actors.compact import compact
from actors.documents import Stored
from actors.journal import Journal
from actors.ledger import Ledger, Sticky, pack
from actors.messages import Item
from actors.people import Caller, person_key
from actors.recovery import drop_superfluous, lock_folder, recover
from actors.shard import Shard
from actors.snapshot import snapshots, write_snapshot
from actors.wal import End, WalCorrupt, segments
from actors.wal_writer import WalWriter
from cluster.config import Config
from cluster.errors import ConfigError, Unavailable
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from tests.actors.list_journal import ListJournal

SERVER = Caller("s", "default")
NOW_S = 1_790_000_000
CONFIG = Config(
    profiles_max=4096, profile_bytes_max=1 << 24, items_max=256, profile_ttl_s=5_000_000
)


def unexpected(error: OSError) -> None:
    pytest.fail(str(error))


def new_shard(clock: list[float] | None = None) -> Shard:
    times = clock if clock is not None else [float(NOW_S)]
    return Shard("0", KeyRange(0, HASH_SPACE), CONFIG, now=lambda: times[0])


def contents(shard: Shard) -> dict[str, Any]:
    """Everything of a shard that must survive."""
    rows = int(shard.store.heap[8])
    words = int(shard.store.heap[0])
    tenants = {
        name: (
            tenant.catalogue.dump(),
            tenant.event_types.names,
            tenant.documents.dump(),
            tenant.books,
        )
        for name, tenant in shard.tenants.items()
    }
    return {
        "rows": shard.store.rows[:rows].tobytes(),
        "words": shard.store.words[:words].tobytes(),
        "heap": shard.store.heap.tobytes(),
        "dedupe": dict(shard.dedupe._answered),
        "decisions": dict(shard.decisions._records),
        "tenants": tenants,
        "loaded": shard.loads.applied,
    }


def live(shard: Shard, clock: list[float], steps: int, seed: int) -> None:
    """A random life: every kind of change, refused ones and repeats among them."""
    generator = random.Random(seed)
    for i in range(20):
        item = Item(f"i{i}", {"category": f"c{i % 3}"}, [i * 0.1, 1.0])
        shard.put_items("default", msgspec.json.encode([item]))
    for step in range(steps):
        clock[0] += generator.choice([0, 1, 50, 300] if step % 100 else [2_000_000])
        person = {"userId": f"u{generator.randrange(30)}"}
        message = {"messageId": f"m{generator.randrange(step + 5)}"} if step % 3 else {}
        event = {
            "event": generator.choice(["Item Viewed", "Searched", "odd", f"new{step % 9}"]),
            "properties": {"itemId": f"i{generator.randrange(22)}"},
        }
        decisions = [{"surface": "product"}, {"surface": "content", "policy": "vector"}]
        op, body = generator.choice(
            [
                (Op.DECIDE, person | message | {"events": [event] * 2, "decisions": decisions}),
                (Op.DECIDE, person | message | {"decisions": decisions}),
                (Op.TRACK, person | message | event | {"sessionId": f"s{step // 10}"}),
                (Op.IDENTIFY, person | message | {"traits": {f"t{step % 7}": "x" * (step % 50)}}),
                (Op.PROFILE_DELETE, person),
            ]
        )
        shard.handle(op, SERVER, msgspec.json.encode(body), 0)
        if step % 50 == 20:
            shard.take_down("default", [f"i{step % 20}"])
        if step % 50 == 30:
            load(shard, f"chunk{step}", generator)
        if step % 20 == 0:
            ledger = pack(Ledger(sticky={"flags/f": Sticky("x" * (step % 70))}), 0)
            shard.book("default", person_key(SERVER, f"u{step % 30}", None), ledger)
        if step % 50 == 10:
            holdout = b'{"percent":%d,"surfaces":["ui"]}' % (step % 40 + 1)
            stored = Stored("holdouts", f"h{step % 3}", step + 1, NOW_S, holdout)
            shard.put_documents("default", [stored])
        if step % 50 == 40:
            shard.sweep()


def begin_log(folder: Path) -> None:
    WalWriter(folder, End(1, 0, None, 0, 0), 1, lambda seq: None, unexpected, 1 << 14).close()


def load(shard: Shard, token: str, generator: random.Random) -> None:
    keys = [person_key(SERVER, f"u{generator.randrange(40)}", None) for _ in range(50)]
    halves = np.frombuffer(b"".join(keys), ">i8").astype(np.int64).reshape(-1, 2)
    shard.loads.events(
        token,
        "default",
        {
            "key_hi": halves[:, 0],
            "key_lo": halves[:, 1],
            "item": np.arange(-1, 49, dtype=np.int32) % 20,
            "type": np.arange(50, dtype=np.uint8) % 6,
            "value": np.zeros(50, np.float32),
            "time": np.full(50, int(shard.now()), np.uint32),
        },
    )
    traits = [b'{"l":1}'] * 50
    shard.loads.profiles(token + "p", "default", halves[:, 0], halves[:, 1], traits)


@pytest.mark.parametrize("seed", range(5))
def test_replay_gives_the_same_shard_byte_for_byte(seed: int) -> None:
    clock = [float(NOW_S)]
    shard = new_shard(clock)
    journal = ListJournal()
    shard.journal = journal  # type: ignore[assignment]
    live(shard, clock, 400, seed)
    again = new_shard()
    for record in journal.records:
        again.replay(records.decode(record))
    assert contents(again) == contents(shard)
    again.store.check()
    assert len(shard.store) > 5
    assert len(shard.dedupe) > 20


def test_refused_requests_and_repeats_leave_nothing_in_the_log() -> None:
    shard = new_shard()
    journal = ListJournal()
    shard.journal = journal  # type: ignore[assignment]
    body = msgspec.json.encode({"messageId": "m", "userId": "a", "event": "Searched"})
    shard.handle(Op.TRACK, SERVER, body, 0)
    assert len(journal.records) == 1
    shard.handle(Op.TRACK, SERVER, body, 0)
    for refused in (b"{", b'{"userId":"","event":"e"}', body.replace(b"Searched", b"Scrolled")):
        shard.handle(Op.TRACK, SERVER, refused, 0)
    shard.handle(Op.PROFILE_GET, SERVER, b'{"userId":"a"}', 0)
    assert len(journal.records) == 1


def test_a_full_disk_refuses_writes_and_still_reads() -> None:
    shard = new_shard()
    journal = ListJournal()
    shard.journal = journal  # type: ignore[assignment]
    body = msgspec.json.encode({"userId": "a", "event": "Searched"})
    assert shard.handle(Op.TRACK, SERVER, body, 0)[0] == 200
    journal.has_room = False
    status, answer = shard.handle(Op.TRACK, SERVER, body, 0)
    assert (status, b"disk is full" in answer) == (503, True)
    assert shard.handle(Op.PROFILE_GET, SERVER, b'{"userId":"a"}', 0)[0] == 200
    journal.has_room = True
    assert shard.handle(Op.TRACK, SERVER, body, 0)[0] == 200


def test_what_was_synced_is_recovered_from_files_life_after_life(tmp_path: Path) -> None:
    clock = [float(NOW_S)]

    async def one_life(seed: int, before: dict[str, Any] | None) -> dict[str, Any]:
        shard = new_shard(clock)
        end = recover(shard, tmp_path)
        if before is not None:
            assert contents(shard) == before
        assert end.epoch == seed
        shard.journal = Journal(tmp_path, end, unexpected, segment_bytes=1 << 14)
        live(shard, clock, 200, seed)
        await shard.journal.sync()
        found = contents(shard)
        shard.journal.close()
        return found

    before = None
    for seed in range(4):
        before = asyncio.run(one_life(seed, before))
    assert len(segments(tmp_path)) > 2


def test_snapshot_and_log_give_what_the_whole_log_gives(tmp_path: Path) -> None:
    clock = [float(NOW_S)]

    async def one_life(seed: int, before: dict[str, Any] | None) -> dict[str, Any]:
        shard = new_shard(clock)
        end = recover(shard, tmp_path)
        if before is not None:
            assert contents(shard) == before
            shard.store.check()
        shard.journal = Journal(tmp_path, end, unexpected, segment_bytes=1 << 14)
        live(shard, clock, 150, seed)
        await shard.journal.sync()
        if seed % 2 == 0:
            assert compact(tmp_path, CONFIG) is not None
            assert drop_superfluous(tmp_path) > 0
        live(shard, clock, 50, seed + 100)
        await shard.journal.sync()
        found = contents(shard)
        shard.journal.close()
        return found

    before = None
    for seed in range(6):
        before = asyncio.run(one_life(seed, before))
    assert len(snapshots(tmp_path)) == 1
    shard = new_shard()
    recover(shard, tmp_path)
    assert contents(shard) == before


def test_a_damaged_snapshot_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    shard = new_shard()
    live(shard, [float(NOW_S)], 100, 1)
    path = write_snapshot(shard, tmp_path, End(1, 0, None, 0, 0))
    begin_log(tmp_path)
    with path.open("rb") as file:
        arrays = snapshot._read_meta(path, file).arrays
    whole = path.read_bytes()
    middles = [entry.offset + entry.size // 2 for entry in arrays if entry.size]
    assert len(middles) == 5
    for where in (3, 9, 14, 40, *middles):
        data = bytearray(whole)
        data[where] ^= 1
        path.write_bytes(data)
        with pytest.raises(WalCorrupt):
            recover(new_shard(), tmp_path)
    path.write_bytes(whole[: middles[-1]])
    with pytest.raises(WalCorrupt):
        recover(new_shard(), tmp_path)
    path.write_bytes(whole)
    fresh = new_shard()
    recover(fresh, tmp_path)
    assert contents(fresh) == contents(shard)


def test_a_snapshot_of_another_ring_is_refused_with_the_setting_to_mend(tmp_path: Path) -> None:
    shard = new_shard()
    live(shard, [float(NOW_S)], 50, 1)
    write_snapshot(shard, tmp_path, End(1, 0, None, 0, 0))
    other = msgspec.structs.replace(CONFIG, ring_events_max=7)
    with pytest.raises(ConfigError, match="ring_events_max must stay 50"):
        recover(Shard("0", KeyRange(0, HASH_SPACE), other), tmp_path)


def test_a_corrupt_log_refuses_the_shard(tmp_path: Path) -> None:
    async def write() -> None:
        shard = new_shard()
        shard.journal = Journal(tmp_path, End(1, 0, None, 0, 0), unexpected)
        live(shard, [float(NOW_S)], 30, 1)
        await shard.journal.sync()
        shard.journal.close()

    asyncio.run(write())
    path = segments(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(WalCorrupt):
        recover(new_shard(), tmp_path)


def test_an_answer_waits_for_its_records_and_no_longer(tmp_path: Path) -> None:
    async def act() -> None:
        journal = Journal(tmp_path, End(1, 0, None, 0, 0), unexpected)
        told: list[str] = []
        journal.after_all(lambda: told.append("nothing to wait for"))
        assert told == ["nothing to wait for"]
        for i in range(100):
            journal.append(b"%d" % i)
            journal.after_all(lambda i=i: told.append(f"{i}"))  # type: ignore[misc]
        assert len(told) == 1
        await journal.sync()
        assert told[1:] == [f"{i}" for i in range(100)]
        journal.close()

    asyncio.run(act())


def test_two_owners_of_one_folder_are_impossible(tmp_path: Path) -> None:
    lock_folder(tmp_path)
    with pytest.raises(Unavailable, match="in use"):
        lock_folder(tmp_path, wait_s=0.1)


def test_what_can_not_be_learned_costs_neither_the_event_nor_its_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = new_shard()
    journal = ListJournal()
    shard.journal = journal  # type: ignore[assignment]

    def refuse(*_: object) -> None:
        raise KeyError("injected")

    monkeypatch.setattr("actors.engine.engine.NextAction.learn", refuse)
    live(shard, [float(NOW_S)], 100, 4)
    assert shard.store.events_total > 50
    again = new_shard()
    for record in journal.records:
        again.replay(records.decode(record))
    assert contents(again) == contents(shard)


def test_a_snapshot_without_its_log_is_refused(tmp_path: Path) -> None:
    write_snapshot(new_shard(), tmp_path, End(1, 0, None, 0, 0))
    with pytest.raises(WalCorrupt, match="no log"):
        recover(new_shard(), tmp_path)
    begin_log(tmp_path)
    recover(new_shard(), tmp_path)


def test_a_folder_with_only_a_spare_segment_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "spare").write_bytes(b"left by a kill before the first segment")
    assert recover(new_shard(), tmp_path).next_seq == 1
    begin_log(tmp_path)
    assert len(segments(tmp_path)) == 1
    assert recover(new_shard(), tmp_path).next_seq == 1
