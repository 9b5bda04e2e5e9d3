"""One connection: its handshake, its multiplexing, and what a bad peer can do to it (nothing)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.errors import AuthError, FrameError, Overloaded, Unavailable
from cluster.frames import (
    FRAME_BYTES_MAX,
    REQUEST_IDS,
    FrameDecoder,
    Op,
    ServerHandshake,
    encode_frame,
)
from cluster.keys import HASH_SPACE, KeyRange
from cluster.partition_map import PartitionMap, owner
from serve.connection import LATE, LOST, QUEUED_BYTES_MAX, Connection
from tests.serve.fake_owner import SECRET, Answer, FakeOwner, Maps, asynchronous, map_of, new_router

LOW, HIGH = 0, HASH_SPACE - 1


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def connected(inflight_max: int = 64, timeout_s: float = 1.0) -> tuple[Connection, Wire, list[Any]]:
    """A connection after its handshake, what it writes, and the losses it reported."""
    wire, losses = Wire(), list[Any]()
    connection = Connection("gateway", SECRET, inflight_max, timeout_s, losses.append)
    server = ServerHandshake()
    connection.connection_made(wire)
    connection.data_received(server.challenge())
    ((_, _, _, _, hello),) = FrameDecoder().feed(wire.writes.pop())
    connection.data_received(server.welcome(server.read_hello(hello), SECRET))
    assert connection.ready.done()
    return connection, wire, losses


def reply(request: int, body: bytes) -> bytes:
    return encode_frame(request, Op.REPLY, body, status=200)


@asynchronous
async def test_requests_of_one_turn_of_the_loop_leave_in_one_write() -> None:
    connection, wire, _ = connected()
    for number in range(5):
        connection.submit(Op.DECIDE, b"%d" % number, b"s:t")
    assert wire.writes == []
    await asyncio.sleep(0)
    assert len(wire.writes) == 1
    frames = FrameDecoder().feed(wire.writes[0])
    assert [(op, meta, body) for _, op, _, meta, body in frames] == [
        (Op.DECIDE, b"s:t", b"%d" % number) for number in range(5)
    ]


@asynchronous
async def test_a_late_reply_reaches_nobody_and_is_counted() -> None:
    connection, _, losses = connected(timeout_s=1.0)
    late = connection.submit(Op.DECIDE, b"late")
    connection.sweep(10.0)
    in_time = connection.submit(Op.DECIDE, b"in time")
    connection.data_received(reply(7, b"never asked"))
    connection.sweep(11.0)
    assert late.result() == (LATE, b"no reply within 1 s")
    assert not in_time.done()
    connection.data_received(reply(0, b"late") + reply(1, b"in time"))
    assert in_time.result() == (200, b"in time")
    assert connection.unmatched == 2
    assert losses == []


@asynchronous
async def test_a_peer_silent_for_a_whole_timeout_is_given_up() -> None:
    connection, wire, losses = connected(timeout_s=1.0)
    connection.sweep(10.0)
    first = connection.submit(Op.DECIDE, b"first")
    connection.sweep(10.5)
    second = connection.submit(Op.DECIDE, b"second")
    connection.sweep(11.6)
    assert first.result()[0] == LATE
    assert second.result() == (LOST, b"nothing was heard for 1 s")
    assert wire.aborted
    assert losses == [connection]


@asynchronous
async def test_timeouts_and_replies_survive_the_wrap_of_request_ids() -> None:
    connection, _, _ = connected(timeout_s=1.0)
    connection._request = REQUEST_IDS - 2
    futures = [connection.submit(Op.DECIDE, b"") for _ in range(4)]
    connection.data_received(reply(0, b"third") + reply(REQUEST_IDS - 1, b"second"))
    assert [future.done() for future in futures] == [False, True, True, False]
    connection.sweep(20.0)
    young = connection.submit(Op.DECIDE, b"")
    connection.data_received(reply(99, b""))
    connection.sweep(21.0)
    assert [future.result()[0] for future in futures] == [LATE, 200, 200, LATE]
    assert not young.done()


@asynchronous
async def test_a_peer_that_does_not_read_holds_back_writes_up_to_a_bound() -> None:
    connection, wire, _ = connected(inflight_max=1000)
    connection.pause_writing()
    megabyte = bytes(1 << 20)
    held = QUEUED_BYTES_MAX // len(megabyte)
    for _ in range(held):
        connection.submit(Op.DECIDE, megabyte)
    with pytest.raises(Overloaded, match="bytes unsent"):
        connection.submit(Op.DECIDE, megabyte)
    await asyncio.sleep(0)
    assert wire.writes == []
    connection.resume_writing()
    assert len(FrameDecoder().feed(b"".join(wire.writes))) == held
    connection.submit(Op.DECIDE, megabyte)
    connection.abort("enough")


@pytest.mark.parametrize("cut", [1, 5, 13, 1000])
@asynchronous
async def test_a_handshake_and_replies_in_any_pieces_are_understood(cut: int) -> None:
    wire = Wire()
    connection = Connection("gateway", SECRET, 9, 1.0, lambda _: None)
    server = ServerHandshake()
    connection.connection_made(wire)
    challenge = server.challenge()
    for at in range(0, len(challenge), cut):
        connection.data_received(challenge[at : at + cut])
    ((_, _, _, _, hello),) = FrameDecoder().feed(b"".join(wire.writes))
    # The first reply may come in the same piece as the welcome, though nobody asked yet.
    stream = server.welcome(server.read_hello(hello), SECRET) + reply(5, b"x") * 3
    for at in range(0, len(stream), cut):
        connection.data_received(stream[at : at + cut])
    assert connection.ready.done()
    assert connection.unmatched == 3


@asynchronous
async def test_a_connection_lost_answers_everybody_and_reports_it_once() -> None:
    connection, _, losses = connected()
    futures = [connection.submit(Op.DECIDE, b"") for _ in range(3)]
    futures[1].cancel()
    connection.connection_lost(ConnectionResetError("reset"))
    connection.abort("again")
    assert futures[0].result() == (LOST, b"the owner closed the connection: reset")
    assert futures[2].result()[0] == LOST
    assert losses == [connection]


@asynchronous
async def test_replies_in_any_order_and_in_any_pieces_find_their_callers() -> None:
    async def backwards(op: int, meta: bytes, body: bytes) -> Answer:
        for _ in range(50 - int(body)):
            await asyncio.sleep(0)
        return 200, body * 100

    fake = await FakeOwner(backwards, cut=7).start()
    router = new_router(Maps(map_of(1, fake)))
    await router.start()
    replies = await asyncio.gather(*(router.call(Op.DECIDE, i, b"%d" % i) for i in range(50)))
    assert [body for _, body in replies] == [b"%d" % i * 100 for i in range(50)]
    await router.close()
    await fake.stop()


@asynchronous
async def test_a_cancelled_caller_does_not_disturb_the_others() -> None:
    release = asyncio.Event()

    async def wait(op: int, meta: bytes, body: bytes) -> Answer:
        await release.wait()
        return 200, body

    fake = await FakeOwner(wait).start()
    router = new_router(Maps(map_of(1, fake)))
    await router.start()
    calls = [asyncio.create_task(router.call(Op.DECIDE, i, b"%d" % i)) for i in range(9)]
    await fake.seen(9)
    for call in calls[::2]:
        call.cancel()
    release.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [outcomes[i] for i in (1, 3, 5, 7)] == [(200, b"%d" % i) for i in (1, 3, 5, 7)]
    assert all(isinstance(outcomes[i], asyncio.CancelledError) for i in (0, 2, 4, 6, 8))
    assert await router.call(Op.DECIDE, 0, b"after") == (200, b"after")
    assert len(fake.connections) == 1
    await router.close()
    await fake.stop()


@pytest.mark.parametrize(
    ("principal", "secret", "served"),
    [
        ("gateway", b"x" * 32, {"gateway": b"s" * 32}),
        ("nobody", b"s" * 32, {"gateway": b"s" * 32}),
    ],
)
@asynchronous
async def test_an_owner_that_refuses_the_secret_fails_the_start(
    principal: str, secret: bytes, served: dict[str, bytes]
) -> None:
    fake = await FakeOwner(secrets=served).start()
    router = new_router(Maps(map_of(1, fake)), principal=principal, secret=secret)
    with pytest.raises(AuthError, match="is not proven"):
        await router.start()
    assert fake.requests == []
    await fake.stop()


@asynchronous
async def test_a_server_that_does_not_hold_the_secret_is_not_trusted() -> None:
    async def imposter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ServerHandshake().challenge())
        await reader.read(1)
        writer.write(encode_frame(0, Op.WELCOME, bytes(32)))

    server = await asyncio.start_server(imposter, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    everything = owner("a", KeyRange(0, HASH_SPACE), "127.0.0.1", port)
    router = new_router(Maps(PartitionMap(1, (everything,))))
    with pytest.raises(AuthError, match="did not prove"):
        await router.start()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" * 64,
        (FRAME_BYTES_MAX + 1).to_bytes(4, "little") + bytes(8),
        bytes(8) + b"\xfe" + bytes(3),
        b"\0\0\0\0\0\0\0\0\x10\0\0\0",
    ],
    ids=["http", "ones", "too large", "unknown op", "a request"],
)
@asynchronous
async def test_garbage_from_an_owner_ends_that_connection_only(garbage: bytes) -> None:
    def answer(op: int, meta: bytes, body: bytes) -> Answer:
        if body == b"garbage":
            fake.connections[0].transport.write(garbage)
            return None
        return 200, body

    fake, other = await FakeOwner(answer, name="a").start(), await FakeOwner(name="b").start()
    router = new_router(Maps(map_of(1, fake, other)))
    await router.start()
    with pytest.raises(Unavailable, match="unknown outcome"):
        await router.call(Op.DECIDE, LOW, b"garbage")
    assert await router.call(Op.DECIDE, HIGH, b"x") == (200, b"16||x")
    assert await router.call(Op.DECIDE, LOW, b"again") == (200, b"again")
    await router.close()
    await fake.stop()
    await other.stop()


@asynchronous
async def test_a_silent_owner_is_given_up_and_a_fresh_connection_is_made() -> None:
    fake = await FakeOwner(
        lambda op, meta, body: None if body == b"silent" else (200, body)
    ).start()
    router = new_router(Maps(map_of(1, fake)), request_timeout_s=0.1)
    await router.start()
    first = fake.connections[0]
    with pytest.raises(Unavailable, match=r"no reply within 0\.1 s"):
        await router.call(Op.DECIDE, 1, b"silent", retry_safe=True)
    assert await router.call(Op.DECIDE, 1, b"x") == (200, b"x")
    assert fake.connections[0] is not first
    await router.close()
    await fake.stop()


@asynchronous
async def test_a_request_too_large_for_a_frame_is_refused_and_harms_nobody() -> None:
    fake = await FakeOwner().start()
    router = new_router(Maps(map_of(1, fake)))
    await router.start()
    with pytest.raises(FrameError):
        await router.call(Op.DECIDE, 1, bytes(FRAME_BYTES_MAX + 1))
    largest = bytes(FRAME_BYTES_MAX - 64)
    assert (await router.call(Op.DECIDE, 1, largest))[1] == b"16||" + largest
    await router.close()
    await fake.stop()
