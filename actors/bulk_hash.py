"""Key hashes of a whole column: BLAKE2b-128 (RFC 7693), bit-equal to `cluster.keys.key_hash`.

Short keys, which fill one block, are laid out word by word, one key per lane, so that the
compiler turns the rounds into vector instructions: about 40 ns per key where hashlib called
per key takes 1 us. Longer keys go block by block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cluster.keys import ID_BYTES_MAX

U = np.uint64
BLOCK_BYTES = 128
BLOCK_WORDS = 16
LANES = 256  # keys per round trip: 16 words of each are 32 KiB, which fit the L1 cache

# What is wrong with an id; its hash is meaningless then.
OK, EMPTY, TOO_LONG, HOLDS_NUL = 0, 1, 2, 3

_IV = tuple(
    U(word)
    for word in (
        0x6A09E667F3BCC908,
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
        0xA54FF53A5F1D36F1,
        0x510E527FADE682D1,
        0x9B05688C2B3E6C1F,
        0x1F83D9ABFB41BD6B,
        0x5BE0CD19137E2179,
    )
)
# Parameter block: digest of 16 bytes, no key, fanout and depth 1.
_H0 = U(int(_IV[0]) ^ 0x01010010)
_FULL = U(0xFFFFFFFFFFFFFFFF)
_ZERO = U(0)


def hash_ids(
    prefix: bytes, offsets: NDArray[Any], data: NDArray[np.uint8]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint8]]:
    """Key hashes of the ids `data[offsets[i]:offsets[i + 1]]`, each behind the same `prefix`.

    offsets  int32 or int64 [n + 1]; data uint8; the buffers of an Arrow string column
    prefix   tenant, NUL, id type, NUL: `cluster.keys.key_bytes` without the id
    Returns  hi uint64 [n] (equals `place`), lo uint64 [n], both big-endian halves of the hash,
             and faults uint8 [n]: OK, EMPTY, TOO_LONG or HOLDS_NUL. Pure.
    """
    count = len(offsets) - 1
    hi = np.empty(count, np.uint64)
    lo = np.empty(count, np.uint64)
    faults = np.zeros(count, np.uint8)
    _hash_ids(np.frombuffer(prefix, np.uint8), offsets, data, hi, lo, faults)
    return hi, lo, faults


@njit(forceinline=True)
def _mix(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any) -> Any:
    """The function G of RFC 7693."""
    a = a + b + x
    d ^= a
    d = (d >> U(32)) | (d << U(32))
    c = c + d
    b ^= c
    b = (b >> U(24)) | (b << U(40))
    a = a + b + y
    d ^= a
    d = (d >> U(16)) | (d << U(48))
    c = c + d
    b ^= c
    b = (b >> U(63)) | (b << U(1))
    return a, b, c, d


@njit(forceinline=True)
def _round(v: Any, m: Any) -> Any:
    """One round over the 16 words of state `v`, the message `m` already in this round's order."""
    a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3 = v
    a0, b0, c0, d0 = _mix(a0, b0, c0, d0, m[0], m[1])
    a1, b1, c1, d1 = _mix(a1, b1, c1, d1, m[2], m[3])
    a2, b2, c2, d2 = _mix(a2, b2, c2, d2, m[4], m[5])
    a3, b3, c3, d3 = _mix(a3, b3, c3, d3, m[6], m[7])
    a0, b1, c2, d3 = _mix(a0, b1, c2, d3, m[8], m[9])
    a1, b2, c3, d0 = _mix(a1, b2, c3, d0, m[10], m[11])
    a2, b3, c0, d1 = _mix(a2, b3, c0, d1, m[12], m[13])
    a3, b0, c1, d2 = _mix(a3, b0, c1, d2, m[14], m[15])
    return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3


@njit(forceinline=True)
def _rounds(v: Any, m: Any) -> Any:
    """The twelve rounds. Each line is a row of RFC 7693's SIGMA, with hexadecimal word names."""
    m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, ma, mb, mc, md, me, mf = m
    v = _round(v, (m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, ma, mb, mc, md, me, mf))
    v = _round(v, (me, ma, m4, m8, m9, mf, md, m6, m1, mc, m0, m2, mb, m7, m5, m3))
    v = _round(v, (mb, m8, mc, m0, m5, m2, mf, md, ma, me, m3, m6, m7, m1, m9, m4))
    v = _round(v, (m7, m9, m3, m1, md, mc, mb, me, m2, m6, m5, ma, m4, m0, mf, m8))
    v = _round(v, (m9, m0, m5, m7, m2, m4, ma, mf, me, m1, mb, mc, m6, m8, m3, md))
    v = _round(v, (m2, mc, m6, ma, m0, mb, m8, m3, m4, md, m7, m5, mf, me, m1, m9))
    v = _round(v, (mc, m5, m1, mf, me, md, m4, ma, m0, m7, m6, m3, m9, m2, m8, mb))
    v = _round(v, (md, mb, m7, me, mc, m1, m3, m9, m5, m0, mf, m4, m8, m6, m2, ma))
    v = _round(v, (m6, mf, me, m9, mb, m3, m0, m8, mc, m2, md, m7, m1, m4, ma, m5))
    v = _round(v, (ma, m2, m8, m4, m7, m6, m1, m5, mf, mb, m9, me, m3, mc, md, m0))
    v = _round(v, (m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, ma, mb, mc, md, me, mf))
    return _round(v, (me, ma, m4, m8, m9, mf, md, m6, m1, mc, m0, m2, mb, m7, m5, m3))


