"""What a shard holds, and every way in which that changes. Each change is logged once.

Plain Python without Ray, sockets or a clock of its own. Methods take what was checked already and
never await; `replay` does again what a record of the log says, through the same methods.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from actors import events, records
from actors import store_kernels as kernels
from actors.catalogue import CatalogueDump, parts_of
from actors.checked import Applied
from actors.context import Codes
from actors.documents import Stored
from actors.erasure import Tombstones
from actors.eviction import evicted_rows
from actors.journal import Journal
from actors.ledger import OpenLedger, unpack
from actors.loads import Loads
from actors.messages import Item
from actors.outbox import Contacted, Outbox
from actors.recent import Answered, DecisionLog, DecisionRecord, DedupeWindow
from actors.records import (
    Activated,
    Catalogued,
    Closed,
    Documented,
    Dropped,
    Evicted,
    Fired,
    Followed,
    Forgotten,
    Granted,
    Identified,
    Ledgered,
    Loaded,
    LoadedTraits,
    Named,
    Observed,
    Opened,
    Outboxed,
    Purging,
    Rewarded,
    Seeded,
    Swept,
)
from actors.rewards import Rewards
from actors.store import ProfileStore
from actors.tenant import Tenant
from actors.timers import Due, Timers
from cluster.config import Config
from cluster.errors import ReadOnly, RequestError
from cluster.keys import KeyRange

if TYPE_CHECKING:
    from actors.archive import Archive

LOG = logging.getLogger("onehop.actors")

DISK_FULL = "the disk is full; only reads are served until there is room"


class ShardState:
    """Profiles, answers, decisions and tenants of one key range.

    now     the clock, seconds since 1970
    learns  whether the engines learn; a snapshot needs the profiles only
    """

    def __init__(
        self,
        shard_id: str,
        key_range: KeyRange,
        config: Config,
        epoch: int = 1,
        now: Callable[[], float] = time,
        learns: bool = True,
    ) -> None:
        self.shard_id = shard_id
        self.key_range = key_range
        self.config = config
        self.epoch = epoch
        self.now = now
        self.learns = learns
        self.store = ProfileStore(
            profiles_max=config.profiles_max,
            profile_bytes_max=config.profile_bytes_max,
            ring_events_max=config.ring_events_max,
            session_gap_s=config.session_gap_s,
            fast_half_life_s=config.fast_half_life_s,
            slow_half_life_s=config.slow_half_life_s,
        )
        self.dedupe = DedupeWindow(config.dedupe_window_s, config.dedupe_bytes_max)
        self.decisions = DecisionLog(config.decisions_bytes_max)
        self.tombstones = Tombstones(config.erasures_max)
        self.rewards = Rewards(self, config.open_decisions_bytes_max)
        self.loads = Loads(self)
        self.outbox = Outbox(config.outbox_bytes_max)
        self.timers = Timers(config.timers_max)
        """Found again in the ledgers after a recovery; records only change the ledgers."""
        self.tenants: dict[str, Tenant] = {}
        self.swept_to = 0
        self.followed = False
        """Whether another shard follows the log: who is forgotten is logged by key then."""
        self.paused = False
        """Whether nothing may happen by itself: the range is being handed over, or was."""
        self.gone = False
        """Whether the range is others' now: whoever asks is told where the map says that."""
        self.journal: Journal | None = None
        """Set once the shard has recovered; None: nothing survives this process."""
        self.replication: Callable[[], dict[str, Any]] | None = None
        """How the backup does, where one may be."""
        self.archive: Archive | None = None
        """Set where there is one; it copies what the journal has written."""

    def tenant(self, name: str) -> Tenant:
        """The state of a tenant, made when it is first named."""
        tenant = self.tenants.get(name)
        if tenant is None:
            if len(self.tenants) >= self.config.tenants_max:
                raise RequestError(
                    403, "too many tenants", "tenant", name, f"at most {self.config.tenants_max}"
                )
            tenant = self.tenants[name] = Tenant(name, self.store, self.config)
            tenant.event_types.on_new = lambda new: self.log(Named(name, new))
        return tenant

    def apply_events(
        self, tenant: Tenant, key: bytes, applied: list[Applied], session: int, context: Codes
    ) -> int:
        """Apply checked events to the person; returns the row, -1 if there is no profile."""
        store = self.store
        row = store.find(key)
        if not applied:
            return row
        embeddings = tenant.catalogue.embeddings
        vector_words = 0 if embeddings is None else embeddings.shape[1]
        words = kernels.EVENT_GROWTH * len(applied) + vector_words
        store.check_room(row, len(applied), words)
        if row < 0:
            row = store.ensure(key, applied[0].time_s)
        catalogue = tenant.catalogue
        for item, kind, value, money, time_s in applied:
            weight = events.WEIGHTS[kind]
            store.observe(
                row,
                item,
                kind,
                weight,
                value,
                money,
                time_s,
                session,
                catalogue.attribute_ids,
            )
            if events.enters_ring(kind, item):
                if self.learns:
                    self._learn(tenant, row, item, kind, value, time_s, context)
                store.enter_ring(row, item, kind, value, time_s)
                if catalogue.embeddings is not None and weight > 0.0:
                    store.blend(row, item, catalogue.embeddings)
        return row

    def _learn(
        self,
        tenant: Tenant,
        row: int,
        item: int,
        kind: int,
        value: float,
        time_s: int,
        context: Codes,
    ) -> None:
        try:
            tenant.engine.learn(row, item, kind, value, time_s)
            if len(context):
                tenant.context.learn(context, item, tenant.catalogue.attribute_ids[item])
        except Exception:
            # What is not learned is a worse guess; half an event, or no recovery, would be a loss.
            LOG.exception("shard %s did not learn an event", self.shard_id)

    def set_traits(self, key: bytes, now_s: int, traits: bytes) -> int:
        row = self.store.find(key)
        self.store.check_room(row, 1, len(traits) // 4 + 2)
        row = self.store.ensure(key, now_s)
        self.store.set_traits(row, traits)
        self.store.bump(row)
        return row

    def set_ledger(self, key: bytes, now_s: int, ledger: bytes) -> int:
        """Replace a person's ledger; returns the row, of a profile made for it if need be.

        Raises StoreFull, and changes nothing then.
        """
        row = self.store.find(key)
        self.store.check_room(row, 1, len(ledger) // 4 + 2)
        row = self.store.ensure(key, now_s)
        self.store.set_ledger(row, ledger)
        return row

    def store_ledger(
        self, tenant: Tenant, key: bytes, opened: OpenLedger, now_s: int
    ) -> bytes | None:
        """Store what a request changed of a person's ledger, and count its effects.

        Returns the ledger for the record, None if it is as it was. Raises StoreFull and
        RequestError, and changes nothing then.
        """
        changed = opened.packed(now_s)
        if changed is not None:
            self.set_ledger(key, now_s, changed)
        tenant.books.apply(opened.effects, now_s)
        return changed

    def book(self, tenant_name: str, key: bytes, ledger: bytes) -> int:
        """`set_ledger` now, outside of a decide call, and log it."""
        record = Ledgered(tenant_name, key, int(self.now()), ledger)
        row = self.set_ledger(key, record.now_s, ledger)
        self.log(record)
        return row

    def grant(self, tenant_name: str, budget: str, granted: int) -> int:
        """Set what was granted of a budget, in micros, but not below what is used; returns it.

        Raises Unavailable while the disk is full.
        """
        self.check_disk()
        now_s = int(self.now())
        granted = self.tenant(tenant_name).books.grant(budget, granted, now_s)
        self.log(Granted(tenant_name, budget, granted, now_s))
        return granted

    def fire(self, record: Fired) -> None:
        """A timer ran out. Raises StoreFull, and changes nothing then."""
        self.set_ledger(record.key, record.now_s, record.ledger)
        self.contacted(record.tenant, record.key, record.now_s, record.contacted)
        self.rewards.open_all(record.opened)

    def contacted(self, tenant: str, key: bytes, now_s: int, contacted: list[Contacted]) -> None:
        """Take messages into the outbox, and their decisions to those who may be asked about."""
        for one in contacted:
            if one.sequence:
                decision = DecisionRecord(tenant, key, now_s, one.answer)
                self.decisions.add(one.sequence, decision)
            self.outbox.add(one.message)

    def find_timers(self) -> None:
        """Learn from the ledgers which timers run: after a recovery, or with another range."""
        store = self.store
        found = []
        for row in store.ledgers():
            timers = unpack(store.ledger(row)).timers
            key = store.key(row) if timers else b""
            found += [Due(key, timer.trigger, timer.due_s) for timer in timers]
        self.timers.rebuild(found)

    def settle(self, record: Outboxed) -> None:
        """Let happen to messages what a record says. Raises IllegalStep."""
        for step in record.steps:
            self.outbox.step(step, record.now_s)

    def forget(self, row: int) -> None:
        """Erase the profile at `row`; who gets the row next inherits nothing."""
        for tenant in self.tenants.values():
            tenant.engine.forget(row)
        self.outbox.forget(self.store.key(row))
        self.store.remove(row)

    def erase(self, record: Forgotten) -> bool:
        """Erase a person: profile, decisions, answers; whether there was a profile."""
        row = self.store.find(record.key)
        if row >= 0:
            self.forget(row)
        self.outbox.forget(record.key)
        self.decisions.forget(record.key)
        self.rewards.forget(record.key)
        self.dedupe.forget(record.key)
        if record.now_s:
            self.tombstones.add(record.key, record.now_s)
        return row >= 0

    def log(self, record: records.AnyRecord) -> None:
        if self.journal is not None:
            self.journal.append(records.encode(record))

    def remember(self, record: Observed | Identified, row: int) -> None:
        """Keep an answer for a repeat of its message, and decisions for those who ask why."""
        answer = record.answer
        if isinstance(record, Observed) and record.sequence:
            key = record.key if row >= 0 else b""
            happened = [(event.event_type, event.item) for event in record.applied]
            kept = DecisionRecord(record.tenant, key, record.now_s, answer.content, happened)
            self.decisions.add(record.sequence, kept)
        if answer.message_id:
            # Only an answer with decisions tells of its person.
            told = record.key if isinstance(record, Observed) and record.sequence else b""
            entry = Answered(record.now_s, answer.digest, answer.content, told)
            self.dedupe.add(record.tenant, answer.message_id, entry)

    # What changes without a caller: time to live, catalogue, warm start, replay.

    def sweep(self) -> int:
        """Forget profiles past their time to live, a bounded part at a time."""
        if self.paused or (self.journal is not None and not self.journal.has_room):
            return 0
        record = Swept(max(int(self.now()) - self.config.profile_ttl_s, 0), self.swept_to)
        forgotten, self.swept_to = self.forget_by_rule(record)
        return forgotten

    def forget_by_rule(self, record: Swept | Evicted) -> tuple[int, int]:
        """Forget whom a record names, and log it; how many, and where to look on."""
        rows, stop = self._named_by(record)
        keys = [self.store.key(row) for row in rows] if self.followed else []
        for row in rows:
            self.forget(row)
        if rows:
            self.log(Dropped(keys) if self.followed else record)
        return len(rows), stop

    def _named_by(self, record: Swept | Evicted) -> tuple[list[int], int]:
        if isinstance(record, Swept):
            return self.store.stale(record.before_s, record.start)
        return evicted_rows(self.store, record)

    def put_documents(self, tenant_name: str, versions: list[Stored]) -> None:
        """Apply versions of documents that the coordinator has accepted."""
        documents = self.tenant(tenant_name).documents
        fresh = [stored for stored in versions if documents.apply(stored)]
        if fresh:
            self.log(Documented(tenant_name, fresh))

    def put_items(self, tenant_name: str, items_json: bytes) -> None:
        """Apply items that the coordinator has accepted."""
        catalogue = self.tenant(tenant_name).catalogue
        for item in msgspec.json.decode(items_json, type=list[Item]):
            catalogue.put(item)
        self.log(Catalogued(tenant_name, items_json, []))

    def load_catalogue(self, tenant_name: str, dump: CatalogueDump) -> None:
        """Become the catalogue of a dump; ours is empty or an earlier state of it."""
        self.tenant(tenant_name).catalogue.load(dump)
        for part in parts_of(dump):
            self.log(Seeded(tenant_name, part))

    def take_down(self, tenant_name: str, ids: list[str]) -> None:
        """Take items down, from the next decision on."""
        for item_id in ids:
            self.tenant(tenant_name).catalogue.take_down(item_id)
        self.log(Catalogued(tenant_name, b"[]", ids))

    def check_disk(self) -> None:
        """Raises ReadOnly if nothing may change now.

        The log would take it, until its last segment is full: then the shard would have to leave.
        """
        if self.journal is not None and not self.journal.has_room:
            raise ReadOnly(DISK_FULL)

    def replay(self, record: records.AnyRecord) -> None:
        """Do again what a record of this shard's log says."""
        match record:
            case Observed():
                tenant = self.tenant(record.tenant)
                row = self.apply_events(
                    tenant,
                    record.key,
                    record.applied,
                    record.session,
                    np.array(record.context, np.int64),
                )
                tenant.books.apply(record.effects, record.now_s)
                if record.ledger is not None:
                    row = self.set_ledger(record.key, record.now_s, record.ledger)
                self.remember(record, row)
                self.contacted(record.tenant, record.key, record.now_s, record.contacted)
                self.rewards.open_all(record.opened)
            case Fired():
                self.fire(record)
            case Outboxed():
                self.settle(record)
            case Ledgered():
                self.set_ledger(record.key, record.now_s, record.ledger)
            case Granted():
                books = self.tenant(record.tenant).books
                books.grant(record.budget, record.granted, record.now_s)
            case Opened():
                self.rewards.apply_opened(record.decision)
            case Rewarded():
                self.rewards.apply_rewarded(record)
            case Activated():
                self.rewards.apply_activated(record)
            case Closed():
                self.rewards.apply_closed(record)
            case Documented():
                self.put_documents(record.tenant, record.versions)
            case Identified():
                self.remember(record, self.set_traits(record.key, record.now_s, record.traits))
            case Forgotten():
                self.erase(record)
            case Purging() | Followed():
                pass
            case Evicted() | Swept():
                rows, stop = self._named_by(record)
                for row in rows:
                    self.forget(row)
                if isinstance(record, Swept):
                    self.swept_to = stop
            case Dropped():
                for row in map(self.store.find, record.keys):
                    if row >= 0:
                        self.forget(row)
            case Named():
                self.tenant(record.tenant).event_types.number(record.name)
            case Seeded():
                self.load_catalogue(record.tenant, record.dump)
            case Catalogued():
                self.put_items(record.tenant, record.items)
                self.take_down(record.tenant, record.taken_down)
            case Loaded():
                self.loads.again(record)
            case LoadedTraits():
                self.loads.again_traits(record)
