"""Item numbers of a JSON array of ids, found without making a Python string of each. Pure.

A request with 100 candidates spends more time on 100 strings and dictionary look-ups than on
scoring them. Here one kernel reads the JSON text, hashes each id and looks it up in a table of
one 16-byte slot per id. Two ids are taken for one if 96 bits of their hashes agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from actors.messages import ACTIONS_MAX
from actors.store_kernels import kernel
from cluster.keys import ID_BYTES_MAX

SLOTS_MIN = 1 << 10

NOT_PLAIN = -1
UNKNOWN = -2

_U = np.uint64
_QUOTE, _BACKSLASH, _COMMA, _OPEN, _CLOSE = 34, 92, 44, 91, 93
_SPACE, _NEWLINE, _TAB, _RETURN, _DELETE = 32, 10, 9, 13, 127


class IdNumbers:
    """Item id -> number, for look-ups by the array."""

    def __init__(self) -> None:
        # uint64 [slots, 2]: hash; its check in the upper half and number + 1 in the lower.
        self._slots: NDArray[np.uint64] = np.zeros((SLOTS_MIN, 2), np.uint64)
        self._count = 0
        self._out: NDArray[np.int32] = np.zeros(ACTIONS_MAX, np.int32)

    def put(self, item_id: str, number: int) -> None:
        """Add an id that is not there yet."""
        if self._count * 2 >= len(self._slots):
            larger: NDArray[np.uint64] = np.zeros((2 * len(self._slots), 2), np.uint64)
            _move(self._slots, larger)
            self._slots = larger
        _insert(self._slots, np.frombuffer(item_id.encode(), np.uint8), number)
        self._count += 1

    def of(self, array: Any) -> NDArray[np.int32] | None:
        """Numbers int32 [n] of a JSON array of ids (a buffer), which must be valid JSON.

        None if an id is unknown, or written with escapes, other than in ASCII or as an object: the
        caller then looks each up by itself.
        """
        found = _numbers(np.frombuffer(array, np.uint8), self._slots, self._out)
        return self._out[:found].copy() if found >= 0 else None


@njit(cache=True)
def _mixed(value: Any) -> Any:
    """The finisher of splitmix64."""
    value = (value ^ (value >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> _U(27))) * _U(0x94D049BB133111EB)
    return value ^ (value >> _U(31))


@njit(cache=True)
def _insert(slots: Any, text: Any, number: Any) -> None:
    hashed, check = _U(0), _U(0)
    for byte in text:
        hashed = (hashed ^ _U(byte)) * _U(0x100000001B3)
        check = (check + _U(byte)) * _U(0x9E3779B97F4A7C15)
    entry = (_mixed(check) & _U(0xFFFFFFFF00000000)) | _U(number + 1)
    _place(slots, _mixed(hashed), entry)


@njit(cache=True)
def _place(slots: Any, hashed: Any, entry: Any) -> None:
    mask = _U(slots.shape[0] - 1)
    at = hashed & mask
    while slots[at, 1] != 0:
        at = (at + _U(1)) & mask
    slots[at, 0] = hashed
    slots[at, 1] = entry


@njit(cache=True)
def _move(slots: Any, larger: Any) -> None:
    for at in range(slots.shape[0]):
        if slots[at, 1] != 0:
            _place(larger, slots[at, 0], slots[at, 1])


@kernel
def _skip_blanks(text: Any, at: Any) -> Any:
    while text[at] == _SPACE or text[at] == _NEWLINE or text[at] == _TAB or text[at] == _RETURN:
        at += 1
    return at


@kernel
def _numbers(text: Any, slots: Any, out: Any) -> Any:
    """Fill `out` from the JSON text; returns how many, NOT_PLAIN or UNKNOWN.

    Every loop ends at the text's last byte, which is the closing bracket.
    """
    size = text.shape[0]
    if size < 2 or text[0] != _OPEN or text[size - 1] != _CLOSE:
        return NOT_PLAIN
    mask = _U(slots.shape[0] - 1)
    found, at = 0, 1
    while True:
        at = _skip_blanks(text, at)
        if text[at] != _QUOTE:
            return NOT_PLAIN
        at += 1
        start = at
        hashed, check = _U(0), _U(0)
        while text[at] != _QUOTE:
            byte = text[at]
            if byte < _SPACE or byte >= _DELETE or byte == _BACKSLASH:
                return NOT_PLAIN
            hashed = (hashed ^ _U(byte)) * _U(0x100000001B3)
            check = (check + _U(byte)) * _U(0x9E3779B97F4A7C15)
            at += 1
            if at == size:
                return NOT_PLAIN
        if at == start or at - start > ID_BYTES_MAX or found == out.shape[0]:
            return NOT_PLAIN
        hashed, check = _mixed(hashed), _mixed(check) >> _U(32)
        slot = hashed & mask
        while slots[slot, 0] != hashed or slots[slot, 1] >> _U(32) != check:
            if slots[slot, 1] == 0:
                return UNKNOWN
            slot = (slot + _U(1)) & mask
        out[found] = np.int32(slots[slot, 1] & _U(0xFFFFFFFF)) - 1
        found += 1
        at = _skip_blanks(text, at + 1)
        if text[at] == _CLOSE:
            return found if at == size - 1 else NOT_PLAIN
        if text[at] != _COMMA:
            return NOT_PLAIN
        at += 1
