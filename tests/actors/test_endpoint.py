"""A shard's endpoint over a real socket: who gets in, and that answers keep to their requests."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from actors.endpoint import Endpoint
from actors.people import Caller
from actors.shard import Shard
from cluster.config import Config
from cluster.errors import AuthError, ConfigError
from cluster.frames import ClientHandshake, Frame, FrameDecoder, Op, encode_frame
from cluster.keys import HASH_SPACE, KeyRange

SECRET = b"s" * 32
SDK_KEY = b"k" * 32
Secrets = dict[str, tuple[bytes, Caller | None]]
# As the keys file now: empty means that it can't be read.
secrets_of_this_run: Secrets = {}


class Peer:
    """A bare client: sends bytes, reads frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = FrameDecoder()
        self.frames: list[Frame] = []

    async def frame(self) -> Frame:
        """The next frame. Raises ConnectionError when the shard has closed."""
        while not self.frames:
            data = await asyncio.wait_for(self.reader.read(1 << 16), 10)
            if not data:
                raise ConnectionError("closed")
            self.frames += self.decoder.feed(data)
        return self.frames.pop(0)

    async def greet(self, principal: str, secret: bytes) -> None:
        handshake = ClientHandshake(principal, secret)
        self.writer.write(handshake.hello((await self.frame())[4]))
        handshake.check_welcome((await self.frame())[4])

    def ask(self, request: int, op: Op, body: object, meta: bytes = b"s:default") -> None:
        self.writer.write(encode_frame(request, op, msgspec.json.encode(body), meta))


def with_endpoint(
    act: Callable[[Endpoint, Callable[[], Awaitable[Peer]]], Awaitable[None]],
) -> None:
    """Run `act` with a listening endpoint and a way to connect to it."""

    async def run() -> None:
        config = Config(profiles_max=2048, profile_bytes_max=1 << 22, items_max=64)
        shard = Shard("0", KeyRange(0, HASH_SPACE), config)
        secrets: Secrets = {"gateway": (SECRET, None), "sdk": (SDK_KEY, Caller("s", "shop"))}
        secrets_of_this_run.clear()
        secrets_of_this_run.update(secrets)

        def secret_of(principal: str) -> tuple[bytes, Caller | None] | None:
            if not secrets_of_this_run:
                raise ConfigError("keys file /secret/place: mode must be 0600")
            return secrets_of_this_run.get(principal)

        endpoint = Endpoint(shard, secret_of)
        address = await endpoint.start("127.0.0.1")

        async def connect() -> Peer:
            return Peer(*await asyncio.open_connection(*address))

        try:
            await act(endpoint, connect)
        finally:
            await endpoint.close()

    asyncio.run(run())


def test_answers_carry_the_id_of_their_request() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        peer = await connect()
        await peer.greet("gateway", SECRET)
        ids = random.Random(1).sample(range(1 << 32), 50)
        for number in ids:
            peer.ask(number, Op.IDENTIFY, {"userId": str(number), "traits": {"n": number}})
        assert [(await peer.frame())[0] for _ in ids] == ids
        for number in ids:
            peer.ask(number, Op.PROFILE_GET, {"userId": str(number)})
        for number in ids:
            request, op, status, _, body = await peer.frame()
            assert (request, op, status) == (number, Op.REPLY, 200)
            assert msgspec.json.decode(body)["traits"] == {"n": number}

    with_endpoint(act)


@pytest.mark.parametrize(
    ("principal", "secret"), [("gateway", b"x" * 32), ("gateway", SDK_KEY), ("stranger", SECRET)]
)
def test_without_the_secret_nobody_gets_in(principal: str, secret: bytes) -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        peer = await connect()
        with pytest.raises(AuthError):
            await peer.greet(principal, secret)
        with pytest.raises(ConnectionError):
            await peer.frame()
        assert not endpoint.connections

    with_endpoint(act)


def test_who_is_refused_is_told_why() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        peer = await connect()
        challenge = (await peer.frame())[4]
        peer.writer.write(ClientHandshake("stranger", SECRET).hello(challenge))
        _, op, status, _, body = await peer.frame()
        assert (op, status) == (Op.REPLY, 401)
        assert body == b"hello of 'stranger' is not proven"

    with_endpoint(act)


def test_a_request_before_the_hello_ends_the_connection() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        peer = await connect()
        await peer.frame()
        peer.ask(1, Op.TRACK, {"userId": "a", "event": "e"})
        request, _, status, _, _ = await peer.frame()
        assert (request, status) == (0, 401)
        with pytest.raises(ConnectionError):
            await peer.frame()
        assert len(endpoint.shard.store) == 0

    with_endpoint(act)


def test_a_server_without_the_secret_is_found_out() -> None:
    handshake = ClientHandshake("gateway", SECRET)
    with pytest.raises(AuthError, match="server"):
        handshake.check_welcome(b"y" * 32)


def test_an_sdk_speaks_for_the_tenant_of_its_key_whatever_it_claims() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        sdk, gateway = await connect(), await connect()
        await sdk.greet("sdk", SDK_KEY)
        await gateway.greet("gateway", SECRET)
        sdk.ask(1, Op.IDENTIFY, {"userId": "a", "traits": {"x": 1}}, meta=b"s:default")
        assert (await sdk.frame())[2] == 200
        statuses = []
        for request, tenant in enumerate((b"s:default", b"s:shop", b"nonsense", b"s:")):
            gateway.ask(request, Op.PROFILE_GET, {"userId": "a"}, meta=tenant)
            statuses.append((await gateway.frame())[2])
        assert statuses == [404, 200, 400, 400]

    with_endpoint(act)


