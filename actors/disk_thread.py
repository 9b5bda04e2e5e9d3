"""What the thread under a log does: writes and syncs what it is asked to, without the interpreter.

Compiled, and for all its life outside the interpreter's lock: neither does it wait for the loop's
turn to end before it writes, nor does the loop stumble over it. A request and its result stand in
memory that both see, one at a time; two descriptors of `eventfd` tell that they do, so that the
loop learns of a result as of any other readiness.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numba import njit, types

DESCRIPTOR, ADDRESS, BYTES, OFFSET, ERROR, SYNC_NS = range(6)
"""Places in the memory, int64. ERROR and SYNC_NS, which is in nanoseconds, are the result."""
ASK, ROUSE = 1, 1 << 32
"""What is added to the `eventfd` of the one who is asked: there is a request; there will be one at
once."""
CONTROL, CLOSE = -1, -2
"""In place of a descriptor: the caller itself is asked for something."""
IDLE, ASKED, FAILED = range(3)
"""Why `serve` returns: nobody asks; the caller is asked; no more may be written."""

_ROUSED_NS = 200_000
_EINTR = 4
_POLLIN = 1
_CLOCK_MONOTONIC = 1

_i32, _i64, _size, _place = types.int32, types.int64, types.uint64, types.uintp


def _of_libc(name: str, result: Any, *arguments: Any) -> Any:
    return types.ExternalFunction(name, result(*arguments))


_read = _of_libc("read", _i64, _i32, _place, _size)
_write = _of_libc("write", _i64, _i32, _place, _size)
_pwrite = _of_libc("pwrite", _i64, _i32, _place, _size, _i64)
_fdatasync = _of_libc("fdatasync", _i32, _i32)
_poll = _of_libc("poll", _i32, _place, _size, _i32)
_sched_yield = _of_libc("sched_yield", _i32)
_clock_gettime = _of_libc("clock_gettime", _i32, _i32, _place)
_errno_location = _of_libc("__errno_location", types.CPointer(_i32))  # type: ignore[no-untyped-call]


@njit(cache=True, nogil=True)
def _now_ns(place: Any) -> Any:
    _clock_gettime(_CLOCK_MONOTONIC, place.ctypes.data)
    return place[0] * 1_000_000_000 + place[1]


@njit(cache=True, nogil=True)
def _write_all(descriptor: Any, address: Any, size: Any, offset: Any) -> Any:
    """0, or the errno with which it failed."""
    while size > 0:
        written = _pwrite(descriptor, address, size, offset)
        if written < 0:
            error = _errno_location()[0]
            if error != _EINTR:
                return error
        else:
            address, size, offset = address + written, size - written, offset + written
    return 0


@njit(cache=True, nogil=True)
def _sync(descriptor: Any) -> Any:
    """0, or the errno with which it failed."""
    while _fdatasync(descriptor) != 0:
        error = _errno_location()[0]
        if error != _EINTR:
            return error
    return 0


@njit(cache=True, nogil=True)
def serve(asked: Any, told: Any, memory: Any, idle_ms: Any, written: Any, busy_too: Any) -> Any:
    """Do what is asked, one request after the other; returns why it ends.

    asked, told  descriptors of `eventfd`: there is, or will be, a request; there is a result
    memory       int64 [6], see above
    idle_ms      after so long without a request it returns IDLE, if it has `written` something,
                 now or before; and after so long in any case if `busy_too`
    """
    count, clock = np.empty(1, np.int64), np.empty(2, np.int64)
    pollfd = np.array([asked, _POLLIN], np.int32)
    until_ns = _now_ns(clock) + idle_ms * 1_000_000
    while True:
        if (written or busy_too) and _poll(pollfd.ctypes.data, 1, idle_ms) == 0:
            return IDLE
        if busy_too and _now_ns(clock) > until_ns:
            return IDLE
        if _read(asked, count.ctypes.data, count.nbytes) != count.nbytes:
            continue  # A signal.
        if count[0] % ROUSE == 0:
            # An idle core wakes up late: it stays awake, and yields to whoever wants it.
            awake_ns = _now_ns(clock) + _ROUSED_NS
            while _poll(pollfd.ctypes.data, 1, 0) == 0 and _now_ns(clock) < awake_ns:
                _sched_yield()
            continue
        descriptor = memory[DESCRIPTOR]
        if descriptor < 0:
            return ASKED
        error = _write_all(descriptor, memory[ADDRESS], memory[BYTES], memory[OFFSET])
        began_ns = _now_ns(clock)
        if error == 0:
            error = _sync(descriptor)
        memory[ERROR], memory[SYNC_NS] = error, _now_ns(clock) - began_ns
        count[0] = 1
        _write(told, count.ctypes.data, count.nbytes)
        if error != 0:
            return FAILED
        written = True


def warm_up() -> None:
    """Compile `serve`, or load it, before a log waits for it."""
    asked = os.eventfd(ASK)
    memory = np.zeros(SYNC_NS + 1, np.int64)
    memory[DESCRIPTOR] = CLOSE
    try:
        serve(asked, asked, memory, 0, False, False)
    finally:
        os.close(asked)
