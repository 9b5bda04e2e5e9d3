"""The hop's protocol as data: frames in, frames out, no I/O.

A frame is a 12-byte header, `meta` and `body`:

    length u32   bytes after the header: meta + body
    request u32  multiplexing id, chosen by the client; the reply carries the same
    op u8        what is asked (see Op)
    meta u8      bytes of meta
    status u16   0 in a request, an HTTP status in a reply

`meta` names the caller a gateway speaks for (role and tenant, "s:default"). Only a peer that
proved to hold the cluster secret may send it; for all others the key of the hello decides.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from enum import IntEnum
from hashlib import sha256
from struct import Struct

import msgspec

from cluster.errors import AuthError, FrameError

VERSION = 1
HEADER = Struct("<IIBBH")
HEADER_BYTES = HEADER.size
FRAME_BYTES_MAX = 4 << 20
"""A request is 1 MiB at most; an answer that names its rejected candidates may be longer."""
META_BYTES_MAX = 255
REQUEST_IDS = 1 << 32
# What a peer may send before it has proven anything.
HANDSHAKE_BYTES_MAX = 1024
REFUSAL_BYTES_MAX = 256
NONCE_BYTES = 32


class Op(IntEnum):
    """What a frame asks. Numbers are wire format: never reuse one."""

    REPLY = 0
    CHALLENGE = 1
    HELLO = 2
    WELCOME = 3
    DECIDE = 16
    TRACK = 17
    IDENTIFY = 18
    PAGE = 19
    PROFILE_GET = 32
    PROFILE_DELETE = 33
    DECISION_GET = 34
    ITEM_GET = 35
    BOOKS_GET = 36
    DECISION_FIND = 37
    STATS = 48
    SUBSCRIBE = 64
    ACKNOWLEDGE = 65
    CONSENTS_PUT = 67
    SUPPRESS = 68
    MESSAGE_GET = 69
    DEAD_LETTERS = 70
    REDRIVE = 71
    DISCARD = 72
    REWARD = 80
    ACTIVATE = 81
    OUTCOMES = 82
    # From an owner, unasked: meta is the subscription's token, body a CloudEvent.
    PUSH = 66
    # Between an owner and its backup.
    FOLLOW = 96
    REPLICATE = 97
    SNAPSHOT = 98


OPS = frozenset(int(op) for op in Op)
OP_OF_TYPE: Mapping[str, Op] = {
    "decide": Op.DECIDE,
    "track": Op.TRACK,
    "identify": Op.IDENTIFY,
    "page": Op.PAGE,
}
"""What a message asks, by its "type" in a batch or stream; over HTTP by the last of its path."""

# (request id, op, status, meta, body)
Frame = tuple[int, int, int, bytes, bytes]


def encode_frame(
    request: int,
    op: int,
    body: bytes,
    meta: bytes = b"",
    status: int = 0,
    bytes_max: int = FRAME_BYTES_MAX,
) -> bytes:
    """One frame as bytes.

    Raises FrameError if it is larger than `bytes_max`, or its meta than META_BYTES_MAX.
    """
    length = len(meta) + len(body)
    if length > bytes_max:
        raise FrameError(f"frame must be <= {bytes_max} bytes, got {length}")
    if len(meta) > META_BYTES_MAX:
        raise FrameError(f"meta must be <= {META_BYTES_MAX} bytes, got {len(meta)}")
    return b"%b%b%b" % (HEADER.pack(length, request, op, len(meta), status), meta, body)


class FrameDecoder:
    """Cuts a byte stream into frames. Feed it what arrives; it keeps the incomplete rest.

    bytes_max  largest meta + body; may be raised after the handshake

    >>> FrameDecoder().feed(encode_frame(7, Op.DECIDE, b"{}", b"s:t"))
    [(7, 16, 0, b's:t', b'{}')]
    """

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._rest = bytearray()
        self._missing = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Complete frames in order of arrival. O(bytes), however small the pieces are.

        Raises FrameError on an unknown op, an oversized length or meta longer than the frame;
        the stream can't be read any further then.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._missing:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        frames: list[Frame] = []
        at, size, missing = 0, len(data), HEADER_BYTES
        while size - at >= HEADER_BYTES:
            length, request, op, meta_bytes, status = HEADER.unpack_from(data, at)
            if length > self.bytes_max:
                raise FrameError(f"frame must be <= {self.bytes_max} bytes, got {length}")
            if op not in OPS:
                raise FrameError(f"unknown op {op}")
            if meta_bytes > length:
                raise FrameError(f"meta must be <= frame length {length}, got {meta_bytes}")
            body_at = at + HEADER_BYTES + meta_bytes
            stop = at + HEADER_BYTES + length
            if stop > size:
                missing = HEADER_BYTES + length
                break
            frames.append(
                (request, op, status, data[at + HEADER_BYTES : body_at], data[body_at:stop])
            )
            at = stop
        if at < size:
            self._rest += data[at:] if at else data
            self._missing = missing
        return frames


class Hello(msgspec.Struct, frozen=True):
    """A client's answer to the challenge. `principal` is "gateway" or a key's id."""

    version: int
    principal: str
    nonce: bytes
    proof: bytes


def proof(secret: bytes, side: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    """HMAC-SHA256 that shows possession of `secret` without sending it."""
    return hmac.new(secret, side + server_nonce + client_nonce, sha256).digest()


class ServerHandshake:
    """Server side: challenge -> hello -> welcome. Refuses by raising AuthError.

    secret_of(principal) returns the secret or None if the principal is unknown.
    """

    def __init__(self) -> None:
        self.nonce = secrets.token_bytes(NONCE_BYTES)

    def challenge(self) -> bytes:
        return encode_frame(0, Op.CHALLENGE, msgspec.msgpack.encode((VERSION, self.nonce)))

    def read_hello(self, body: bytes) -> Hello:
        """Decode a hello. Raises AuthError if it is malformed or of another version."""
        try:
            hello = msgspec.msgpack.decode(body, type=Hello)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise AuthError(f"hello is malformed: {error}") from None
        if hello.version != VERSION:
            raise AuthError(f"hello version must be {VERSION}, got {hello.version}")
        if len(hello.nonce) != NONCE_BYTES:
            raise AuthError(f"hello nonce must be {NONCE_BYTES} bytes, got {len(hello.nonce)}")
        return hello

    def welcome(self, hello: Hello, secret: bytes | None) -> bytes:
        """The welcome frame. Raises AuthError if the proof is wrong or the principal unknown."""
        # A fixed wrong secret keeps an unknown principal as slow as a wrong proof.
        wanted = proof(secret or bytes(32), b"client", self.nonce, hello.nonce)
        if not hmac.compare_digest(wanted, hello.proof) or secret is None:
            raise AuthError(f"hello of {hello.principal!r} is not proven")
        return encode_frame(0, Op.WELCOME, proof(secret, b"server", self.nonce, hello.nonce))

    def refusal(self, error: AuthError) -> bytes:
        """The frame that tells a client why it is refused; close the connection after it."""
        return encode_frame(0, Op.REPLY, str(error).encode()[:REFUSAL_BYTES_MAX], status=401)


class ClientHandshake:
    """Client side: answers a challenge, then checks that the server holds the secret too."""

    def __init__(self, principal: str, secret: bytes) -> None:
        self._principal = principal
        self._secret = secret
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._server_nonce = b""

    def hello(self, challenge_body: bytes) -> bytes:
        """The hello frame. Raises AuthError if the server speaks another version."""
        try:
            version, nonce = msgspec.msgpack.decode(challenge_body, type=tuple[int, bytes])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise AuthError(f"challenge is malformed: {error}") from None
        if version != VERSION:
            raise AuthError(f"server version must be {VERSION}, got {version}")
        self._server_nonce = nonce
        client_proof = proof(self._secret, b"client", nonce, self._nonce)
        hello = Hello(VERSION, self._principal, self._nonce, client_proof)
        return encode_frame(0, Op.HELLO, msgspec.msgpack.encode(hello))

    def check_welcome(self, body: bytes) -> None:
        """Raises AuthError if the server did not prove that it holds the secret."""
        wanted = proof(self._secret, b"server", self._server_nonce, self._nonce)
        if not hmac.compare_digest(wanted, body):
            raise AuthError("the server did not prove that it holds the cluster's secret")
