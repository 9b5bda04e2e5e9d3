"""Logs and snapshots that an older release wrote are read by this one, and go on from there.

`format_1` was written by the release of 2026-11-22: a snapshot, and a log of two segments behind
it. `expected.json` is what that release answered then.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec

from actors.compact import compact
from actors.journal import Journal
from actors.recovery import drop_superfluous, recover
from actors.shard import Shard
from cluster.frames import Op
from tests.actors.test_recovery import CONFIG, NOW_S, SERVER, contents, live, new_shard, unexpected

FOLDER = Path(__file__).parent / "format_1"


def expected() -> Any:
    return msgspec.json.decode((FOLDER / "expected.json").read_bytes())


def profiles(shard: Shard) -> dict[str, Any]:
    found = {}
    for number in range(40):
        body = msgspec.json.encode({"userId": f"u{number}"})
        status, answer = shard.handle(Op.PROFILE_GET, SERVER, body, 0)
        if status == 200:
            found[f"u{number}"] = msgspec.json.decode(answer)
    return found


def test_a_folder_of_the_first_format_gives_what_it_held() -> None:
    shard, wanted = new_shard(), expected()
    assert recover(shard, FOLDER).next_seq == wanted["next"]
    shard.store.check()
    found = profiles(shard)
    assert found.keys() == wanted["profiles"].keys()
    for person, profile in wanted["profiles"].items():
        # Newer releases may tell more of a person, never anything else.
        assert {name: found[person][name] for name in profile} == profile
    answers = {message_id: one.answer for _, message_id, one in shard.dedupe.entries()}
    assert {name: answer.decode() for name, answer in answers.items()} == wanted["dedupe"]
    assert shard.loads.applied == wanted["loaded"]
    # That release kept decisions of the erased, though nobody could read them.
    assert 0 < len(shard.decisions) <= wanted["decisions"]


def test_it_is_written_on_compacted_and_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "shard"
    shutil.copytree(FOLDER, folder)

    async def act() -> dict[str, Any]:
        clock = [float(NOW_S + 10_000_000)]
        shard = new_shard(clock)
        end = recover(shard, folder)
        shard.journal = Journal(folder, end, unexpected, segment_bytes=1 << 13)
        live(shard, clock, 60, 7)
        await shard.journal.sync()
        assert compact(folder, CONFIG) is not None
        drop_superfluous(folder)
        shard.journal.close()
        return contents(shard)

    before = asyncio.run(act())
    again = new_shard()
    recover(again, folder)
    assert contents(again) == before
