"""Ranges move while those who take part are killed: nothing is lost, it goes on or is undone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import judge, new_load
from tests.faults.load import Load
from tests.faults.onehop import COORDINATOR, GATEWAY, Onehop

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(900)]

AGAIN = 20
SETTLE_S = 60.0
moved: list[Load] = []


def owners(onehop: Onehop) -> list[dict[str, Any]]:
    """The shards of the map, in order of their ranges, once all of them answer."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        with suppress(RuntimeError, OSError):
            found = onehop.call("GET", "/v1/shards")["owners"]
            if all(owner["stats"] is not None for owner in found):
                return sorted(found, key=lambda owner: int(owner["start"], 16))
        assert time.monotonic() < deadline_s, "not all shards are up again"
        time.sleep(0.1)


def pids(onehop: Onehop, word: str) -> set[int]:
    return {process.pid for process in onehop.named(word)}


def source(onehop: Onehop, before: list[dict[str, Any]]) -> int:
    pid: int = before[0]["stats"]["pid"]
    return pid


def target(onehop: Onehop, before: list[dict[str, Any]]) -> int:
    """The process of the shard that is to be."""
    known = {owner["stats"]["pid"] for owner in before}
    deadline_s = time.monotonic() + SETTLE_S
    while not (fresh := {process.pid for process in onehop.shards()} - known):
        assert time.monotonic() < deadline_s, "no process was started for the range"
        time.sleep(0.01)
    return max(fresh)


def coordinator(onehop: Onehop, before: list[dict[str, Any]]) -> int:
    return max(pids(onehop, COORDINATOR))


def gateway(onehop: Onehop, before: list[dict[str, Any]]) -> int:
    return max(pids(onehop, GATEWAY))


def ended(onehop: Onehop, reshape_id: str) -> str:
    """How a reshape ended; "" if nobody remembers it, as after its coordinator's death."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        with suppress(RuntimeError, OSError):
            known = {state["id"]: state for state in onehop.call("GET", "/v1/reshapes")["reshapes"]}
            state = known.get(reshape_id, {"step": "", "reason": ""})
            if state["step"] in ("", "done", "aborted"):
                return f"{state['step']} {state['reason']}".strip()
        assert time.monotonic() < deadline_s, "a reshape does not end"
        time.sleep(0.05)


def merge_to_two(onehop: Onehop) -> None:
    """As other tests expect it."""
    while len(found := owners(onehop)) > 2:
        names = [owner["shardId"] for owner in found[:2]]
        with suppress(RuntimeError):
            ended(onehop, onehop.call("POST", "/v1/shards:merge", {"shards": names})["id"])
    # What was replaced ends a moment later.
    deadline_s = time.monotonic() + SETTLE_S
    while len(onehop.shards()) > 2 and time.monotonic() < deadline_s:
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("victim", "number", "rounds"),
    [
        (source, signal.SIGKILL, 4),
        (source, signal.SIGSTOP, 2),
        (target, signal.SIGKILL, 4),
        (coordinator, signal.SIGKILL, 4),
        (gateway, signal.SIGKILL, 3),
    ],
    ids=["source", "source stopped", "target", "coordinator", "gateway"],
)
def test_whoever_is_killed_while_a_range_moves_nothing_is_lost(
    onehop: Onehop,
    kept: Path,
    victim: Callable[[Onehop, list[dict[str, Any]]], int],
    number: signal.Signals,
    rounds: int,
) -> None:
    generator = random.Random(f"{victim.__name__}{number}")
    outcomes = []
    with new_load(onehop, seed=rounds) as load:
        for _ in range(rounds):
            load.wait_answers(AGAIN)
            before = owners(onehop)
            path = f"/v1/shards/{before[0]['shardId']}:split"
            begun = onehop.call("POST", path, {})
            # From when the new processes are made until shortly after the swap.
            time.sleep(generator.uniform(0.5, 4.0))
            pid = victim(onehop, before)
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            outcomes.append(ended(onehop, begun["id"]))
            load.wait_answers(AGAIN)
            merge_to_two(onehop)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    print(f"{victim.__name__}: {outcomes}")
    judge(load, kept)
    moved.append(load)


def test_all_is_there_after_everything_was_killed_while_ranges_moved(
    onehop: Onehop, kept: Path
) -> None:
    generator = random.Random(6)
    with new_load(onehop, seed=6) as load:
        for _ in range(3):
            load.wait_answers(AGAIN)
            first = owners(onehop)[0]["shardId"]
            onehop.call("POST", f"/v1/shards/{first}:split", {})
            time.sleep(generator.uniform(1.0, 4.0))
            onehop.kill()
            onehop.start()
            load.wait_answers(AGAIN)
            merge_to_two(onehop)
    for one in (*moved, load):
        judge(one, kept)
    folders = {path.name for path in (onehop.data / "shards").iterdir() if path.is_dir()}
    named = {owner["shardId"] for owner in owners(onehop)}
    deadline_s = time.monotonic() + SETTLE_S
    while folders != named and time.monotonic() < deadline_s:
        time.sleep(0.5)
        folders = {path.name for path in (onehop.data / "shards").iterdir() if path.is_dir()}
    assert folders == named, "what nobody needs any more is removed"
