"""Messages from before the window of ids: refused where they may be repeats, and only there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from actors.people import Caller
from actors.recent import Answered, DedupeWindow
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange

NOW_S = 1_790_000_000.0
WINDOW_S = 86400
SMALL = Config(profiles_max=2048, profile_bytes_max=1 << 22, items_max=64)
OLD_MS = (NOW_S - WINDOW_S - 1) * 1000
NEW_MS = (NOW_S - WINDOW_S + 60) * 1000
EVENT = {"userId": "ada", "event": "Searched"}
MESSAGES: list[tuple[Op, Any]] = [
    (Op.TRACK, EVENT | {"timestamp": OLD_MS}),
    (Op.TRACK, EVENT | {"sentAt": OLD_MS}),
    (Op.TRACK, EVENT | {"timestamp": OLD_MS - 9, "sentAt": OLD_MS}),
    (Op.TRACK, EVENT | {"timestamp": "2001-01-01T00:00:00Z"}),
    (Op.PAGE, {"userId": "ada", "timestamp": OLD_MS}),
    (Op.IDENTIFY, {"userId": "ada", "timestamp": OLD_MS}),
    (Op.IDENTIFY, {"userId": "ada", "sentAt": OLD_MS}),
    (Op.DECIDE, {"userId": "ada", "timestamp": OLD_MS}),
    (Op.DECIDE, {"userId": "ada", "events": [{"event": "a", "timestamp": OLD_MS}]}),
]


def new_shard(config: Config = SMALL) -> Shard:
    return Shard("0", KeyRange(0, HASH_SPACE), config, now=lambda: NOW_S)


def ask(shard: Shard, op: Op, body: Any) -> tuple[int, Any]:
    status, answer = shard.handle(op, Caller("s", "default"), msgspec.json.encode(body), 0)
    return status, msgspec.json.decode(answer)


@pytest.mark.parametrize(("op", "body"), MESSAGES)
def test_a_late_message_is_refused_with_an_id_and_taken_without(op: Op, body: Any) -> None:
    shard = new_shard()
    status, problem = ask(shard, op, body | {"messageId": "m"})
    assert status == 422
    assert problem["field"] == ("sentAt" if "sentAt" in body else "timestamp")
    assert "86400 s ago, or no messageId" in problem["wanted"]
    assert (len(shard.store), len(shard.dedupe), shard.store.events_total) == (0, 0, 0)
    assert ask(shard, op, body)[0] == 200


@pytest.mark.parametrize(("op", "body"), MESSAGES)
def test_within_the_window_the_same_message_is_taken(op: Op, body: Any) -> None:
    text = msgspec.json.encode(body | {"messageId": "m"})
    text = text.replace(b"%.1f" % OLD_MS, b"%.1f" % NEW_MS).replace(b"2001-01-01", b"2026-09-21")
    shard = new_shard()
    assert ask(shard, op, msgspec.Raw(text))[0] == 200
    assert ask(shard, op, msgspec.Raw(text))[1]["duplicate"] is True


def test_what_was_just_sent_is_no_repeat_however_old_its_events_are() -> None:
    shard = new_shard()
    late = EVENT | {"messageId": "m", "timestamp": OLD_MS, "sentAt": NOW_S * 1000 - 50}
    assert ask(shard, Op.TRACK, late)[0] == 200
    mixed = [{"event": "a", "timestamp": OLD_MS}, {"event": "a", "timestamp": NEW_MS}]
    assert ask(shard, Op.DECIDE, {"userId": "a", "messageId": "n", "events": mixed})[0] == 200


def test_a_known_id_is_a_repeat_however_late_it_comes() -> None:
    clock = [NOW_S]
    shard = Shard("0", KeyRange(0, HASH_SPACE), SMALL, now=lambda: clock[0])
    body = EVENT | {"messageId": "m", "timestamp": NOW_S * 1000}
    assert ask(shard, Op.TRACK, body)[0] == 200
    clock[0] += WINDOW_S + 10
    assert ask(shard, Op.TRACK, body)[1]["duplicate"] is True


def test_the_window_is_as_short_as_its_room_makes_it() -> None:
    window = DedupeWindow(WINDOW_S, 1 << 16)
    for number in range(1000):
        window.add("t", f"{number}", Answered(1000 + number, 0, b"x" * 100))
    floor_s = window.floor_s(2000)
    known = [entry.time_s for _, _, entry in window.entries()]
    assert len(known) < 1000
    assert floor_s == min(known) - 1
    assert DedupeWindow(100, 1 << 16).floor_s(2000) == 1900


def test_a_repeat_that_was_pushed_out_is_refused_and_not_counted_again() -> None:
    clock = [NOW_S]
    config = msgspec.structs.replace(SMALL, dedupe_bytes_max=1 << 16)
    shard = Shard("0", KeyRange(0, HASH_SPACE), config, now=lambda: clock[0])
    first = EVENT | {"messageId": "first", "timestamp": NOW_S * 1000}
    assert ask(shard, Op.TRACK, first)[0] == 200
    for number in range(1000):
        clock[0] += 1
        assert ask(shard, Op.TRACK, EVENT | {"messageId": f"m{number}"})[0] == 200
    status, problem = ask(shard, Op.TRACK, first)
    assert (status, problem["field"]) == (422, "timestamp")
    assert shard.store.events_total == 1001
