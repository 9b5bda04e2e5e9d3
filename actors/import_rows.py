"""Rows of a Parquet batch as columns for the owners, and the rows that can't be used. Pure.

Everything per row is an array operation or a kernel; only what is wrong is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actors.bulk_hash import EMPTY, HOLDS_NUL, OK, TOO_LONG, hash_ids
from actors.events import MS_FROM, TIME_MIN_S
from actors.parquet_input import Source
from actors.partition import Chunk, split
from cluster.errors import VALUE_SHOWN_MAX
from cluster.keys import ANONYMOUS, ID_BYTES_MAX, USER, key_bytes

NAME_MAX = 256
"""Characters of an item id or event name, as in `messages.Name`."""
VALUE_MAX = 1e15
SAMPLES_PER_REASON = 20
"""Rejects shown per reason and batch; all are counted."""


class Reason(NamedTuple):
    """Why a row is refused: the field, and what would have been accepted."""

    name: str
    field: str
    wanted: str


_ID_WANTED = f"1 to {ID_BYTES_MAX} bytes of UTF-8 without NUL"
_NAME_WANTED = f"1 to {NAME_MAX} characters of UTF-8 without NUL"
# Faults 1 to 3 are those of `bulk_hash`; a row keeps the first that is found.
NO_PERSON, NOT_TEXT, BAD_ITEM, UNKNOWN_ITEM, BAD_EVENT, NO_TIME, BAD_TIME, BAD_VALUE, BAD_TRAITS = (
    range(4, 13)
)
REASONS: dict[int, Reason] = {
    EMPTY: Reason("id_empty", "userId", _ID_WANTED),
    TOO_LONG: Reason("id_too_long", "userId", _ID_WANTED),
    HOLDS_NUL: Reason("id_holds_nul", "userId", _ID_WANTED),
    NO_PERSON: Reason("id_null", "userId", "a userId or an anonymousId"),
    NOT_TEXT: Reason("id_not_utf8", "userId", _ID_WANTED),
    BAD_ITEM: Reason("item_invalid", "itemId", _NAME_WANTED),
    UNKNOWN_ITEM: Reason("item_unknown", "itemId", "the id of an item of the catalogue"),
    BAD_EVENT: Reason("event_invalid", "event", _NAME_WANTED),
    NO_TIME: Reason("time_null", "timestamp", "a time"),
    BAD_TIME: Reason("time_out_of_bounds", "timestamp", "2000-01-01 to about now"),
    BAD_VALUE: Reason("value_invalid", "value", f"null, or a number up to {VALUE_MAX:.0e}"),
    BAD_TRAITS: Reason("traits_invalid", "traits", "at most 256 traits, 4000 bytes as JSON"),
}


class Reject(msgspec.Struct, frozen=True):
    """One refused row, as it stands in the rejects file. Rows count from 0 within the file."""

    file: str
    row: int
    reason: str
    field: str
    seen: str
    wanted: str


class Lookup(NamedTuple):
    """What names stand for, in a form that processes share without a copy.

    items          ids of the catalogue by number, Arrow text [n]
    event_names    event name -> position
    event_numbers  uint8 [owners, positions], the number each owner gave the name
    """

    items: pa.Array
    event_names: dict[str, int]
    event_numbers: NDArray[np.uint8]


def person_hashes(
    batch: pa.RecordBatch, columns: dict[str, str], tenant: str
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint8]]:
    """Key hashes (hi, lo) and faults of every row; a userId counts before an anonymousId."""
    found = [
        (batch.column(columns[field]), id_type)
        for field, id_type in (("userId", USER), ("anonymousId", ANONYMOUS))
        if field in columns
    ]
    hi, lo, faults = _hashes(found[0][0], tenant, found[0][1])
    faults[null_mask(found[0][0])] = NO_PERSON
    if len(found) == 2:
        missing = np.flatnonzero(faults == NO_PERSON)
        if len(missing):
            others = found[1][0].take(pa.array(missing))
            hi[missing], lo[missing], faults[missing] = _hashes(others, tenant, found[1][1])
            faults[missing[null_mask(others)]] = NO_PERSON
    return hi, lo, faults


def _hashes(
    column: pa.Array, tenant: str, id_type: str
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint8]]:
    text = as_text(column)
    _, offsets, data = text.buffers()
    width = np.int64 if pa.types.is_large_string(text.type) else np.int32
    stop = text.offset + len(text) + 1
    bounds = np.frombuffer(offsets, width, stop)[text.offset :] if offsets else np.zeros(1, width)
    content = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    hi, lo, faults = hash_ids(key_bytes(tenant, id_type, "-")[:-1], bounds, content)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        faults[(faults == OK) & ~_valid_utf8(text)] = NOT_TEXT
    return hi, lo, faults


def as_text(column: pa.Array) -> pa.Array:
    """A column of text or integers as plain Arrow text; integers in decimal."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.utf8()) if pa.types.is_integer(column.type) else column


