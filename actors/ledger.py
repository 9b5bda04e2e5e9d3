"""A person's ledger: what surfaces must remember of one person, as one small msgpack blob.

Price holds, caps, sticky assignments, exposures, consents, contacts and timers lie in the store
beside the traits. Bounded: what has expired leaves first, then what only spares repetition; what
protects the person (consents, caps) never leaves to make room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from actors.books import Effect
from actors.outbox import Contacted
from actors.treatment.choice import Choice
from actors.treatment.features import Features, Value
from actors.treatment.policy import Policy
from cluster.errors import RequestError

if TYPE_CHECKING:
    from actors.store import ProfileStore

LEDGER_BYTES_MAX = 4096
"""With the largest traits, vector and ring it still fits a blob of the store."""


Mark = tuple[bytes | None, int, int, int]


class _Entry(msgspec.Struct, array_like=True):
    """Base of what a ledger lists. New fields go to the end, with a default."""


class Quote(_Entry):
    """A price that is held for the person. Amounts are in units of 1e-6.

    reserved    of the tenant's budget, until `expires_s`
    redeemed_s  0 = not yet
    """

    quote_id: str
    offer: str
    level: str
    item: str
    price: int
    expires_s: int
    reserved: int = 0
    redeemed_s: int = 0
    budget: str = ""
    tenant: str = ""


class Count(_Entry):
    """How often something happened since `since_s`; a window later it begins anew."""

    since_s: int
    window_s: int
    count: int


class Sticky(_Entry):
    """A variant that stays: until `until_s` (0 = for good), within `session` (0 = any)."""

    variant: str
    until_s: int = 0
    session: int = 0


class Exposure(_Entry):
    """The variant of an experiment, since when the person is exposed, and the outcome so far."""

    time_s: int
    variant: str
    value: float = 0.0


class Consent(_Entry):
    """Whether a purpose was agreed to, and when that was said."""

    granted: bool
    time_s: int


class Contact(_Entry):
    """A message that was sent, or decided to be sent."""

    time_s: int
    channel: str
    trigger: str


class Timer(_Entry):
    """A trigger that fires at `due_s` unless an event ends it first."""

    trigger: str
    due_s: int
    since_s: int
    item: int = -1
    """Number of the item of the last event that started it; -1 = none."""


class Reach(_Entry):
    """Whom a timer is about: a key hash tells neither tenant nor id. kind as in cluster.keys."""

    tenant: str
    kind: str
    person: str


class Ledger(msgspec.Struct, array_like=True):
    """Everything of one person. Keys are ids of documents, prefixed by kind where they mix.

    caps       by cap, as "offers/ID"
    sticky     by what is assigned, as "flags/KEY"
    exposures  by experiment
    memories   by policy: what the person did with its arms (actors.treatment.memory)
    suppressed by channel ("" = all): until when nothing is sent there, 0 = for good
    reach      whom the timers are about; None if there are none
    contacts_from_s  contacts up to then may be forgotten
    New fields go to the end, with a default: yesterday's ledgers are shorter.
    """

    quotes: list[Quote] = []
    caps: dict[str, Count] = {}
    sticky: dict[str, Sticky] = {}
    exposures: dict[str, Exposure] = {}
    consents: dict[str, Consent] = {}
    contacts: list[Contact] = []
    timers: list[Timer] = []
    memories: dict[str, bytes] = {}
    suppressed: dict[str, int] = {}
    reach: Reach | None = None
    contacts_from_s: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ledger).decode
_EMPTY = _encode(Ledger())


def unpack(stored: bytes) -> Ledger:
    """The ledger of stored bytes; b"" is an empty one."""
    return _decode(stored) if stored else Ledger()


def pack(ledger: Ledger, now_s: int) -> bytes:
    """A ledger as bytes, at most LEDGER_BYTES_MAX; b"" if nothing is in it.

    Raises RequestError if what must be kept does not fit.
    """
    packed = _encode(ledger)
    if len(packed) > LEDGER_BYTES_MAX:
        packed = _shrunk(ledger, now_s)
    return b"" if packed == _EMPTY else packed


def shown(ledger: Ledger) -> dict[str, Any]:
    """A ledger as its person may see it: names, and only what there is."""
    parts = {name: getattr(ledger, name) for name in ledger.__struct_fields__}
    # A memory is bytes of sums; who asks what is known of them gets which policies know something.
    parts["memories"] = list(ledger.memories)
    return {name: _shown(part) for name, part in parts.items() if part}


def _shown(value: Any) -> Any:
    if isinstance(value, _Entry):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {name: _shown(part) for name, part in value.items()}
    return [_shown(part) for part in value] if isinstance(value, (list, tuple)) else value


def expire(ledger: Ledger, now_s: int) -> None:
    """Drop what has no meaning any more: holds that ended, caps and assignments that ran out."""
    ledger.quotes = [quote for quote in ledger.quotes if quote.expires_s > now_s]
    ledger.caps = {
        name: count for name, count in ledger.caps.items() if count.since_s + count.window_s > now_s
    }
    ledger.sticky = {
        name: sticky
        for name, sticky in ledger.sticky.items()
        if not sticky.until_s or sticky.until_s > now_s
    }


def _shrunk(ledger: Ledger, now_s: int) -> bytes:
    expire(ledger, now_s)
    packed = _encode(ledger)
    while len(packed) > LEDGER_BYTES_MAX:
        # Oldest first, and first what a second time only costs a repetition.
        if ledger.exposures:
            del ledger.exposures[next(iter(ledger.exposures))]
        elif ledger.memories:
            del ledger.memories[next(iter(ledger.memories))]
        elif ledger.sticky:
            del ledger.sticky[next(iter(ledger.sticky))]
        elif len(ledger.contacts) > 1:
            ledger.contacts_from_s = max(ledger.contacts_from_s, ledger.contacts.pop(0).time_s)
        else:
            seen, wanted = f"{len(packed)} bytes", f"at most {LEDGER_BYTES_MAX} bytes"
            raise RequestError(422, "the person's ledger is full", "ledger", seen, wanted)
        packed = _encode(ledger)
    return packed


class Opened(NamedTuple):
    """A decision of a policy that waits for its rewards, as `rewards` keeps it.

    number    the decision's; arms and slots by slot, "" = its only one
    active    False: rewards count only once the decision is activated
    shadow    what the policy would have shown, where the baseline acted
    """

    number: int
    policy: Policy
    arms: list[str]
    slots: list[str]
    trace: bytes
    active: bool = True
    shadow: list[str] = []


def opened_by(
    policy: Policy, number: int, ids: Sequence[str], choice: Choice, slots: Sequence[str] = ("",)
) -> Opened:
    """A choice that rewards may come for. ids: of all arms; slots: their names, if they have any"""
    arms = [ids[arm] for arm in choice.order.tolist()]
    shadow = [ids[arm] for arm in choice.shadow.tolist()]
    return Opened(number, policy, arms, list(slots), choice.trace, shadow=shadow)


class OpenLedger:
    """One person's ledger during one request: read when it is first needed, written if changed."""

    __slots__ = (
        "_changed",
        "_kept",
        "_ledger",
        "_row",
        "_store",
        "contacted",
        "effects",
        "features",
        "known",
        "opened",
        "traits",
    )

    def __init__(self, store: ProfileStore, row: int) -> None:
        self.effects: list[Effect] = []
        """What the request does to the books of the shard; counted when it ends."""
        self.opened: list[Opened] = []
        """Decisions made in the request that rewards may come for."""
        self.contacted: list[Contacted] = []
        """What the request sends."""
        self.traits: dict[str, Any] | None = None
        self.known: dict[str, Value] | None = None
        self.features: Features | None = None
        """What is known of the person in this request, once a surface has asked."""
        self._store = store
        self._row = row
        self._ledger: Ledger | None = None
        self._changed = False
        self._kept: bytes | None = None
        """The changed ledger as bytes, as long as it was not changed again."""

    def read(self) -> Ledger:
        """The ledger, not to be changed."""
        if self._ledger is None:
            self._ledger = unpack(self._store.ledger(self._row) if self._row >= 0 else b"")
        return self._ledger

    def change(self) -> Ledger:
        """The ledger, to be changed before a mark is set or it is packed: what it says when the
        request ends is stored and logged."""
        self._changed = True
        self._kept = None
        return self.read()

    def packed(self, now_s: int) -> bytes | None:
        """What is to be stored; None if nothing changed. Raises RequestError as `pack`."""
        if not self._changed:
            return None
        kept = self._encoded()
        if len(kept) > LEDGER_BYTES_MAX:
            return pack(self.read(), now_s)
        return b"" if kept == _EMPTY else kept

    def _encoded(self) -> bytes:
        if self._kept is None:
            self._kept = _encode(self.read())
        return self._kept

    def mark(self) -> Mark:
        """What `back_to` needs to undo what changes from here on."""
        kept = self._encoded() if self._changed else None
        return kept, len(self.effects), len(self.opened), len(self.contacted)

    def back_to(self, mark: Mark) -> None:
        """Be as at the mark."""
        kept, effects, opened, contacted = mark
        self._changed = kept is not None
        self._ledger = None if kept is None else _decode(kept)
        self._kept = kept
        del self.effects[effects:]
        del self.opened[opened:]
        del self.contacted[contacted:]
