"""The items of one tenant: dense numbers for ids, attributes and embeddings as arrays.

Every shard applies the same updates in the same order, so a number means the same item on all.
A number is never reused: an item that was taken down keeps it and is not alive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.arena import reserve
from actors.id_numbers import IdNumbers
from actors.messages import ITEM_ATTRIBUTES_MAX, Item
from cluster.errors import RequestError

CATEGORIES_MAX = 4
"""Text attributes per item over which affinities are learned; further ones only filter."""
COLUMNS_MAX = 64
SEEDED_BYTES_MAX = 8 << 20
"""Ids and documents of one part of a dump; with the rest it stays far below a batch of the log."""
NONE = -1


class CatalogueDump(msgspec.Struct, frozen=True, array_like=True):
    """A catalogue as data: attribute names and items, both in the order of their numbers.

    An item is (id, JSON); the JSON of one that was taken down is empty. `version` counts updates,
    so of two states of one catalogue it tells the later; 0 = part of a dump.
    """

    attributes: list[str] = []
    items: list[tuple[str, bytes]] = []
    version: int = 0


class Column:
    """One attribute of all items, for filters. Text has a code from 1 on; a bool counts as 0 or 1.

    codes      int32 [items_max], 0 where the attribute is no text
    numbers    float64 [items_max]; is_number uint8 [items_max], 0 where it is no number
    """

    def __init__(self, items_max: int) -> None:
        self.codes: NDArray[np.int32] = reserve(np.int32, items_max)
        self.numbers: NDArray[np.float64] = reserve(np.float64, items_max)
        self.is_number: NDArray[np.uint8] = reserve(np.uint8, items_max)
        self.numbers_of_text: dict[str, int] = {}

    def set(self, item: int, value: str | float | bool | None) -> None:
        """Replace an item's value; None removes it."""
        self.codes[item] = 0
        self.is_number[item] = 0
        if isinstance(value, str):
            code = self.numbers_of_text.setdefault(value, len(self.numbers_of_text) + 1)
            self.codes[item] = code
        elif value is not None:
            self.numbers[item] = value
            self.is_number[item] = 1