@njit(forceinline=True)
def _big_endian(word: Any) -> Any:
    word = ((word & U(0x00FF00FF00FF00FF)) << U(8)) | ((word >> U(8)) & U(0x00FF00FF00FF00FF))
    word = ((word & U(0x0000FFFF0000FFFF)) << U(16)) | ((word >> U(16)) & U(0x0000FFFF0000FFFF))
    return (word << U(32)) | (word >> U(32))


@njit(forceinline=True)
def _words(m: Any) -> Any:
    """The 16 words of a block as a tuple, which the compiler keeps in registers."""
    low = (m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7])
    return (*low, m[8], m[9], m[10], m[11], m[12], m[13], m[14], m[15])


@njit(forceinline=True)
def _only_block(total: Any) -> Any:
    """State before the rounds of a block that is the whole message, `total` bytes."""
    h0, h1, h2, h3, h4, h5, h6, h7 = _IV
    return _H0, h1, h2, h3, h4, h5, h6, h7, h0, h1, h2, h3, h4 ^ total, h5, ~h6, h7


@njit(cache=True, nogil=True, error_model="numpy")
def _hash_ids(prefix: Any, offsets: Any, data: Any, hi: Any, lo: Any, faults: Any) -> None:
    lanes = np.zeros((BLOCK_WORDS, LANES), np.uint64)
    sizes = np.zeros(LANES, np.uint64)
    block = np.zeros(BLOCK_WORDS, np.uint64)
    head, tail = _split_prefix(prefix, lanes)
    for start in range(0, len(hi), LANES):
        count = min(LANES, len(hi) - start)
        words = head
        for lane in range(count):
            i = start + lane
            begin, stop = np.int64(offsets[i]), np.int64(offsets[i + 1])
            if stop == begin:
                faults[i] = EMPTY
            elif stop - begin > ID_BYTES_MAX:
                faults[i] = TOO_LONG
            elif len(prefix) + stop - begin <= BLOCK_BYTES:
                sizes[lane] = U(len(prefix) + stop - begin)
                end, nul = _fill_lane(lanes, lane, head, tail, len(prefix) % 8, data, begin, stop)
                words = max(words, end)
                if nul:
                    faults[i] = HOLDS_NUL
        for lane in range(count):
            v = _rounds(_only_block(sizes[lane]), _words(lanes[:, lane]))
            hi[start + lane] = _big_endian(_H0 ^ v[0] ^ v[8])
            lo[start + lane] = _big_endian(_IV[1] ^ v[1] ^ v[9])
        lanes[head:words, :] = _ZERO
        for i in range(start, start + count):
            begin, stop = np.int64(offsets[i]), np.int64(offsets[i + 1])
            if faults[i] == OK and len(prefix) + stop - begin > BLOCK_BYTES:
                hi[i], lo[i], faults[i] = _hash_long(block, prefix, data, begin, stop)


@njit(error_model="numpy")
def _split_prefix(prefix: Any, lanes: Any) -> Any:
    """Write the prefix's whole words into every lane; returns their number and the rest."""
    head, tail = len(prefix) // 8, _ZERO
    for at in range(len(prefix)):
        tail |= U(prefix[at]) << U(8 * (at % 8))
        if at % 8 == 7:
            if at < BLOCK_BYTES:
                lanes[at // 8, :] = tail
            tail = _ZERO
    return head, tail


@njit(forceinline=True, error_model="numpy")
def _fill_lane(
    lanes: Any, lane: int, at: int, word: Any, used: int, data: Any, begin: Any, stop: Any
) -> Any:
    """Write an id behind the prefix; returns the words now in use and whether it holds a NUL."""
    nul = False
    shift = U(8 * used)
    for position in range(begin, stop):
        byte = data[position]
        nul |= byte == 0
        word |= U(byte) << shift
        shift += U(8)
        if shift == U(64):
            lanes[at, lane] = word
            at += 1
            word, shift = _ZERO, _ZERO
    if shift != _ZERO:
        lanes[at, lane] = word
        at += 1
    return at, nul


@njit(error_model="numpy")
def _hash_long(block: Any, prefix: Any, data: Any, begin: Any, stop: Any) -> Any:
    """hi, lo and fault of one key of any length, block by block."""
    h = (_H0, _IV[1], _IV[2], _IV[3], _IV[4], _IV[5], _IV[6], _IV[7])
    total = len(prefix) + stop - begin
    fault = OK
    done = 0
    while done < total:
        block[:] = _ZERO
        size = min(BLOCK_BYTES, total - done)
        for at in range(size):
            source = done + at - len(prefix)
            byte = prefix[done + at] if source < 0 else data[begin + source]
            if source >= 0 and byte == 0:
                fault = HOLDS_NUL
            block[at // 8] |= U(byte) << U(8 * (at % 8))
        done += size
        last = _FULL if done == total else _ZERO
        _, i1, i2, i3, i4, i5, i6, i7 = _IV
        ends = (_IV[0], i1, i2, i3, i4 ^ U(done), i5, i6 ^ last, i7)
        v = _rounds(h + ends, _words(block))
        h = (
            h[0] ^ v[0] ^ v[8],
            h[1] ^ v[1] ^ v[9],
            h[2] ^ v[2] ^ v[10],
            h[3] ^ v[3] ^ v[11],
            h[4] ^ v[4] ^ v[12],
            h[5] ^ v[5] ^ v[13],
            h[6] ^ v[6] ^ v[14],
            h[7] ^ v[7] ^ v[15],
        )
    return _big_endian(h[0]), _big_endian(h[1]), fault
