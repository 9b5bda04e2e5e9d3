"""What of one shard's state goes to another that takes over keys of it. Pure Python, no I/O.

First a part of the source's whole state (`take_range`), then the source's records one by one
(`Successor`). What is about one person goes where the person goes. What is counted for a whole
shard goes to one of its successors, the heir; money that quotes hold back goes with the people who
hold them, so that what all successors were granted adds up to what the source was granted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from actors import records
from actors.books import BUCKET_S, Budget, Effect, Reserved, Tally
from actors.checked import Applied
from actors.comparison import VERSIONS_MAX, merged
from actors.events import CUSTOM_FIRST, OTHER, TYPES_MAX
from actors.ledger import unpack
from actors.recent import Answered, DedupeWindow
from actors.records import (
    Activated,
    Catalogued,
    Closed,
    Documented,
    Dropped,
    Fired,
    Followed,
    Forgotten,
    Granted,
    Identified,
    Ledgered,
    Named,
    Observed,
    Opened,
    Outboxed,
    Purging,
    Rewarded,
    Seeded,
)
from actors.state import ShardState
from actors.store_moves import copy_range, rows_in
from cluster.errors import Unavailable
from cluster.keys import HASH_SPACE, KeyRange, place

Numbers = dict[str, list[int]]
"""Event types by tenant: the target's number at the place of the source's."""
_Held = dict[tuple[str, str], dict[int, int]]


def take_range(target: ShardState, source: ShardState, heir: bool) -> Numbers:
    """Copy what of the source belongs to the target's keys; the source is left as it is.

    heir    whether counts of the whole source become the target's
    Raises  StoreFull if it does not fit, Unavailable if it can't be told whose event types are
            which. The target is of no use then.
    """
    inside = target.key_range
    numbers = {name: _adopt_tenant(target, source, name) for name in source.tenants}
    copy_range(target.store, source.store, inside, _types_of(numbers))
    _take_books(target, source, heir)
    _take_answers(target, source)
    for sequence, decision in source.decisions.entries():
        if not decision.key or place(decision.key) in inside:
            types = numbers.get(decision.tenant, [])
            events = [(_number(types, kind), item) for kind, item in decision.events]
            target.decisions.add(sequence, decision._replace(events=events))
    erased = [*target.tombstones.entries(), *source.tombstones.entries()]
    kept = [(key, at_s) for key, at_s in erased if place(key) in inside]
    target.tombstones.restore(sorted(kept, key=lambda entry: entry[1]))
    for message in source.outbox.entries():
        if place(message.key) in inside:
            target.outbox.add(message)
    opened, closed, _ = source.rewards.decisions.entries()
    decisions = target.rewards.decisions
    for one in [*opened, *closed]:
        if one.arms and one.place in inside:
            decisions.add(one)
    for one in closed:
        if one.arms and one.place in inside:
            decisions.close(one)
    theirs = source.rewards.decisions
    decisions.note_dropped(theirs.dropped, theirs.dropped_s)
    target.loads.applied |= source.loads.applied
    return numbers


def _adopt_tenant(target: ShardState, source: ShardState, name: str) -> list[int]:
    """Take over catalogue, documents and event names of a tenant."""
    theirs, ours = source.tenants[name], target.tenant(name)
    if ours.catalogue.version < theirs.catalogue.version or not ours.catalogue.n:
        ours.catalogue.load(theirs.catalogue.dump())
    for stored in theirs.documents.dump():
        ours.documents.apply(stored)
    return [ours.event_types.number(event) for event in theirs.event_types.names]


def _types_of(numbers: Numbers) -> NDArray[np.uint8]:
    """One map of event types for all profiles, which do not say whose they are; uint8 [64]."""
    types: NDArray[np.uint8] = np.zeros(TYPES_MAX, np.uint8)
    known: dict[int, tuple[str, int]] = {}
    for tenant, of_tenant in numbers.items():
        for kind, number in enumerate(of_tenant):
            other, before = known.setdefault(kind, (tenant, number))
            if before != number:
                raise Unavailable(
                    f"event names of tenants {other} and {tenant} have clashing numbers in the "
                    "shards that are to become one"
                )
            types[kind] = number
    return types


def _number(types: Sequence[int], kind: int) -> int:
    return types[kind] if kind < len(types) else OTHER


def _take_answers(target: ShardState, source: ShardState) -> None:
    """Answered messages. Of most it is not known whose they are: all successors know them."""
    theirs = [
        entry
        for entry in source.dedupe.entries()
        if not entry[2].key or place(entry[2].key) in target.key_range
    ]
    merged: list[tuple[str, str, Answered]] = [*target.dedupe.entries(), *theirs]
    merged.sort(key=lambda entry: entry[2].time_s)
    config = target.config
    window = DedupeWindow(config.dedupe_window_s, config.dedupe_bytes_max)
    window.dropped_s = max(target.dedupe.dropped_s, source.dedupe.dropped_s)
    for tenant, message_id, answered in merged:
        window.add(tenant, message_id, answered)
    target.dedupe = window


def _take_books(target: ShardState, source: ShardState, heir: bool) -> None:
    now_s = int(source.now())
    first, stop = target.key_range.start, target.key_range.stop
    inside = _held(source, [target.key_range], now_s)
    others = [KeyRange(*edges) for edges in ((0, first), (stop, HASH_SPACE)) if edges[0] < edges[1]]
    outside = _held(source, others, now_s)
    for name, tenant in source.tenants.items():
        ours = target.tenant(name).books
        for budget, book in tenant.books.budgets.items():
            here, elsewhere = inside[name, budget], outside[name, budget]
            taken = _less(book, elsewhere, now_s) if heir else Budget(sum(here.values()), 0, here)
            kept = ours.budgets.setdefault(budget, Budget())
            kept.granted += taken.granted
            kept.spent += taken.spent
            for minute, micros in taken.reserved.items():
                kept.reserved[minute] = kept.reserved.get(minute, 0) + micros
        if heir:
            _add_tallies(ours.spreads, tenant.books.spreads)
            _add_tallies(ours.experiments, tenant.books.experiments)
            for policy, compared in tenant.books.compared.items():
                versions = merged([ours.compared.get(policy, []), compared])
                ours.compared[policy] = versions[:VERSIONS_MAX][::-1]


def _held(source: ShardState, ranges: Sequence[KeyRange], now_s: int) -> _Held:
    """What the quotes of the people in some ranges hold back."""
    held: _Held = defaultdict(dict)
    store = source.store
    with_ledger = np.array(store.ledgers(), np.int32)
    for key_range in ranges:
        for row in np.intersect1d(with_ledger, rows_in(store, key_range)).tolist():
            for quote in unpack(store.ledger(row)).quotes:
                tenant = quote.tenant or _tenant_of(source, quote.budget)
                if quote.redeemed_s or quote.expires_s <= now_s or not (quote.reserved and tenant):
                    continue
                of_budget, minute = held[tenant, quote.budget], quote.expires_s // BUCKET_S
                of_budget[minute] = of_budget.get(minute, 0) + quote.reserved
    return held


def _tenant_of(source: ShardState, budget: str) -> str:
    """Whose budget that is, for quotes of a release that did not say so; "" = several tenants'."""
    found = [name for name, one in source.tenants.items() if budget in one.books.budgets]
    return found[0] if len(found) == 1 else ""


