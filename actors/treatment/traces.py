"""What one choice rested on, in a few bytes: what learning and evaluation need later."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.treatment import belief
from actors.treatment.features import Features

ANY: NDArray[np.bool_] = np.zeros((0, 0), np.bool_)
"""No slot excludes an arm of its own."""
NO_ROWS: NDArray[np.int32] = np.zeros(0, np.int32)
NO_ODDS: NDArray[np.float64] = np.zeros(0)


class Trace(msgspec.Struct, array_like=True, frozen=True):
    """A trace as it is kept, arrays as little-endian bytes. New fields go to the end, with a
    default: yesterday's traces are shorter.

    hashes uint32 and values float32: the context
    of m candidates, of which the first `free` could be drawn and the others were pinned:
    arms uint32 [m], worth float32 [m]; starts int32 [m + 1], features uint32 and feature_values
    float32: what they are like; memory float32 [m, MEMORY], or b"" of who has none
    of k slots: shown int32 [k], which candidate; chances float32 [k]; propensities float64 [k]
    where the baseline acted: shadow int32 [k], candidates that the policy would have shown; alike
    float64 [k], P(the policy shows what the baseline did | it did so in the slots before)
    allowed  bits [k, free], which candidates a slot may take, b"" = each may take all
    named    int32 [<= k], candidates that slots name as their baseline, -1 = none
    names    of the features of the context, a line each; "" = not known
    """

    hashes: bytes
    values: bytes
    free: int
    arms: bytes
    worth: bytes
    starts: bytes
    features: bytes
    feature_values: bytes
    memory: bytes
    shown: bytes
    chances: bytes
    propensities: bytes
    shadow: bytes = b""
    alike: bytes = b""
    allowed: bytes = b""
    names: str = ""
    named: bytes = b""


class Traced(NamedTuple):
    """A trace as arrays. allowed bool [k, free]; [0, 0]: each slot may take all."""

    context: Features
    free: int
    arms: NDArray[np.uint32]
    worth: NDArray[np.float32]
    starts: NDArray[np.int32]
    features: Features
    memory: NDArray[np.float32]
    shown: NDArray[np.int32]
    chances: NDArray[np.float32]
    propensities: NDArray[np.float64]
    shadow: NDArray[np.int32] = NO_ROWS
    alike: NDArray[np.float64] = NO_ODDS
    allowed: NDArray[np.bool_] = ANY
    named: NDArray[np.int32] = NO_ROWS


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Trace).decode


@njit(cache=True)
def candidates(hashes: Any, worth: Any, starts: Any, fh: Any, fx: Any, rows: Any) -> Any:
    """What candidates are like, one after the other: uint32 [m] hashes; then, by their bits, worth
    [m], starts [m + 1], features [n] and their values [n].
    """
    m, n = len(rows), 0
    for row in rows:
        n += starts[row + 1] - starts[row]
    out = np.empty(3 * m + 1 + 2 * n, np.uint32)
    floats = out.view(np.float32)
    at = 3 * m + 1
    out[2 * m] = 0
    for i in range(m):
        row = rows[i]
        out[i] = hashes[row]
        floats[m + i] = worth[row]
        for j in range(starts[row], starts[row + 1]):
            out[at] = fh[j]
            floats[at + n] = fx[j]
            at += 1
        out[2 * m + i + 1] = at - 3 * m - 1
    return out


def trace_of(
    context: Features,
    like: NDArray[np.uint32],
    own: NDArray[np.float32] | None,
    rows: NDArray[np.int32],
    free: int,
    shown: NDArray[np.int32],
    chances: NDArray[np.float32],
    propensities: NDArray[np.float64],
    allowed: NDArray[np.bool_] = ANY,
    shadow: NDArray[np.int32] = NO_ROWS,
    alike: NDArray[np.float64] = NO_ODDS,
    named: NDArray[np.int32] = NO_ROWS,
) -> bytes:
    """The trace of a choice among the arms in `rows`.

    like  what `candidates` makes of them
    own   what is remembered of the person, by arm; None: nothing is
    """
    packed, m = like.tobytes(), len(rows)
    a, b = 4 * m, 8 * m
    c = 12 * m + 4
    d = (len(packed) + c) // 2
    return _encode(
        Trace(
            context.hashes.tobytes(),
            context.values.tobytes(),
            free,
            packed[:a],
            packed[a:b],
            packed[b:c],
            packed[c:d],
            packed[d:],
            b"" if own is None else own[rows].tobytes(),
            shown.tobytes(),
            chances.tobytes(),
            propensities.tobytes(),
            shadow.tobytes() if len(shadow) else b"",
            alike.tobytes() if len(alike) else b"",
            np.packbits(allowed).tobytes() if len(allowed) else b"",
            context.names,
            named.tobytes() if len(named) else b"",
        )
    )


def traced(trace: bytes) -> Traced:
    """The arrays of a trace. Raises msgspec.DecodeError if it is none."""
    raw = _decode(trace)
    arms = np.frombuffer(raw.arms, np.uint32)
    if raw.memory:
        own = np.frombuffer(raw.memory, np.float32).reshape(len(arms), belief.MEMORY)
    else:
        own = np.zeros((len(arms), belief.MEMORY), np.float32)
    shown, allowed = np.frombuffer(raw.shown, np.int32), ANY
    if raw.allowed:
        bits = np.unpackbits(np.frombuffer(raw.allowed, np.uint8), count=len(shown) * raw.free)
        allowed = bits.reshape(len(shown), raw.free).astype(np.bool_)
    return Traced(
        Features(
            np.frombuffer(raw.hashes, np.uint32), np.frombuffer(raw.values, np.float32), raw.names
        ),
        raw.free,
        arms,
        np.frombuffer(raw.worth, np.float32),
        np.frombuffer(raw.starts, np.int32),
        Features(
            np.frombuffer(raw.features, np.uint32), np.frombuffer(raw.feature_values, np.float32)
        ),
        own,
        shown,
        np.frombuffer(raw.chances, np.float32),
        np.frombuffer(raw.propensities, np.float64),
        np.frombuffer(raw.shadow, np.int32),
        np.frombuffer(raw.alike, np.float64),
        allowed,
        np.frombuffer(raw.named, np.int32),
    )
