"""What a shard writes to its log: effects that were checked, so that replay can't refuse them.

A record holds everything that is needed to do the same again, the answer included: replay neither
looks at a clock nor decides anew. Records are msgpack arrays, their first entry says which; a tag
is file format, never use one again for something else.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.books import Effect
from actors.catalogue import CatalogueDump
from actors.checked import Applied
from actors.documents import Stored
from actors.open_decisions import OpenDecision
from actors.outbox import Contacted, Step

COLUMNS: dict[str, type[np.generic]] = {
    "key_hi": np.int64,
    "key_lo": np.int64,
    "item": np.int32,
    "type": np.uint8,
    "value": np.float32,
    "time": np.uint32,
}


class Record(msgspec.Struct, array_like=True, frozen=True):
    """Base of all records."""


class Answer(Record, frozen=True, tag="a"):
    """The answer to a message, for a repeat of it. message_id "" = none was given."""

    message_id: str
    digest: int
    content: bytes


class Observed(Record, frozen=True, tag="o"):
    """Events of one person, and what was decided. sequence 0 = nothing was decided.

    context  codes of the request's context, for what is learned from it
    ledger   the person's ledger from now on; None = as it was
    effects  what it did to the shard's books
    contacted  what is to be sent because of it
    opened     the decisions among them that wait for rewards
    """

    tenant: str
    key: bytes
    session: int
    now_s: int
    applied: list[Applied]
    sequence: int
    answer: Answer
    context: list[int] = []
    ledger: bytes | None = None
    effects: list[Effect] = []
    contacted: list[Contacted] = []
    opened: list[OpenDecision] = []


class Identified(Record, frozen=True, tag="i"):
    """All traits of a person, as they are from now on."""

    tenant: str
    key: bytes
    now_s: int
    traits: bytes
    answer: Answer


class Forgotten(Record, frozen=True, tag="f"):
    """A person is erased, and what is older than `now_s` is to stay away. 0: only the profile."""

    tenant: str
    key: bytes
    now_s: int = 0


class Purging(Record, frozen=True, tag="p"):
    """The log begins a new segment with this: a snapshot up to it tells of nobody erased before."""

    now_s: int


class Ledgered(Record, frozen=True, tag="b"):
    """A person's ledger, as it is from now on, where no event or decision changed it."""

    tenant: str
    key: bytes
    now_s: int
    ledger: bytes


class Granted(Record, frozen=True, tag="g"):
    """All that this shard was granted of a budget, in micros."""

    tenant: str
    budget: str
    granted: int
    now_s: int


class Fired(Record, frozen=True, tag="w"):
    """A timer of a person ran out; `ledger` has it no more."""

    tenant: str
    key: bytes
    now_s: int
    trigger: str
    ledger: bytes
    contacted: list[Contacted]
    opened: list[OpenDecision] = []


class Outboxed(Record, frozen=True, tag="m"):
    """What became of messages."""

    now_s: float
    steps: list[Step]


class Opened(Record, frozen=True, tag="q"):
    """A treatment decision begins to wait for its rewards. Read only: the first release wrote it
    beside the record of the call that decided, which holds it now."""

    decision: OpenDecision


class Rewarded(Record, frozen=True, tag="r"):
    """A slot of an open decision got a reward. token: a number of its message id, 0 = none."""

    number: int
    place: int
    value: float
    now_s: int
    token: int = 0


class Activated(Record, frozen=True, tag="x"):
    """An open decision was seen by its person."""

    number: int
    now_s: int


class Closed(Record, frozen=True, tag="z"):
    """Open decisions whose window had ended by now are closed, a bounded number of them."""

    now_s: int


class Documented(Record, frozen=True, tag="v"):
    """Versions of documents, put or deleted."""

    tenant: str
    versions: list[Stored]


class Named(Record, frozen=True, tag="n"):
    """An event name gets the next number."""

    tenant: str
    name: str


class Catalogued(Record, frozen=True, tag="c"):
    """Items that were put (JSON list), and ids of items that were taken down."""

    tenant: str
    items: bytes
    taken_down: list[str]


class Seeded(Record, frozen=True, tag="d"):
    """The whole catalogue, as `Catalogue.dump` gives it."""

    tenant: str
    dump: CatalogueDump


class Loaded(Record, frozen=True, tag="l"):
    """One chunk of a warm start's events: COLUMNS as little-endian bytes."""

    tenant: str
    token: str
    columns: list[bytes]


class LoadedTraits(Record, frozen=True, tag="t"):
    """One chunk of a warm start's profiles: keys of 16 bytes, and their merged traits."""

    tenant: str
    token: str
    now_s: int
    keys: list[bytes]
    traits: list[bytes]


class Evicted(Record, frozen=True, tag="e"):
    """Profiles last seen until `until_s`, and protected by none of the rules `protects` (bits of
    `actors.eviction.RULES`), are forgotten: the first `count_max` from row `start` on."""

    until_s: int
    start: int
    count_max: int
    protects: int


class Followed(Record, frozen=True, tag="y"):
    """The log begins a new segment with this: another shard follows it, for a handoff."""

    handoff: str


class Dropped(Record, frozen=True, tag="k"):
    """Profiles are forgotten, by key: as `Swept` and `Evicted` say while the log is followed by a
    shard that has other rows."""

    keys: list[bytes]


class Swept(Record, frozen=True, tag="s"):
    """Profiles last seen before `before_s` are forgotten, among the rows of one sweep."""

    before_s: int
    start: int


AnyRecord = (
    Observed
    | Identified
    | Ledgered
    | Fired
    | Outboxed
    | Documented
    | Granted
    | Opened
    | Rewarded
    | Activated
    | Closed
    | Evicted
    | Forgotten
    | Purging
    | Named
    | Catalogued
    | Seeded
    | Loaded
    | LoadedTraits
    | Swept
    | Followed
    | Dropped
)

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(AnyRecord).decode
_PURGING = encode(Purging(0))[:-1]


def purges(record: bytes) -> bool:
    """Whether an encoded record is a `Purging`."""
    return record.startswith(_PURGING)


def pack_columns(chunk: dict[str, NDArray[Any]]) -> list[bytes]:
    """The columns of a chunk of events as bytes, in the order of COLUMNS."""
    return [np.ascontiguousarray(chunk[name], kind).tobytes() for name, kind in COLUMNS.items()]


def unpack_columns(columns: list[bytes]) -> dict[str, NDArray[Any]]:
    """The inverse of `pack_columns`."""
    return {
        name: np.frombuffer(column, kind)
        for (name, kind), column in zip(COLUMNS.items(), columns, strict=True)
    }