def null_mask(column: pa.Array) -> NDArray[np.bool_]:
    """bool [n], true where the column has no value."""
    if column.null_count == 0:
        return np.zeros(len(column), np.bool_)
    mask: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return mask


def _valid_utf8(text: pa.Array) -> NDArray[np.bool_]:
    return np.array([name is not None for name in decoded(text)], np.bool_) | null_mask(text)


def decoded(text: pa.Array) -> list[str | None]:
    """The texts of a column, None where it is null or not UTF-8."""
    binary = pa.large_binary() if pa.types.is_large_string(text.type) else pa.binary()
    names: list[str | None] = []
    for raw in text.view(binary).to_pylist():
        try:
            names.append(None if raw is None else raw.decode())
        except UnicodeDecodeError:
            names.append(None)
    return names


def usable_name(text: str | None) -> bool:
    """Whether a text may name an item or event."""
    return text is not None and 0 < len(text) <= NAME_MAX and "\0" not in text


def usable_names(dictionary: pa.Array) -> list[str]:
    """Those of a dictionary's texts that may name an item or event."""
    return [text for text in decoded(dictionary) if text is not None and usable_name(text)]


def encoded(column: pa.Array) -> tuple[pa.Array, NDArray[np.int32]]:
    """A column as (dictionary of texts, int32 positions in it), -1 where it is null."""
    if not pa.types.is_dictionary(column.type):
        column = as_text(column).dictionary_encode()
    codes = column.indices
    if codes.null_count:
        codes = codes.fill_null(-1)
    return column.dictionary, codes.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)


class ItemNumbers:
    """Turns item columns into numbers; keeps the last dictionary, which batches mostly share."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._dictionary: pa.Array | None = None
        self._numbers: NDArray[np.int32] = np.zeros(0, np.int32)

    def of(self, column: pa.Array) -> NDArray[np.int32]:
        """int32 [n]: the item's number, -1 for null, minus a fault for what is no item."""
        dictionary, codes = encoded(column)
        if self._dictionary is None or not dictionary.equals(self._dictionary):
            self._dictionary, self._numbers = dictionary, self._resolve(dictionary)
        return self._numbers[codes]

    def _resolve(self, dictionary: pa.Array) -> NDArray[np.int32]:
        names = self._lookup.items.cast(dictionary.type)
        found = pc.index_in(dictionary, value_set=names)
        # One more entry, so that the code of null, -1, finds -1.
        numbers = np.full(len(dictionary) + 1, -1, np.int32)
        numbers[:-1] = found.fill_null(-1).to_numpy(zero_copy_only=False)
        for i in np.flatnonzero(null_mask(found)).tolist():
            numbers[i] = -UNKNOWN_ITEM if usable_names(dictionary[i : i + 1]) else -BAD_ITEM
        return numbers


