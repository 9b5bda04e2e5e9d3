"""The router against owners that speak the real protocol."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import Overloaded, Unavailable
from cluster.frames import Op
from cluster.keys import HASH_SPACE
from cluster.partition_map import PartitionMap
from serve.router import MOVED_MAX, RESENT_MAX
from tests.serve.fake_owner import Answer, FakeOwner, Maps, asynchronous, echo, map_of, new_router

LOW, HIGH = 0, HASH_SPACE - 1


def moved(epoch: int) -> Answer:
    return 421, b'{"epoch":%d}' % epoch


@asynchronous
async def test_status_and_body_arrive_as_the_owner_wrote_them() -> None:
    fake = await FakeOwner(lambda op, meta, body: (422, b"\x00\xff" + body)).start()
    router = new_router(Maps(map_of(1, fake)))
    await router.start()
    assert await router.call(Op.DECIDE, 5, b"{}", b"s:default") == (422, b"\x00\xff{}")
    assert fake.requests == [(Op.DECIDE, b"s:default", b"{}")]
    await router.close()
    await fake.stop()


@asynchronous
async def test_each_position_reaches_its_owner_and_each_shard_its_name() -> None:
    low, high = await FakeOwner(name="low").start(), await FakeOwner(name="high").start()
    router = new_router(Maps(map_of(1, low, high)))
    await router.start()
    middle = HASH_SPACE // 2
    for position in (LOW, middle - 1, middle, HIGH):
        await router.call(Op.TRACK, position, str(position).encode())
    assert [int(body) for _, _, body in low.requests] == [LOW, middle - 1]
    assert [int(body) for _, _, body in high.requests] == [middle, HIGH]
    assert await router.call_shard("high", Op.STATS) == (200, b"48||")
    with pytest.raises(Unavailable, match="no shard 'other' in the map of epoch 1"):
        await router.call_shard("other", Op.STATS)
    await router.close()
    await low.stop()
    await high.stop()


@asynchronous
async def test_moved_is_followed_to_the_new_owner_and_all_callers_share_one_refresh() -> None:
    new = await FakeOwner(name="new").start()
    old = await FakeOwner(lambda op, meta, body: moved(2), name="old").start()
    maps = Maps(map_of(1, old))
    router = new_router(maps)
    await router.start()
    maps.newest = map_of(2, new)
    maps.gate = asyncio.Event()
    calls = [asyncio.create_task(router.call(Op.DECIDE, i, b"%d" % i)) for i in range(20)]
    await old.seen(20)
    await asyncio.sleep(0)
    maps.gate.set()
    replies = await asyncio.gather(*calls)
    assert list(replies) == [echo(16, b"", b"%d" % i) for i in range(20)]
    assert maps.asked == 2
    assert router.map.epoch == 2
    await router.close()
    await old.stop()
    await new.stop()


@asynchronous
async def test_an_owner_that_is_behind_the_map_is_asked_again_until_it_knows() -> None:
    answers = [moved(3), moved(3), (200, b"now")]
    fake = await FakeOwner(lambda op, meta, body: answers.pop(0)).start()
    maps = Maps(map_of(7, fake))
    router = new_router(maps)
    await router.start()
    assert await router.call(Op.DECIDE, 0, b"{}") == (200, b"now")
    assert len(fake.requests) == 3
    assert maps.asked == 1
    await router.close()
    await fake.stop()


@asynchronous
async def test_an_older_map_is_never_adopted() -> None:
    fake = await FakeOwner(lambda op, meta, body: moved(7)).start()
    elsewhere = await FakeOwner().start()
    maps = Maps(map_of(7, fake))
    router = new_router(maps)
    await router.start()
    maps.newest = map_of(6, elsewhere)
    with pytest.raises(Unavailable):
        await router.call(Op.DECIDE, 0, b"{}")
    assert router.map.epoch == 7
    assert maps.asked > 1
    assert elsewhere.requests == []
    await router.close()
    await fake.stop()
    await elsewhere.stop()


@asynchronous
async def test_moved_without_end_gives_up_after_a_bound() -> None:
    fake = await FakeOwner(lambda op, meta, body: (421, b"no json")).start()
    router = new_router(Maps(map_of(1, fake)))
    await router.start()
    with pytest.raises(Unavailable, match="moved"):
        await router.call(Op.DECIDE, 0, b"{}")
    assert len(fake.requests) == MOVED_MAX + 1
    await router.close()
    await fake.stop()


@asynchronous
async def test_an_owner_that_restarts_on_another_port_gets_the_same_bytes_again() -> None:
    old = await FakeOwner(lambda op, meta, body: None).start()
    new = await FakeOwner().start()
    maps = Maps(map_of(1, old))
    router = new_router(maps)
    await router.start()
    safe = asyncio.create_task(router.call(Op.TRACK, 1, b"safe", b"s:t", retry_safe=True))
    unsafe = asyncio.create_task(router.call(Op.TRACK, 1, b"unsafe", b"s:t"))
    await old.seen(2)
    await old.stop()
    with pytest.raises(Unavailable, match="unknown outcome, retry with the same messageId"):
        await unsafe
    unsent = asyncio.create_task(router.call(Op.TRACK, 1, b"unsent", b"s:t"))
    await asyncio.sleep(0)
    maps.newest = map_of(2, new)
    assert await safe == (200, b"17|s:t|safe")
    assert await unsent == (200, b"17|s:t|unsent")
    assert sorted(body for _, _, body in new.requests) == [b"safe", b"unsent"]
    await router.close()
    await new.stop()


@asynchronous
async def test_an_owner_that_restarts_on_its_port_is_found_again_by_the_same_map() -> None:
    fake = await FakeOwner().start()
    port = fake.port
    router = new_router(Maps(map_of(1, fake)))
    await router.start()
    await fake.stop()
    waiting = asyncio.create_task(router.call(Op.DECIDE, 1, b"x", retry_safe=True))
    await asyncio.sleep(0)
    again = await FakeOwner().start(port)
    assert await waiting == (200, b"16||x")
    assert router.map.epoch == 1
    await router.close()
    await again.stop()


@asynchronous
async def test_a_request_that_kills_every_owner_is_not_sent_without_end() -> None:
    def die(op: int, meta: bytes, body: bytes) -> Answer:
        fake.drop()
        return None

    fake = await FakeOwner(die).start()
    router = new_router(Maps(map_of(1, fake)))
    await router.start()
    with pytest.raises(Unavailable, match="unknown outcome"):
        await router.call(Op.TRACK, 1, b"poison", retry_safe=True)
    assert len(fake.requests) == RESENT_MAX + 1
    await router.close()
    await fake.stop()


@asynchronous
async def test_a_dead_owner_is_unavailable_while_the_others_answer() -> None:
    alive, dead = await FakeOwner(name="alive").start(), await FakeOwner(name="dead").start()
    maps = Maps(map_of(1, alive, dead))
    await dead.stop()
    router = new_router(maps, map_wait_s=0.2)
    await router.start()
    assert not router.reachable
    assert await router.call(Op.DECIDE, LOW, b"x") == (200, b"16||x")
    with pytest.raises(Unavailable, match=r"shard dead can.t be reached: .*; retry later"):
        await router.call(Op.DECIDE, HIGH, b"x")
    with pytest.raises(Unavailable, match="shard dead can't be reached"):
        await router.call_shard("dead", Op.STATS)
    await router.close()
    await alive.stop()


@asynchronous
async def test_a_map_that_can_not_be_fetched_is_asked_for_again() -> None:
    old, new = await FakeOwner().start(), await FakeOwner().start()
    maps = Maps(map_of(1, old))
    router = new_router(maps)
    await router.start()
    maps.error = RuntimeError("the coordinator is away")
    await old.stop()
    waiting = asyncio.create_task(router.call(Op.DECIDE, 1, b"x", retry_safe=True))
    while maps.asked < 4:
        await asyncio.sleep(0.001)
    maps.error, maps.newest = None, map_of(2, new)
    assert await waiting == (200, b"16||x")
    await router.close()
    await new.stop()


class News(Maps):
    """As the coordinator: answers when there is something newer, at the latest after a while."""

    async def __call__(self, epoch: int) -> PartitionMap:
        self.asked += 1
        if self.error is not None:
            raise self.error
        for _ in range(500):
            if self.newest.epoch > epoch:
                break
            await asyncio.sleep(0.01)
        return self.newest


@asynchronous
async def test_a_router_that_watches_leaves_an_owner_that_vanished_without_a_request() -> None:
    before = asyncio.all_tasks()
    silent = await FakeOwner(lambda op, meta, body: None, name="silent").start()
    fresh = await FakeOwner(name="fresh").start()
    maps = News(map_of(1, silent))
    router = new_router(maps)
    await router.start()
    router.watch()
    # Two changes, so that it also looks again after the first.
    for epoch in (2, 3):
        maps.newest = map_of(epoch, fresh)
        while router.map.epoch < epoch:
            await asyncio.sleep(0.01)
    assert await router.call(Op.DECIDE, 1, b"{}") == (200, b"16||{}")
    assert not silent.requests
    await router.close()
    await silent.stop()
    await fresh.stop()
    assert asyncio.all_tasks() == before


@asynchronous
async def test_a_router_that_watches_does_not_hammer_a_coordinator_that_is_away() -> None:
    fake = await FakeOwner().start()
    maps = News(map_of(1, fake))
    router = new_router(maps)
    await router.start()
    maps.error = Unavailable("away")
    router.watch()
    await asyncio.sleep(0.3)
    assert maps.asked == 2
    assert await router.call(Op.DECIDE, 1, b"{}") == (200, b"16||{}")
    await router.close()
    await fake.stop()


@asynchronous
async def test_start_raises_what_the_first_fetch_raises() -> None:
    fake = await FakeOwner().start()
    maps = Maps(map_of(1, fake))
    maps.error = RuntimeError("no coordinator")
    router = new_router(maps)
    with pytest.raises(RuntimeError, match="no coordinator"):
        await router.start()
    with pytest.raises(Unavailable):
        _ = router.map
    await router.close()
    await fake.stop()


@asynchronous
async def test_more_than_inflight_max_is_refused_and_room_comes_back() -> None:
    release = asyncio.Event()

    async def wait(op: int, meta: bytes, body: bytes) -> Answer:
        await release.wait()
        return 200, body

    fake = await FakeOwner(wait).start()
    router = new_router(Maps(map_of(1, fake)), inflight_max=3)
    await router.start()
    calls = [asyncio.create_task(router.call(Op.DECIDE, 1, b"x")) for _ in range(3)]
    await fake.seen(3)
    with pytest.raises(Overloaded, match="at most 3"):
        await router.call(Op.DECIDE, 1, b"x")
    release.set()
    await asyncio.gather(*calls)
    assert await router.call(Op.DECIDE, 1, b"x") == (200, b"x")
    await router.close()
    await fake.stop()


@asynchronous
async def test_requests_that_wait_for_an_owner_are_bounded_too() -> None:
    fake = await FakeOwner().start()
    maps = Maps(map_of(1, fake))
    await fake.stop()
    router = new_router(maps, inflight_max=2)
    await router.start()
    calls = [asyncio.create_task(router.call(Op.DECIDE, 1, b"x")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await router.call(Op.DECIDE, 1, b"x")
    await router.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)


@asynchronous
async def test_a_retired_owner_still_answers_what_it_was_asked() -> None:
    release = asyncio.Event()

    async def wait(op: int, meta: bytes, body: bytes) -> Answer:
        if body == b"moved":
            return moved(2)
        await release.wait()
        return 200, b"late but true"

    old, new = await FakeOwner(wait, name="old").start(), await FakeOwner(name="new").start()
    maps = Maps(map_of(1, old))
    router = new_router(maps)
    await router.start()
    early = asyncio.create_task(router.call(Op.DECIDE, 1, b"early"))
    await old.seen(1)
    maps.newest = map_of(2, new)
    assert await router.call(Op.DECIDE, 1, b"moved") == (200, b"16||moved")
    release.set()
    assert await early == (200, b"late but true")
    while old.connections:
        await asyncio.sleep(0.001)
    await router.close()
    await old.stop()
    await new.stop()


@asynchronous
async def test_two_routers_share_an_owner_and_not_their_request_ids() -> None:
    fake = await FakeOwner().start()
    routers = [new_router(Maps(map_of(1, fake))) for _ in range(2)]
    for router in routers:
        await router.start()
    replies = await asyncio.gather(
        *(routers[i % 2].call(Op.DECIDE, 1, b"%d" % i) for i in range(40))
    )
    assert [body for _, body in replies] == [b"16||%d" % i for i in range(40)]
    await routers[0].close()
    assert await routers[1].call(Op.DECIDE, 1, b"x") == (200, b"16||x")
    await routers[1].close()
    await fake.stop()


@asynchronous
async def test_close_fails_what_is_in_flight_and_leaves_no_task_behind() -> None:
    tasks = asyncio.all_tasks()
    fake = await FakeOwner(lambda op, meta, body: None).start()
    router = new_router(Maps(map_of(1, fake)))
    await router.start()
    call = asyncio.create_task(router.call(Op.DECIDE, 1, b"x", retry_safe=True))
    await fake.seen(1)
    await router.close()
    with pytest.raises(Unavailable, match="closed"):
        await call
    with pytest.raises(Unavailable, match="closed"):
        await router.call(Op.DECIDE, 1, b"x")
    await fake.stop()
    assert asyncio.all_tasks() == tasks
