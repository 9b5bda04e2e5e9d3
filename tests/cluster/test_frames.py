"""The hop's protocol as data. tests/fuzz/frames.py goes on where Hypothesis stops."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.errors import AuthError, FrameError
from cluster.frames import (
    FRAME_BYTES_MAX,
    HANDSHAKE_BYTES_MAX,
    HEADER,
    HEADER_BYTES,
    META_BYTES_MAX,
    NONCE_BYTES,
    OPS,
    REQUEST_IDS,
    VERSION,
    ClientHandshake,
    Frame,
    FrameDecoder,
    Hello,
    Op,
    ServerHandshake,
    encode_frame,
    proof,
)

SECRET = b"s" * 32

frames = st.tuples(
    st.integers(0, REQUEST_IDS - 1),
    st.sampled_from(sorted(OPS)),
    st.integers(0, 65535),
    st.binary(max_size=META_BYTES_MAX),
    st.binary(max_size=300),
)


def encoded(frame: Frame) -> bytes:
    request, op, status, meta, body = frame
    return encode_frame(request, op, body, meta, status)


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream in pieces of these sizes, over and over."""
    pieces: list[bytes] = []
    at = 0
    while at < len(stream):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(stream[at : at + size])
        at += size
    return pieces


def body_of(frame: bytes, op: Op) -> bytes:
    """The body of the one frame that these bytes are."""
    ((_, seen, _, _, body),) = FrameDecoder().feed(frame)
    assert seen == op
    return body


def greeting(server: ServerHandshake, client: ClientHandshake) -> Hello:
    """What the server reads when the client has answered its challenge."""
    hello = client.hello(body_of(server.challenge(), Op.CHALLENGE))
    return server.read_hello(body_of(hello, Op.HELLO))


def test_the_layout_on_the_wire_never_changes() -> None:
    assert encode_frame(0x01020304, Op.DECIDE, b"{}", b"s:t", 200) == bytes.fromhex(
        "05000000 04030201 10 03 c800 733a74 7b7d"
    )


def test_numbers_of_ops_never_change() -> None:
    assert {op.name: int(op) for op in Op} == {
        "REPLY": 0,
        "CHALLENGE": 1,
        "HELLO": 2,
        "WELCOME": 3,
        "DECIDE": 16,
        "TRACK": 17,
        "IDENTIFY": 18,
        "PAGE": 19,
        "PROFILE_GET": 32,
        "PROFILE_DELETE": 33,
        "DECISION_GET": 34,
        "ITEM_GET": 35,
        "BOOKS_GET": 36,
        "DECISION_FIND": 37,
        "STATS": 48,
        "SUBSCRIBE": 64,
        "ACKNOWLEDGE": 65,
        "PUSH": 66,
        "REWARD": 80,
        "ACTIVATE": 81,
        "OUTCOMES": 82,
        "CONSENTS_PUT": 67,
        "SUPPRESS": 68,
        "MESSAGE_GET": 69,
        "DEAD_LETTERS": 70,
        "REDRIVE": 71,
        "DISCARD": 72,
        "FOLLOW": 96,
        "REPLICATE": 97,
        "SNAPSHOT": 98,
    }


@given(st.lists(frames, max_size=20), st.lists(st.integers(1, 200), min_size=1, max_size=9))
@example([(0, 16, 0, b"", b"")] * 3, [1])
@example([(0, 16, 0, b"", b"x" * 300)], [HEADER_BYTES, 299, 1])
def test_frames_arrive_whole_and_in_order_however_the_stream_is_cut(
    sent: list[Frame], sizes: list[int]
) -> None:
    decoder = FrameDecoder()
    pieces = cut(b"".join(map(encoded, sent)), sizes)
    assert [frame for piece in pieces for frame in decoder.feed(piece)] == sent
    assert decoder.feed(b"") == []


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_any_bytes_are_frames_or_a_frame_error(stream: bytes, sizes: list[int]) -> None:
    decoder = FrameDecoder()
    seen: list[Frame] = []
    try:
        for piece in cut(stream, sizes):
            seen += decoder.feed(piece)
    except FrameError:
        pass
    assert stream.startswith(b"".join(map(encoded, seen)))


@given(st.lists(frames, min_size=1, max_size=5), st.data())
def test_a_damaged_stream_gives_frames_or_a_frame_error(
    sent: list[Frame], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(map(encoded, sent)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at] = data.draw(st.integers(0, 255))
    try:
        seen = FrameDecoder().feed(bytes(stream))
    except FrameError:
        return
    assert bytes(stream).startswith(b"".join(map(encoded, seen)))


def test_the_largest_frame_passes_and_a_larger_one_does_not() -> None:
    largest = encode_frame(1, Op.DECIDE, bytes(FRAME_BYTES_MAX - 3), b"s:t")
    ((_, _, _, meta, body),) = FrameDecoder().feed(largest)
    assert len(meta) + len(body) == FRAME_BYTES_MAX
    with pytest.raises(FrameError, match=f"<= {FRAME_BYTES_MAX} bytes, got {FRAME_BYTES_MAX + 1}"):
        encode_frame(1, Op.DECIDE, bytes(FRAME_BYTES_MAX - 2), b"s:t")
    with pytest.raises(FrameError, match="meta must be <= 255 bytes, got 256"):
        encode_frame(1, Op.DECIDE, b"", bytes(256))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((FRAME_BYTES_MAX + 1, 0, 16, 0, 0), "must be <="),
        ((0xFFFFFFFF, 0, 16, 0, 0), "got 4294967295"),
        ((0, 0, 99, 0, 0), "unknown op 99"),
        ((4, 0, 16, 5, 0), "meta must be <= frame length 4, got 5"),
    ],
)
def test_a_bad_header_is_refused_before_its_body_arrives(
    header: tuple[int, ...], message: str
) -> None:
    with pytest.raises(FrameError, match=message):
        FrameDecoder().feed(HEADER.pack(*header))