def seconds(column: pa.Array, faults: NDArray[np.uint8], latest_s: float) -> NDArray[np.uint32]:
    """Whole seconds since 1970, uint32 [n]; sets faults for null and out-of-bounds times.

    A number below 1e11 counts seconds, one above milliseconds: as seconds it would be past the
    year 5138. `latest_s` is the latest time that is accepted; the earliest is TIME_MIN_S.
    """
    missing = null_mask(column)
    if pa.types.is_timestamp(column.type):
        per_second = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}[column.type.unit]
        stamps = column.view(pa.int64()).fill_null(0).to_numpy()
        times = stamps // per_second if per_second > 1 else stamps
    else:
        stamps = column.fill_null(0).to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            times = np.where(stamps >= MS_FROM, stamps // 1000, stamps)
    with np.errstate(invalid="ignore"):
        bad = ~((times >= TIME_MIN_S) & (times <= latest_s))
    if bad.any():
        faults[bad & (faults == OK)] = BAD_TIME
        faults[missing & (faults == BAD_TIME)] = NO_TIME
        times = np.where(bad, 0, times)
    whole: NDArray[np.uint32] = times.astype(np.uint32)
    return whole


def values(column: pa.Array, faults: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [n], 0 where null; sets a fault where it is not finite or too large."""
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if column.null_count:
        column = column.fill_null(0)
    found: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(found.astype(np.float64, copy=False)) <= VALUE_MAX)
    if bad.any():
        faults[bad & (faults == OK)] = BAD_VALUE
        found = np.where(bad, 0, found)
    return found.astype(np.float32)


class EventRows:
    """Converts batches of events.

    starts    uint64 [owners], see `split`
    latest_s  the latest time that an event may have
    """

    def __init__(
        self,
        source: Source,
        tenant: str,
        lookup: Lookup,
        starts: NDArray[np.uint64],
        latest_s: float,
    ) -> None:
        self._file = source.path
        self._columns = source.columns
        self._tenant = tenant
        self._lookup = lookup
        self._items = ItemNumbers(lookup)
        self._starts = starts
        self._latest_s = latest_s

    def convert(
        self, first_row: int, batch: pa.RecordBatch
    ) -> tuple[list[Chunk], dict[str, int], list[Reject]]:
        """One chunk per owner, counts of rejects by reason, and a sample of them."""
        columns = self._columns
        hi, lo, faults = person_hashes(batch, columns, self._tenant)
        item = self._items.of(batch.column(columns["itemId"]))
        if len(item) and item.min() < -1:
            refused = (item < -1) & (faults == OK)
            faults[refused] = -item[refused]
        kind = self._kinds(batch.column(columns["event"]), faults)
        time_s = seconds(batch.column(columns["timestamp"]), faults, self._latest_s)
        if "value" in columns:
            value = values(batch.column(columns["value"]), faults)
        else:
            value = np.zeros(len(item), np.float32)
        chunks = split(
            self._starts, self._lookup.event_numbers, (hi, lo, item, kind, value, time_s), faults
        )
        return chunks, *sample_rejects(faults, first_row, batch, columns, self._file)

    def _kinds(self, column: pa.Array, faults: NDArray[np.uint8]) -> NDArray[np.int32]:
        """int32 [n], position of each row's event name."""
        dictionary, codes = encoded(column)
        names = decoded(dictionary)
        at = [self._lookup.event_names.get(name or "", -1) for name in names]
        kinds = np.array([*at, -1], np.int32)[codes]
        bad = kinds < 0
        if bad.any():
            faults[bad & (faults == OK)] = BAD_EVENT
        return kinds


def sample_rejects(
    faults: NDArray[np.uint8],
    first_row: int,
    batch: pa.RecordBatch,
    columns: dict[str, str],
    file: str,
) -> tuple[dict[str, int], list[Reject]]:
    """Counts of faults by reason, and the first SAMPLES_PER_REASON rows of each."""
    counts: dict[str, int] = {}
    samples: list[Reject] = []
    if not faults.any():
        return counts, samples
    for fault in np.unique(faults[faults != OK]).tolist():
        reason = REASONS[fault]
        at = np.flatnonzero(faults == fault)
        counts[reason.name] = len(at)
        for i in at[:SAMPLES_PER_REASON].tolist():
            field, seen = _seen(batch, columns, reason.field, i)
            samples.append(Reject(file, first_row + i, reason.name, field, seen, reason.wanted))
    return counts, samples


def _seen(batch: pa.RecordBatch, columns: dict[str, str], field: str, row: int) -> tuple[str, str]:
    """The column that is at fault and its value, cut to VALUE_SHOWN_MAX characters."""
    names: Sequence[str] = [columns[field]] if field in columns else []
    if field == "userId":
        names = [columns[f] for f in ("userId", "anonymousId") if f in columns]
    for name in names:
        cell = batch.column(name)[row]
        if cell.is_valid or name == names[-1]:
            return name, _shown(cell)[:VALUE_SHOWN_MAX]
    return field, ""


def _shown(cell: pa.Scalar) -> str:
    if pa.types.is_dictionary(cell.type):
        cell = cell.value
    try:
        return repr(cell.as_py())
    except UnicodeDecodeError:
        return repr(cell.as_buffer().to_pybytes())
    except (ValueError, OverflowError):
        # A timestamp that Python's datetime can't hold.
        return f"{cell.value} {cell.type}"
