"""Erased is erased: in memory at once, against what comes late, and in every byte of the files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors import records
from actors.compact import tidy
from actors.erasure import KEEP_S, Tombstones
from actors.journal import Journal
from actors.people import Caller, person_key
from actors.recent import Answered, DecisionLog, DecisionRecord, DedupeWindow
from actors.recovery import recover
from actors.shard import Shard
from cluster.config import Config
from cluster.errors import RequestError
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from tests.actors.list_journal import ListJournal
from tests.actors.test_recovery import contents

NOW_S = 1_790_000_000
SERVER = Caller("s", "default")
CONFIG = Config(profiles_max=4096, profile_bytes_max=1 << 24, items_max=256, erase_within_s=100)
ADA = {"userId": "ada"}


class Clock:
    now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


def new_shard(clock: Clock | None = None) -> Shard:
    return Shard("0", KeyRange(0, HASH_SPACE), CONFIG, now=clock or Clock())


def ask(shard: Shard, op: Op, body: Any) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    status, answer = shard.handle(op, SERVER, raw, 0)
    return status, msgspec.json.decode(answer)


def columns(times_s: list[int], people: list[str]) -> dict[str, Any]:
    keys = b"".join(person_key(SERVER, person, None) for person in people)
    halves = np.frombuffer(keys, ">i8").astype(np.int64).reshape(-1, 2)
    n = len(people)
    return {
        "key_hi": halves[:, 0],
        "key_lo": halves[:, 1],
        "item": np.full(n, -1, np.int32),
        "type": np.zeros(n, np.uint8),
        "value": np.zeros(n, np.float32),
        "time": np.array(times_s, np.uint32),
    }


def test_answers_and_decisions_of_the_person_go_with_the_profile() -> None:
    shard = new_shard()
    decide = {"events": [{"event": "Searched"}], "decisions": [{"surface": "product"}]}
    bodies = {p: {"userId": p, "messageId": f"m-{p}"} | decide for p in ("ada", "bob")}
    ids = {
        person: ask(shard, Op.DECIDE, body)[1]["decisions"][0]["decisionId"].encode()
        for person, body in bodies.items()
    }
    used = (shard.dedupe.bytes_used, shard.decisions.bytes_used)
    assert ask(shard, Op.PROFILE_DELETE, ADA)[0] == 200
    # Somebody of that name comes again: what was before stays gone.
    assert ask(shard, Op.TRACK, ADA | {"event": "Searched"})[0] == 200
    assert ask(shard, Op.DECISION_GET, ids["ada"])[0] == 404
    assert ask(shard, Op.DECISION_GET, ids["bob"])[0] == 200
    status, problem = ask(shard, Op.DECIDE, bodies["ada"])
    assert (status, problem["field"]) == (410, "messageId")
    assert ask(shard, Op.DECIDE, bodies["bob"])[1]["duplicate"] is True
    assert (shard.dedupe.bytes_used, shard.decisions.bytes_used) < used
    shard.dedupe.check()


def test_what_is_older_than_the_erasure_is_kept_out_for_30_days_and_no_longer() -> None:
    clock = Clock()
    shard = new_shard(clock)
    ask(shard, Op.TRACK, ADA | {"event": "a"})
    assert ask(shard, Op.PROFILE_DELETE, ADA)[0] == 200
    # Nobody knows Carol yet; events of her may be under way all the same.
    assert ask(shard, Op.PROFILE_DELETE, {"userId": "carol"}) == (200, {"deleted": False})
    clock.now_s += 60
    before_ms, after_ms = (NOW_S - 5) * 1000, (NOW_S + 30) * 1000
    for person in ("ada", "carol"):
        one = {"userId": person}
        for op, body in (
            (Op.TRACK, {"event": "a", "timestamp": before_ms}),
            (Op.TRACK, {"event": "a", "sentAt": before_ms}),
            (Op.PAGE, {"timestamp": before_ms}),
            (Op.IDENTIFY, {"traits": {"a": 1}, "timestamp": before_ms}),
            (Op.DECIDE, {"events": [{"event": "a"}, {"event": "a", "timestamp": before_ms}]}),
            (Op.DECIDE, {"timestamp": before_ms}),
        ):
            assert ask(shard, op, one | body)[0] == 410
    assert len(shard.store) == 0
    assert shard.tombstones.blocked == 12
    assert ask(shard, Op.TRACK, {"userId": "bob", "event": "a", "timestamp": before_ms})[0] == 200
    assert ask(shard, Op.TRACK, ADA | {"event": "a", "timestamp": after_ms})[0] == 200
    clock.now_s += KEEP_S + 1
    for person in ("d", "e"):
        ask(shard, Op.PROFILE_DELETE, {"userId": person})
    assert ask(shard, Op.TRACK, {"userId": "carol", "event": "a", "timestamp": before_ms})[0] == 200


def test_an_import_does_not_bring_back_who_was_erased() -> None:
    shard, journal = new_shard(), ListJournal()
    shard.journal = journal  # type: ignore[assignment]
    ask(shard, Op.PROFILE_DELETE, ADA)
    people = ["ada", "bob", "ada", "carol"]
    times_s = [NOW_S - 50, NOW_S - 50, NOW_S + 50, NOW_S - 50]
    chunk = columns(times_s, people)
    assert shard.loads.events("t", "default", chunk) == 3
    row = shard.store.find(person_key(SERVER, "ada", None))
    assert int(shard.store.rows["events_total"][row]) == 1
    assert int(shard.store.rows["first_seen"][row]) == NOW_S + 50
    traits = [b'{"n":%d}' % number for number in range(4)]
    count = shard.loads.profiles("p", "default", chunk["key_hi"], chunk["key_lo"], traits)
    assert count == 2
    assert shard.store.traits(row) == b""
    assert shard.store.traits(shard.store.find(person_key(SERVER, "carol", None))) == b'{"n":3}'
    again = new_shard()
    for record in journal.records:
        again.replay(records.decode(record))
    assert contents(again) == contents(shard)
    assert again.tombstones.entries() == shard.tombstones.entries()


def test_every_byte_of_the_person_leaves_the_files_in_time(tmp_path: Path) -> None:
    secret = "a-very-private-word"
    clock = Clock()

    def in_files() -> list[str]:
        files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
        return [path.name for path in files if secret.encode() in path.read_bytes()]

    async def first_life() -> None:
        shard = new_shard(clock)
        end = recover(shard, tmp_path)
        shard.journal = Journal(tmp_path, end, lambda error: pytest.fail(str(error)), 1 << 16)
        ask(shard, Op.IDENTIFY, ADA | {"messageId": "m-private-1", "traits": {"x": secret}})
        for number in range(50):
            ask(shard, Op.TRACK, {"userId": f"u{number}", "event": "a"})
        assert ask(shard, Op.PROFILE_DELETE, ADA)[0] == 200
        assert shard.level == "disk"
        await shard.journal.sync()
        assert secret.encode() not in shard.store.words.tobytes()
        assert in_files()
        # Not yet: half the time is for gathering, so that one snapshot serves many erasures.
        clock.now_s += 49
        await tidy(shard, tmp_path, CONFIG, asyncio.Lock())
        assert in_files()
        shard.journal.close()

    async def second_life() -> None:
        shard = new_shard(clock)
        end = recover(shard, tmp_path)
        shard.journal = Journal(tmp_path, end, lambda error: pytest.fail(str(error)), 1 << 16)
        assert shard.tombstones.unpurged_s == NOW_S
        clock.now_s += 1
        await tidy(shard, tmp_path, CONFIG, asyncio.Lock())
        shard.journal.close()

    asyncio.run(first_life())
    asyncio.run(second_life())
    assert not in_files()
    third = new_shard(clock)
    recover(third, tmp_path)
    assert third.tombstones.unpurged_s == 0
    assert ask(third, Op.PROFILE_GET, ADA)[0] == 404
    late = ADA | {"event": "a", "timestamp": (NOW_S - 5) * 1000}
    assert ask(third, Op.TRACK, late)[0] == 410
    assert len(third.store) == 50


def test_chunks_of_warm_starts_are_remembered_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.loads.LOADED_MAX", 3)
    shard, journal = new_shard(), ListJournal()
    shard.journal = journal  # type: ignore[assignment]
    for number in range(5):
        shard.loads.events(f"t{number}", "default", columns([NOW_S], ["bob"]))
    assert list(shard.loads.applied) == ["t2", "t3", "t4"]
    again = new_shard()
    for record in journal.records:
        again.replay(records.decode(record))
    assert contents(again) == contents(shard)


def test_how_many_may_be_erased_is_bounded_and_said() -> None:
    stones = Tombstones(3)
    for number in range(3):
        stones.check_room(b"%d" % number, 100)
        stones.add(b"%d" % number, 100)
    with pytest.raises(RequestError, match="erasures_max"):
        stones.check_room(b"new", 200)
    stones.check_room(b"1", 200)
    stones.check_room(b"new", 101 + KEEP_S)
    stones.add(b"new", 101 + KEEP_S)
    assert len(stones) == 2


def test_the_windows_forget_a_person_and_keep_their_counts() -> None:
    window, log = DedupeWindow(1000, 1 << 16), DecisionLog(1 << 16)
    for number in range(300):
        person = b"%d" % (number % 7)
        window.add("t", f"{number}", Answered(number, 1, b"x" * (number % 200), person))
        log.add(number * 16, DecisionRecord("t", person, number, b"x" * (number % 200)))
        if number % 10 == 9:
            window.forget(b"%d" % (number % 5))
            log.forget(b"%d" % (number % 5))
            window.check()
    kept = log.entries()
    assert log.bytes_used == sum(record.bytes_used for _, record in kept) <= 1 << 16
    assert len(log) == len(kept)
    for last in range(7):
        window.forget(b"%d" % last)
        log.forget(b"%d" % last)
    window.check()
    assert (len(log), log.bytes_used, log.entries()) == (0, 0, [])
    assert all(not one.answer for _, _, one in window.entries())