def test_a_decoder_for_a_stranger_keeps_little() -> None:
    decoder = FrameDecoder(HANDSHAKE_BYTES_MAX)
    with pytest.raises(FrameError, match="<= 1024 bytes, got 1025"):
        decoder.feed(encode_frame(0, Op.HELLO, bytes(1025)))
    decoder = FrameDecoder(HANDSHAKE_BYTES_MAX)
    decoder.bytes_max = FRAME_BYTES_MAX
    assert len(decoder.feed(encode_frame(0, Op.HELLO, bytes(1025)))) == 1


def test_a_handshake_fits_the_bound_for_strangers() -> None:
    server, client = ServerHandshake(), ClientHandshake("x" * 64, SECRET)
    challenge = server.challenge()
    hello = client.hello(body_of(challenge, Op.CHALLENGE))
    refusal = server.refusal(AuthError("x" * 5000))
    for frame in (challenge, hello, refusal):
        assert len(frame) - HEADER_BYTES <= HANDSHAKE_BYTES_MAX


def test_both_sides_prove_the_same_secret() -> None:
    server, client = ServerHandshake(), ClientHandshake("gateway", SECRET)
    hello = greeting(server, client)
    assert hello.principal == "gateway"
    welcome = body_of(server.welcome(hello, SECRET), Op.WELCOME)
    client.check_welcome(welcome)
    assert SECRET not in welcome + msgspec.msgpack.encode(hello)


@pytest.mark.parametrize("secret", [b"t" * 32, None, b"", bytes(32)])
def test_a_client_without_the_secret_is_refused(secret: bytes | None) -> None:
    server, client = ServerHandshake(), ClientHandshake("gateway", SECRET)
    hello = greeting(server, client)
    with pytest.raises(AuthError, match="'gateway' is not proven"):
        server.welcome(hello, secret)


def test_an_unknown_principal_can_not_prove_the_stand_in_secret() -> None:
    server, client = ServerHandshake(), ClientHandshake("nobody", bytes(32))
    hello = greeting(server, client)
    with pytest.raises(AuthError, match="is not proven"):
        server.welcome(hello, None)


def test_a_hello_that_was_overheard_proves_nothing_to_another_challenge() -> None:
    first, second = ServerHandshake(), ServerHandshake()
    client = ClientHandshake("gateway", SECRET)
    overheard = greeting(first, client)
    with pytest.raises(AuthError):
        second.welcome(overheard, SECRET)


def test_a_client_proof_can_not_be_sent_back_as_a_welcome() -> None:
    server, client = ServerHandshake(), ClientHandshake("gateway", SECRET)
    hello = greeting(server, client)
    for wrong in (
        hello.proof,
        b"",
        bytes(32),
        proof(b"t" * 32, b"server", server.nonce, hello.nonce),
    ):
        with pytest.raises(AuthError, match="did not prove"):
            client.check_welcome(wrong)


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        (Hello(VERSION + 1, "gateway", bytes(NONCE_BYTES), b""), "version must be 1, got 2"),
        (Hello(VERSION, "gateway", bytes(NONCE_BYTES - 1), b""), "nonce must be 32 bytes, got 31"),
    ],
)
def test_a_hello_of_another_shape_is_refused(hello: Hello, message: str) -> None:
    with pytest.raises(AuthError, match=message):
        ServerHandshake().read_hello(msgspec.msgpack.encode(hello))


def test_a_challenge_of_another_version_is_refused() -> None:
    challenge = msgspec.msgpack.encode((VERSION + 1, bytes(NONCE_BYTES)))
    with pytest.raises(AuthError, match="server version must be 1, got 2"):
        ClientHandshake("gateway", SECRET).hello(challenge)


@given(st.binary(max_size=200))
@example(b"\x81\xa1x" + b"\x91" * 500_000 + b"\xc0")
@example(b"\x91" * 500_000)
def test_no_bytes_from_a_stranger_raise_anything_but_an_auth_error(body: bytes) -> None:
    with pytest.raises(AuthError):
        ServerHandshake().read_hello(body)
    with pytest.raises(AuthError):
        ClientHandshake("gateway", SECRET).hello(body)
    with pytest.raises(AuthError):
        ClientHandshake("gateway", SECRET).check_welcome(body)