def _less(book: Budget, elsewhere: Mapping[int, int], now_s: int) -> Budget:
    """A book without what is held back for people elsewhere, and without its part of the grant."""
    reserved = dict(book.reserved)
    given = 0
    for minute, micros in elsewhere.items():
        micros = min(micros, reserved.get(minute, 0))
        reserved[minute] = reserved.get(minute, 0) - micros
        given += micros
    return Budget(book.granted - given, book.spent, reserved)


def _add_tallies(
    ours: dict[str, dict[str, Tally]], theirs: Mapping[str, Mapping[str, Tally]]
) -> None:
    for name, parts in theirs.items():
        for part, tally in parts.items():
            kept = ours.setdefault(name, {}).setdefault(part, Tally())
            kept.n += tally.n
            kept.total += tally.total
            kept.squares += tally.squares


class Successor:
    """Does to a target what the records of one source say, as far as they are about its keys.

    numbers  as `take_range` gave them; kept up to date with the source's log
    """

    def __init__(self, target: ShardState, heir: bool, numbers: Numbers) -> None:
        self._target = target
        self._heir = heir
        self._numbers = numbers

    def lacks(self, record: records.AnyRecord) -> bool:
        """Whether a record is about items that the target has not heard of yet."""
        if not isinstance(record, Observed) or not record.applied:
            return False
        catalogue = self._target.tenant(record.tenant).catalogue
        return max(event.item for event in record.applied) >= catalogue.n

    def apply(self, record: records.AnyRecord) -> None:
        """Apply and log one record. Raises Unavailable if it is of a kind that no source writes
        while it is followed; StoreFull."""
        target = self._target
        match record:
            case Observed():
                self._observe(record)
            case Identified() | Ledgered() | Fired() | Forgotten():
                if place(record.key) in target.key_range:
                    self._keep(record)
            case Dropped():
                keys = [key for key in record.keys if place(key) in target.key_range]
                if keys:
                    self._keep(Dropped(keys))
            case Opened():
                if record.decision.place in target.key_range:
                    self._keep(record)
            case Rewarded() | Activated():
                if target.rewards.decisions.get(record.number) is not None:
                    self._keep(record)
            case Closed():
                self._close(record)
            case Outboxed():
                steps = [step for step in record.steps if target.outbox.get(step.message_id)]
                if steps:
                    self._keep(replace(record, steps=steps))
            case Named():
                number = target.tenant(record.tenant).event_types.number(record.name)
                self._numbers.setdefault(record.tenant, list(range(CUSTOM_FIRST))).append(number)
            case Catalogued() | Documented() | Seeded() | Purging() | Followed():
                pass  # The coordinator tells the target itself; the last two are the source's own.
            case _:
                raise Unavailable(f"{type(record).__name__} in the log of a shard that is followed")

    def _keep(self, record: records.AnyRecord) -> None:
        self._target.replay(record)
        self._target.log(record)

    def _observe(self, record: Observed) -> None:
        inside = place(record.key) in self._target.key_range
        if inside:
            types = self._numbers.get(record.tenant, [])
            applied = [
                Applied(one.item, _number(types, one.event_type), *one[2:])
                for one in record.applied
            ]
            self._keep(replace(record, applied=applied))
        if inside != self._heir:
            # The grant goes where what it pays for goes.
            self._regrant(record.tenant, record.effects, 1 if inside else -1, record.now_s)

    def _regrant(self, tenant: str, effects: Sequence[Effect], sign: int, now_s: int) -> None:
        books = self._target.tenant(tenant).books
        for effect in effects:
            if isinstance(effect, Reserved):
                book = books.budgets.setdefault(effect.budget, Budget())
                book.granted += sign * effect.micros
                self._target.log(Granted(tenant, effect.budget, book.granted, now_s))

    def _close(self, record: Closed) -> None:
        before = self._target.rewards.decisions.closed_total
        self._target.replay(record)
        if self._target.rewards.decisions.closed_total > before:
            self._target.log(record)