class Catalogue:
    """Items by id and by number.

    alive          uint8 [items_max], 1 = may be shown
    attribute_ids  int32 [items_max, CATEGORIES_MAX], ids of "name=value", NONE = no more
    embeddings     float32 [items_max, d], or None while no item has one
    The arrays never move; rows from `len(self)` on are zero.
    """

    def __init__(self, items_max: int = 1 << 20) -> None:
        self.items_max = items_max
        self.ids: list[str] = []
        self.numbers: dict[str, int] = {}
        self.id_numbers = IdNumbers()
        """The same as `numbers`, for whole JSON arrays of ids."""
        self.attribute_names: list[str] = []
        self.alive: NDArray[np.uint8] = reserve(np.uint8, items_max)
        self.attribute_ids: NDArray[np.int32] = reserve(
            np.int32, items_max * CATEGORIES_MAX
        ).reshape(items_max, CATEGORIES_MAX)
        self.embeddings: NDArray[np.float32] | None = None
        self.columns: dict[str, Column] = {}
        """Attributes by name, for filters."""
        self.version = 0
        self._documents: list[bytes] = []
        self._attribute_numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n(self) -> int:
        """Items known, taken down or not."""
        return len(self.ids)

    @property
    def alive_count(self) -> int:
        """Items that may be shown."""
        return int(self.alive[: len(self)].sum())

    def check_item(self, item: Item) -> None:
        """Raises RequestError if `put` would refuse the item."""
        if "\0" in item.id:
            raise RequestError(
                422, "the id holds a NUL", "id", repr(item.id), "1 to 256 characters without NUL"
            )
        if len(item.attributes) > ITEM_ATTRIBUTES_MAX:
            raise RequestError(
                422,
                "too many attributes",
                "attributes",
                str(len(item.attributes)),
                f"at most {ITEM_ATTRIBUTES_MAX}",
            )
        new = item.attributes.keys() - self.columns.keys()
        if len(self.columns) + len(new) > COLUMNS_MAX:
            raise RequestError(
                422,
                "the catalogue has too many different attributes",
                "attributes",
                ", ".join(sorted(new)),
                f"at most {COLUMNS_MAX} names in all",
            )
        if item.id not in self.numbers and len(self) >= self.items_max:
            raise RequestError(
                422, "the catalogue is full", "id", repr(item.id), f"at most {self.items_max} items"
            )
        wanted = self.embeddings.shape[1] if self.embeddings is not None else None
        if item.embedding is not None and wanted not in (None, len(item.embedding)):
            raise RequestError(
                422,
                "the embedding has another length than those before",
                "embedding",
                str(len(item.embedding)),
                str(wanted),
            )

    def put(self, item: Item) -> int:
        """Add or replace an item; returns its number. Raises RequestError, changing nothing."""
        self.check_item(item)
        number = self._number(item.id)
        self._documents[number] = msgspec.json.encode(item)
        self.alive[number] = 1
        named = [f"{k}={v}" for k, v in item.attributes.items() if isinstance(v, str)]
        for name, column in self.columns.items():
            column.set(number, item.attributes.get(name))
        for name in item.attributes.keys() - self.columns.keys():
            self.columns[name] = Column(self.items_max)
            self.columns[name].set(number, item.attributes[name])
        self.attribute_ids[number] = NONE
        for slot, name in enumerate(named[:CATEGORIES_MAX]):
            self.attribute_ids[number, slot] = self._attribute(name)
        if item.embedding is not None:
            if self.embeddings is None:
                size = len(item.embedding)
                self.embeddings = reserve(np.float32, self.items_max * size).reshape(-1, size)
            self.embeddings[number] = item.embedding
        elif self.embeddings is not None:
            self.embeddings[number] = 0.0
        self.version += 1
        return number

    def register(self, ids: Sequence[str]) -> None:
        """Add items that are only known by id; ids already there stay as they are."""
        for item_id in ids:
            if item_id not in self.numbers:
                self.put(Item(item_id))

    def take_down(self, item_id: str) -> bool:
        """Never show the item again, from the next decision on. False if it was not there."""
        number = self.numbers.get(item_id)
        if number is None or not self.alive[number]:
            return False
        self.alive[number] = 0
        self._documents[number] = b""
        self.attribute_ids[number] = NONE
        for column in self.columns.values():
            column.set(number, None)
        if self.embeddings is not None:
            self.embeddings[number] = 0.0
        self.version += 1
        return True

    def document(self, item_id: str) -> bytes | None:
        """The item as JSON, or None if it is not there."""
        number = self.numbers.get(item_id)
        return self._documents[number] or None if number is not None else None

    def dump(self) -> CatalogueDump:
        """Everything, for `load`: numbers of items and of attributes are kept by their order."""
        items = list(zip(self.ids, self._documents, strict=True))
        return CatalogueDump(list(self.attribute_names), items, self.version)

    def load(self, dump: CatalogueDump) -> None:
        """Become the catalogue of `dump`; ours must be empty or an earlier state of it."""
        for name in dump.attributes:
            self._attribute(name)
        decoder = msgspec.json.Decoder(Item)
        for item_id, document in dump.items:
            if document:
                self.put(decoder.decode(document))
            else:
                self._number(item_id)
                self.take_down(item_id)
        if dump.version:
            self.version = dump.version

    def _number(self, item_id: str) -> int:
        number = self.numbers.get(item_id)
        if number is None:
            number = self.numbers[item_id] = len(self.ids)
            self.ids.append(item_id)
            self._documents.append(b"")
            self.id_numbers.put(item_id, number)
            self.attribute_ids[number] = NONE
        return number

    def _attribute(self, name: str) -> int:
        number = self._attribute_numbers.get(name)
        if number is None:
            number = self._attribute_numbers[name] = len(self.attribute_names)
            self.attribute_names.append(name)
        return number


def decode_items(body: bytes, items_max: int) -> list[Item | RequestError]:
    """Items of a JSON list; one that can't be used is a RequestError in its place.

    Raises RequestError if the body is not a list or is longer than `items_max`.
    """
    try:
        entries: list[Any] = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, "the body is not a JSON list of items", "", str(error)) from None
    if len(entries) > items_max:
        raise RequestError(422, "too many items", "", str(len(entries)), f"at most {items_max}")
    return [_decode_item(entry) for entry in entries]


def _decode_item(entry: bytes) -> Item | RequestError:
    try:
        return msgspec.json.decode(entry, type=Item)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        shown = bytes(entry)[:60].decode(errors="replace")
        return RequestError(422, str(error), "", shown, "an item")


def parts_of(dump: CatalogueDump) -> Iterator[CatalogueDump]:
    """A dump as several, each small enough for a record; loaded in order they give the whole."""
    items: list[tuple[str, bytes]] = []
    size = 0
    for item_id, document in dump.items:
        if size + len(item_id) + len(document) > SEEDED_BYTES_MAX:
            yield CatalogueDump(dump.attributes, items)
            items, size = [], 0
        items.append((item_id, document))
        size += len(item_id) + len(document)
    # Only with the last it is that version: a crash may leave the first parts alone in the log.
    yield CatalogueDump(dump.attributes, items, dump.version)
