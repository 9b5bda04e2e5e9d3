"""What an answer waits for: the message's wish, its key's, the setting; never less in silence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.endpoint import Endpoint
from actors.journal import Journal
from actors.people import Caller, parse_caller
from actors.recovery import recover
from actors.shard import Shard
from cluster.config import Config
from cluster.errors import RequestError
from cluster.frames import ClientHandshake, FrameDecoder, Op, encode_frame
from cluster.keys import HASH_SPACE, KeyRange

SMALL = Config(profiles_max=2048, profile_bytes_max=1 << 22, items_max=64)
SERVER = Caller("s", "default")
MESSAGES: dict[Op, dict[str, Any]] = {
    Op.TRACK: {"userId": "ada", "event": "Searched"},
    Op.PAGE: {"userId": "ada"},
    Op.IDENTIFY: {"userId": "ada", "traits": {"a": 1}},
    Op.DECIDE: {"userId": "ada", "events": [{"event": "Searched"}]},
}


def new_shard(config: Config = SMALL) -> Shard:
    return Shard("0", KeyRange(0, HASH_SPACE), config)


def ask(shard: Shard, op: Op, body: Any, caller: Caller = SERVER) -> tuple[int, Any]:
    status, answer = shard.handle(op, caller, msgspec.json.encode(body), 0)
    return status, msgspec.json.decode(answer)


@pytest.mark.parametrize("op", MESSAGES)
def test_the_message_counts_before_the_key_and_the_key_before_the_setting(op: Op) -> None:
    shard = new_shard()
    hasty = Caller("s", "default", "memory")
    for caller, asked, level in (
        (SERVER, None, "disk"),
        (SERVER, "memory", "memory"),
        (hasty, None, "memory"),
        (hasty, "disk", "disk"),
    ):
        wish = {"durability": asked} if asked else {}
        status, answer = ask(shard, op, MESSAGES[op] | wish, caller)
        assert (status, answer["durability"], shard.level) == (200, level, level)
    ask(shard, Op.PROFILE_GET, {"userId": "ada"}, hasty)
    assert shard.level == "disk"


@pytest.mark.parametrize("op", MESSAGES)
@pytest.mark.parametrize(
    ("setting", "asked", "wanted"),
    [("disk", "replica", "'memory' or 'disk'"), ("memory", "disk", "'memory'")],
)
def test_a_level_that_is_not_to_be_had_is_refused_and_nothing_changes(
    op: Op, setting: Any, asked: str, wanted: str
) -> None:
    shard = new_shard(msgspec.structs.replace(SMALL, durability=setting))
    for body, caller in (
        (MESSAGES[op] | {"durability": asked, "messageId": "m"}, SERVER),
        (MESSAGES[op] | {"messageId": "m"}, Caller("s", "default", asked)),  # type: ignore[arg-type]
    ):
        status, problem = ask(shard, op, body, caller)
        assert status == 503
        assert problem["field"] == "durability"
        assert (problem["seen"], problem["wanted"]) == (repr(asked), wanted)
    assert (len(shard.store), len(shard.dedupe), shard.store.events_total) == (0, 0, 0)
    assert ask(shard, op, MESSAGES[op] | {"messageId": "m"})[0] == 200


def test_an_unknown_level_is_a_mistake_of_the_caller() -> None:
    status, problem = ask(new_shard(), Op.TRACK, MESSAGES[Op.TRACK] | {"durability": "tape"})
    assert (status, problem["field"], problem["seen"]) == (422, "durability", '"tape"')


def test_a_repeat_waits_for_the_level_it_asks_for_and_names_it() -> None:
    shard = new_shard()
    body = MESSAGES[Op.DECIDE] | {"messageId": "m"}
    _, first = ask(shard, Op.DECIDE, body, Caller("s", "default", "memory"))
    assert (first["durability"], shard.level) == ("memory", "memory")
    status, again = ask(shard, Op.DECIDE, body)
    assert (status, again) == (200, first | {"duplicate": True, "durability": "disk"})
    assert shard.level == "disk"


def test_the_level_of_a_key_travels_with_the_caller() -> None:
    assert parse_caller(b"s:shop:memory") == Caller("s", "shop", "memory")
    assert parse_caller(b"p:shop") == Caller("p", "shop", None)
    for wrong in (b"s:shop:tape", b"s::memory", b"x:shop"):
        with pytest.raises(RequestError):
            parse_caller(wrong)


def test_only_an_answer_from_memory_leaves_before_the_disk_has_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of_disk: list[tuple[int, ...]] = []

    async def act() -> None:
        shard = new_shard()
        end = recover(shard, tmp_path)
        shard.journal = Journal(tmp_path, end, lambda error: pytest.fail(str(error)), 1 << 16)
        ask_disk = shard.journal.writer._ask
        monkeypatch.setattr(
            shard.journal.writer, "_ask", lambda *request: asked_of_disk.append(request)
        )
        endpoint = Endpoint(shard, lambda principal: (b"s" * 32, None))
        reader, writer = await asyncio.open_connection(*await endpoint.start("127.0.0.1"))
        decoder, handshake = FrameDecoder(), ClientHandshake("gateway", b"s" * 32)

        async def frames(count: int) -> list[tuple[int, int]]:
            found: list[Any] = []
            while len(found) < count:
                found += decoder.feed(await asyncio.wait_for(reader.read(1 << 16), 10))
            return [(frame[0], frame[2]) for frame in found]

        challenge = decoder.feed(await reader.read(1 << 16))[0]
        writer.write(handshake.hello(challenge[4]))
        await frames(1)
        for number, level in ((1, "disk"), (2, "memory"), (3, "disk")):
            body = msgspec.json.encode(MESSAGES[Op.TRACK] | {"durability": level})
            writer.write(encode_frame(number, Op.TRACK, body, b"s:default"))
        # One that reads what is not yet durable waits as well.
        writer.write(encode_frame(4, Op.PROFILE_GET, b'{"userId":"ada"}', b"s:default"))
        assert await frames(1) == [(2, 200)]
        assert not shard.journal.settled
        monkeypatch.undo()
        (request,) = asked_of_disk
        ask_disk(*request)
        assert await frames(3) == [(1, 200), (3, 200), (4, 200)]
        writer.close()
        await endpoint.close()
        shard.journal.close()

    asyncio.run(act())
    again = new_shard()
    recover(again, tmp_path)
    assert again.store.events_total == 3
