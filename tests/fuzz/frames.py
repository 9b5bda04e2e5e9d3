"""Feeds damaged byte streams to all that reads the hop's protocol: python -m tests.fuzz.frames

Decoder, both handshakes and a whole client connection get valid streams that were cut,
repeated, spliced and overwritten. Whatever comes, only FrameError and AuthError may come out,
memory stays bounded, and every request ends. A failure prints the seed that repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable

from cluster.errors import AuthError, FrameError
from cluster.frames import (
    HEADER,
    HEADER_BYTES,
    OPS,
    ClientHandshake,
    FrameDecoder,
    Op,
    ServerHandshake,
    encode_frame,
)
from serve.connection import Connection

SECRET = b"s" * 32
INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x91" * 64)
DECODER_BYTES_MAX = 4096

Outcome = str


class Wire(asyncio.Transport):
    """A transport that keeps what is written and never sends it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def damaged(rng: random.Random, stream: bytes) -> bytes:
    """The stream after 0 to 6 random edits."""
    data = bytearray(stream)
    for _ in range(rng.randrange(7)):
        at = rng.randrange(len(data) + 1)
        edit = rng.randrange(5)
        if edit == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif edit == 1:
            data[at:at] = rng.choice(INTERESTING)
        elif edit == 2:
            del data[at : at + rng.randrange(1, 40)]
        elif edit == 3:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 40))
    return bytes(data)


def pieces(rng: random.Random, stream: bytes) -> list[bytes]:
    """The stream, cut as a network might."""
    result, at = [], 0
    while at < len(stream):
        size = rng.choice((1, 2, HEADER_BYTES, 64, 4096))
        result.append(stream[at : at + size])
        at += size
    return result


def some_frames(rng: random.Random) -> bytes:
    ops = sorted(OPS)
    return b"".join(
        encode_frame(
            rng.randrange(8),
            rng.choice(ops),
            rng.randbytes(rng.choice((0, 1, 20, 300))),
            rng.randbytes(rng.choice((0, 9))),
            rng.choice((0, 200, 421, 65535)),
        )
        for _ in range(rng.randrange(6))
    )


def fuzz_decoder(rng: random.Random) -> Outcome:
    """What was decoded, encoded again, is what came; no more than one frame is ever kept."""
    stream = damaged(rng, some_frames(rng))
    decoder = FrameDecoder(DECODER_BYTES_MAX)
    seen = bytearray()
    try:
        for piece in pieces(rng, stream):
            for request, op, status, meta, body in decoder.feed(piece):
                seen += encode_frame(request, op, body, meta, status)
            kept = len(decoder._rest)
            assert kept <= DECODER_BYTES_MAX + HEADER_BYTES, f"{kept} bytes kept"
            assert len(stream) >= len(seen) + kept
    except FrameError:
        outcome = "refused"
    else:
        outcome = "accepted"
        assert len(stream) == len(seen) + len(decoder._rest)
    assert stream.startswith(seen)
    return outcome


def fuzz_server_handshake(rng: random.Random) -> Outcome:
    """A damaged hello is refused, unless the damage left it as it was."""
    server, client = ServerHandshake(), ClientHandshake("gateway", SECRET)
    hello = client.hello(server.challenge()[HEADER_BYTES:])[HEADER_BYTES:]
    body = damaged(rng, hello)
    try:
        server.welcome(server.read_hello(body), SECRET)
    except AuthError:
        assert body != hello, "a good hello was refused"
        return "refused"
    return "accepted"


def fuzz_client_handshake(rng: random.Random) -> Outcome:
    """A damaged challenge or welcome is refused, or was harmless."""
    server, client = ServerHandshake(), ClientHandshake("gateway", SECRET)
    try:
        hello = client.hello(damaged(rng, server.challenge()[HEADER_BYTES:]))
        welcome = server.welcome(server.read_hello(hello[HEADER_BYTES:]), SECRET)
        client.check_welcome(damaged(rng, welcome[HEADER_BYTES:]))
    except AuthError:
        return "refused"
    return "accepted"


def fuzz_connection(rng: random.Random) -> Outcome:
    """Every request ends with a reply or LOST, and the owner is given up at most once."""
    wire, lost = Wire(), list[Connection]()
    connection = Connection("gateway", SECRET, 64, 1.0, lost.append)
    connection.connection_made(wire)
    server = ServerHandshake()

    def receive(stream: bytes, chance: float) -> None:
        for piece in pieces(rng, damaged(rng, stream) if rng.random() < chance else stream):
            if not lost:
                connection.data_received(piece)

    receive(server.challenge(), 0.2)
    if wire.written:
        try:
            hello = server.read_hello(bytes(wire.written[HEADER_BYTES:]))
            receive(server.welcome(hello, SECRET), 0.2)
        except AuthError as error:
            receive(server.refusal(error), 0.2)
    if lost or not connection.ready.done():
        connection.abort("done")
        assert len(lost) == 1
        return "no handshake"
    futures = [connection.submit(Op.DECIDE, b"") for _ in range(8)]
    for future in futures:
        if rng.random() < 0.2:
            future.cancel()
    replies = b"".join(
        encode_frame(rng.randrange(10), Op.REPLY, b"x" * rng.randrange(30), status=200)
        for _ in range(rng.randrange(12))
    )
    receive(replies, 1.0)
    outcome = "lost" if lost else "kept"
    connection.abort("done")
    assert all(future.done() for future in futures), "a request was forgotten"
    assert len(lost) == 1
    return outcome


TARGETS: tuple[Callable[[random.Random], Outcome], ...] = (
    fuzz_decoder,
    fuzz_server_handshake,
    fuzz_client_handshake,
    fuzz_connection,
)


async def run(seconds: float, seed: int) -> Counter[str]:
    """Cases from `seed` on, each target in turn, until the time is over."""
    counts: Counter[str] = Counter()
    stop_s = time.monotonic() + seconds
    while time.monotonic() < stop_s:
        target = TARGETS[seed % len(TARGETS)]
        try:
            counts[f"{target.__name__}: {target(random.Random(seed))}"] += 1
        except BaseException:
            print(f"{target.__name__} failed at --seed {seed}")
            raise
        seed += 1
        if seed % 1024 == 0:
            await asyncio.sleep(0)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="first case; default: the clock")
    arguments = parser.parse_args()
    seed = time.time_ns() if arguments.seed is None else arguments.seed
    print(f"from seed {seed}; header {HEADER.format}, {len(OPS)} ops")
    counts = asyncio.run(run(arguments.seconds, seed))
    for name, cases in sorted(counts.items()):
        print(f"{cases:>10,}  {name}")


if __name__ == "__main__":
    main()
