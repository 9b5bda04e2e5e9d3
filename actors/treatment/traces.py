"""What one choice rested on, in a few bytes: what learning and evaluation need later."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.treatment import belief
from actors.treatment.features import NO_FEATURES, Arms, Features

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


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Trace).decode


def trace_of(
    context: Features,
    arms: Arms,
    own: NDArray[np.float32],
    candidates: NDArray[np.int32] | None,
    free: int,
    shown: NDArray[np.int32],
    chances: NDArray[np.float32],
    propensities: NDArray[np.float64],
    shadow: NDArray[np.int32] = NO_ROWS,
    alike: NDArray[np.float64] = NO_ODDS,
    allowed: NDArray[np.bool_] = ANY,
) -> bytes:
    """The trace of a choice; candidates None: all arms, in their order."""
    if candidates is None:
        hashes, worth = arms.hashes, arms.values
        features, starts = arms.features, arms.starts
    else:
        hashes, worth, own = arms.hashes[candidates], arms.values[candidates], own[candidates]
        features, starts = _features(arms, candidates)
    return _encode(
        Trace(
            context.hashes.tobytes(),
            context.values.tobytes(),
            free,
            hashes.tobytes(),
            worth.tobytes(),
            starts.tobytes(),
            features.hashes.tobytes(),
            features.values.tobytes(),
            own.tobytes() if own.any() else b"",
            shown.tobytes(),
            chances.tobytes(),
            propensities.tobytes(),
            shadow.tobytes(),
            alike.tobytes(),
            np.packbits(allowed).tobytes() if len(allowed) else b"",
        )
    )


def _features(arms: Arms, candidates: NDArray[np.int32]) -> tuple[Features, NDArray[np.int32]]:
    """The features of candidates, one after the other, and where each one's begin."""
    starts = arms.starts
    if not (starts[-1] and len(candidates)):
        return NO_FEATURES, np.zeros(len(candidates) + 1, np.int32)
    first = starts[candidates]
    lengths = starts[candidates + 1] - first
    ends = lengths.cumsum()
    places = np.arange(ends[-1]) + (first - (ends - lengths)).repeat(lengths)
    found = Features(arms.features.hashes[places], arms.features.values[places])
    begins = np.zeros(len(candidates) + 1, np.int32)
    begins[1:] = ends
    return found, begins


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
        Features(np.frombuffer(raw.hashes, np.uint32), np.frombuffer(raw.values, np.float32)),
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
    )