def test_garbage_ends_only_its_own_connection() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        good, bad = await connect(), await connect()
        await good.greet("gateway", SECRET)
        await bad.greet("gateway", SECRET)
        bad.writer.write(b"\xff" * 64)
        with pytest.raises(ConnectionError):
            await bad.frame()
        good.ask(9, Op.STATS, {}, meta=b"")
        request, _, status, _, body = await good.frame()
        assert (request, status, msgspec.json.decode(body)["shardId"]) == (9, 200, "0")

    with_endpoint(act)


def test_a_frame_cut_at_any_byte_is_answered_once_it_is_whole() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        peer = await connect()
        await peer.greet("gateway", SECRET)
        body = msgspec.json.encode({"userId": "a", "event": "e"})
        frame = encode_frame(5, Op.TRACK, body, b"s:default")
        for cut in range(0, len(frame), 7):
            peer.writer.write(frame[:cut])
            await peer.writer.drain()
            await asyncio.sleep(0)
            peer.writer.write(frame[cut:])
            assert (await peer.frame())[2] == 200

    with_endpoint(act)


def test_a_revoked_key_ends_its_connections_and_no_other() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        sdk, gateway = await connect(), await connect()
        await sdk.greet("sdk", SDK_KEY)
        await gateway.greet("gateway", SECRET)
        endpoint.drop_revoked()
        assert len(endpoint.connections) == 2
        del secrets_of_this_run["sdk"]
        endpoint.drop_revoked()
        with pytest.raises(ConnectionError):
            await sdk.frame()
        gateway.ask(1, Op.STATS, {}, meta=b"")
        assert (await gateway.frame())[2] == 200

    with_endpoint(act)


def test_keys_that_cannot_be_read_let_nobody_in_and_nobody_know() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        known = await connect()
        await known.greet("sdk", SDK_KEY)
        secrets_of_this_run.clear()
        peer = await connect()
        peer.writer.write(ClientHandshake("sdk", SDK_KEY).hello((await peer.frame())[4]))
        with pytest.raises(ConnectionError):
            await peer.frame()
        endpoint.drop_revoked()
        known.ask(1, Op.STATS, {}, meta=b"")
        assert (await known.frame())[2] == 200

    with_endpoint(act)


def test_a_body_whose_answer_could_exceed_a_frame_is_refused_alone() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        peer = await connect()
        await peer.greet("gateway", SECRET)
        actions = [f"{n}".ljust(240, "x") for n in range(1000)]
        decisions = [{"surface": "product", "actions": actions}] * 16
        peer.ask(1, Op.DECIDE, {"userId": "a", "decisions": decisions})
        peer.ask(2, Op.TRACK, {"userId": "a", "event": "e"})
        assert [(await peer.frame())[2] for _ in range(2)] == [413, 200]

    with_endpoint(act)


def test_an_answer_larger_than_a_frame_is_a_problem_and_not_the_end_of_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        peer = await connect()
        await peer.greet("gateway", SECRET)
        monkeypatch.setattr("actors.endpoint.FRAME_BYTES_MAX", 100)
        peer.ask(1, Op.STATS, {})
        peer.ask(2, Op.TRACK, {"userId": "a", "event": "e"})
        answers = [await peer.frame() for _ in range(2)]
        assert [answer[2] for answer in answers] == [422, 200]

    with_endpoint(act)


def test_a_standing_queue_gets_429_at_once_and_counters_are_told_all_the_same() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        peer = await connect()
        await peer.greet("gateway", SECRET)
        body = {"userId": "a", "event": "Searched"}
        peer.ask(0, Op.TRACK, body)
        await peer.frame()
        shard = endpoint.shard
        handle = shard.handle

        def slow(op: int, caller: Caller, content: bytes, arrived_ns: int) -> tuple[int, bytes]:
            time.sleep(0.002)
            return handle(op, caller, content, arrived_ns)

        shard.handle = slow  # type: ignore[assignment, method-assign]
        count = 400
        for number in range(1, count):
            peer.ask(number, Op.TRACK, body)
        peer.ask(count, Op.STATS, {})
        frames = [await peer.frame() for _ in range(count)]
        statuses = {frame[0]: frame[2] for frame in frames}
        refused = [number for number, status in statuses.items() if status == 429]
        assert set(statuses) == set(range(1, count + 1))
        assert 100 < len(refused) < count
        assert statuses[count] == 200
        assert {statuses[number] for number in range(1, 26)} == {200}
        assert shard.store.events_total == 1 + count - 1 - len(refused)
        assert shard.stats()["shed"] == len(refused)
        problem = next(frame[4] for frame in frames if frame[2] == 429)
        assert msgspec.json.decode(problem)["status"] == 429
        # The queue is gone, and with it the reason to refuse.
        peer.ask(count + 1, Op.TRACK, body)
        assert (await peer.frame())[2] == 200

    with_endpoint(act)


def test_a_disk_that_does_not_keep_up_bounds_what_is_taken() -> None:
    async def act(endpoint: Endpoint, connect: Callable[[], Awaitable[Peer]]) -> None:
        class Behind:
            behind = has_room = True

            def append(self, record: bytes) -> None:
                pytest.fail("nothing more is taken")

            def after_all(self, act: Callable[[], None], level: str, refuse: None) -> None:
                act()

        endpoint.shard.journal = Behind()  # type: ignore[assignment]
        peer = await connect()
        await peer.greet("gateway", SECRET)
        peer.ask(1, Op.TRACK, {"userId": "a", "event": "Searched"})
        assert (await peer.frame())[2] == 429

    with_endpoint(act)
