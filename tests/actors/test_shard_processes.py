"""Spares of shards' processes: used, given up, replaced. Ray's actors are stand-ins here."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors import shard_processes
from actors.custody import Place
from actors.shard_processes import RETRY_S, ShardProcesses, _Process
from cluster.config import Config
from cluster.errors import ConfigError, Unavailable
from cluster.keys import HASH_SPACE, KeyRange

WHOLE = KeyRange(0, HASH_SPACE)


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(test(**arguments))  # type: ignore[arg-type]

    return run


class Method:
    def __init__(self, act: Callable[..., Awaitable[Any]]) -> None:
        self.remote = act


class Actor:
    """What the others call of a ShardActor."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.shard_id = ""
        self.wrong: Exception | None = None
        self.died = asyncio.Event()
        self.loading = asyncio.Event()
        self.loading.set()
        for name in ("load", "become", "forever"):
            setattr(self, name, Method(getattr(self, f"_{name}")))

    async def _load(self) -> None:
        await self.loading.wait()

    async def _become(self, shard_id: str, *_: Any) -> None:
        if self.wrong is not None:
            raise self.wrong
        self.shard_id = shard_id

    async def _forever(self) -> None:
        await self.died.wait()
        raise RayActorError


class Processes(ShardProcesses):
    """Starts stand-ins instead of actors."""

    def __init__(self) -> None:
        super().__init__(Config())
        self.started: list[Actor] = []
        self.room = True

    def _start(self, node_id: str) -> _Process:
        actor = Actor(len(self.started))
        self.started.append(actor)
        return _Process(f"process {actor.number}", actor)

    def _fits(self, node_id: str) -> bool:
        return self.room

    async def make_one(self, shard_id: str, node_id: str = "a") -> str:
        await self.make(shard_id, WHOLE, Place("copy", node_id))
        return self.name(shard_id)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(ray, "kill", lambda actor: found.append(actor.number))
    return found


async def keep(processes: Processes, *nodes: str, start: bool = True) -> None:
    await processes.keep_spares(nodes, start)
    # It loads, and whoever died is noticed.
    for _ in range(10):
        await asyncio.sleep(0)


@in_a_loop
async def test_a_shard_starts_in_the_spare_of_its_node(ended: list[int]) -> None:
    processes = Processes()
    await keep(processes, "a", "b")
    await keep(processes, "a", "b")
    assert await processes.make_one("7", "b") == "process 1"
    # There is none for the next: it rests before another is started.
    await keep(processes, "a", "b")
    assert await processes.make_one("8", "b") == "process 2"
    # Where the place is all the same, any will do.
    assert await processes.make_one("9", "") == "process 0"
    assert [actor.shard_id for actor in processes.started] == ["9", "7", "8"]
    assert ended == []


@in_a_loop
async def test_a_spare_is_kept_where_there_is_room_and_only_there(ended: list[int]) -> None:
    processes = Processes()
    processes.room = False
    await keep(processes, "a")
    assert not processes.started
    processes.room = True
    await keep(processes, "a", start=False)
    assert not processes.started
    await keep(processes, "a")
    await keep(processes, "a")
    assert len(processes.started) == 1
    # The node is drained, or has no shard any more; also while nothing may be started.
    await keep(processes, start=False)
    assert ended == [0]
    with pytest.raises(Unavailable):
        processes.actor("7")


@pytest.mark.parametrize("wrong", [RayActorError(), ConfigError("no secret")])
@in_a_loop
async def test_a_spare_that_can_become_nothing_is_ended(ended: list[int], wrong: Exception) -> None:
    processes = Processes()
    await keep(processes, "a")
    processes.started[0].wrong = wrong
    if isinstance(wrong, ConfigError):
        with pytest.raises(ConfigError):
            await processes.make_one("7")
    else:
        assert await processes.make_one("7") == "process 1"
    assert ended == [0]


@in_a_loop
async def test_a_spare_that_stands_still_is_given_up(
    ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_processes, "CALL_S", 0.01)
    processes = Processes()
    await keep(processes, "a")

    async def stand_still(*_: Any) -> None:
        await asyncio.Event().wait()

    processes.started[0].become.remote = stand_still  # type: ignore[attr-defined]
    assert await processes.make_one("7") == "process 1"
    assert ended == [0]


@in_a_loop
async def test_one_that_is_not_ready_yet_is_waited_for(
    ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_processes, "CALL_S", 0.0)
    processes = Processes()
    await keep(processes, "a")
    actor = Actor(0)
    actor.loading.clear()
    processes.close()
    processes.started[0] = actor
    monkeypatch.setattr(processes, "_start", lambda node_id: _Process("slow", actor))
    await keep(processes, "a")
    assert await processes.make_one("7") == "slow"
    assert actor.shard_id == "7"


@in_a_loop
async def test_a_spare_that_died_is_replaced(
    ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_processes, "REST_S", 0.0)
    processes = Processes()
    await keep(processes, "a")
    processes.started[0].died.set()
    await keep(processes, "a")
    await keep(processes, "a")
    assert len(processes.started) == 2
    assert await processes.make_one("7") == "process 1"


@in_a_loop
async def test_one_that_never_gets_ready_is_not_tried_again_soon(
    ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_processes, "SPARE_S", 0.0)
    processes = Processes()
    began_s = asyncio.get_running_loop().time()
    await keep(processes, "a")
    await asyncio.sleep(0.01)
    await keep(processes, "a")
    await keep(processes, "a")
    assert ended == [0]
    assert len(processes.started) == 1
    assert processes._next_s["a"] >= began_s + RETRY_S
