"""The part of `Shard` that takes what people do: deduped, applied, watched by triggers, logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter_ns, time
from typing import Any

import msgspec
import numpy as np

from actors import records
from actors.checked import check_event, decode
from actors.contact import reach_of
from actors.context import NO_CODES
from actors.late import check_time
from actors.ledger import OpenLedger
from actors.levels import at_level, level_of
from actors.mailroom import Mailroom
from actors.messages import Event, IdentifyRequest, PageRequest, TrackAnswer, TrackRequest
from actors.people import Caller
from actors.profile import merge_traits
from actors.recent import digest
from actors.records import Identified, Observed
from actors.rewards import CLOSE_MAX
from actors.shard_reads import Answer, ShardReads
from actors.surfaces.interface import Who
from actors.surfaces.outcomes import settle
from actors.tenant import Tenant
from actors.watch import FIRED_MAX, Moved, Said, Watch
from cluster.config import Config
from cluster.errors import RequestError, StoreFull
from cluster.frames import Op
from cluster.keys import KeyRange
from cluster.levels import Level

LOG = logging.getLogger("onehop.actors")

_NEW = b'{"duplicate":false'
_REPEAT = b'{"duplicate":true'


class _Opened(msgspec.Struct, frozen=True):
    """A request that is neither a repeat nor another shard's."""

    key: bytes
    now_s: float
    level: Level


class ShardEvents(ShardReads):
    """`ShardReads`, and Segment's calls. Handlers take (caller, body, arrived_ns).

    rng  as `Shard` has it
    """

    def __init__(
        self,
        shard_id: str,
        key_range: KeyRange,
        config: Config,
        epoch: int = 1,
        now: Callable[[], float] = time,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(shard_id, key_range, config, epoch, now)
        self._rng = rng or np.random.default_rng()
        # Sequence numbers of decisions: a random start keeps them apart across restarts.
        self._sequence = int(self._rng.integers(1 << 24)) << 36
        self._track_decoder = msgspec.json.Decoder(TrackRequest)
        self._identify_decoder = msgspec.json.Decoder(IdentifyRequest)
        self._page_decoder = msgspec.json.Decoder(PageRequest)
        self.watch = Watch(self, self._next_number, self._rng)
        self.mailroom = Mailroom(self)

    def _track(self, caller: Caller, body: bytes, arrived_ns: int) -> Answer:
        request = decode(self._track_decoder, body)
        return self._observe(caller, body, arrived_ns, Op.TRACK, request, request)

    def _page(self, caller: Caller, body: bytes, arrived_ns: int) -> Answer:
        request = decode(self._page_decoder, body)
        event = Event("Page Viewed", request.properties, request.timestamp)
        return self._observe(caller, body, arrived_ns, Op.PAGE, request, event)

    def _observe(
        self,
        caller: Caller,
        body: bytes,
        arrived_ns: int,
        op: int,
        request: TrackRequest | PageRequest,
        event: Event | TrackRequest,
    ) -> Answer:
        started_ns = perf_counter_ns()
        opened = self._open(caller, request, op, body)
        if not isinstance(opened, _Opened):
            return opened
        key, now_s = opened.key, opened.now_s
        tenant = self.tenant(caller.tenant)
        future_s = self.config.event_future_s
        applied = [check_event(tenant, event, request.sent_at, now_s, future_s, "")]
        check_time(self, key, request, [(event.timestamp, applied[0].time_s)], now_s)
        session = hash_session(request.session_id)
        row = self.apply_events(tenant, key, applied, session, NO_CODES)
        reach = reach_of(caller.tenant, request.user_id, request.anonymous_id)
        ledger = OpenLedger(self.store, row)
        known = (self.store, row, int(now_s), NO_CODES, self._rng)
        who = Who(*known, ledger, key, reach=reach)
        moved, changed = self._watch(tenant, Said([event], applied, body), who)
        answer = self._answer(request.message_id, op, body, row, opened.level)
        record = Observed(
            *(caller.tenant, key, session, int(now_s), applied, 0, answer),
            ledger=changed,
            effects=ledger.effects,
            contacted=ledger.contacted,
            opened=self.rewards.waiting(caller.tenant, key, ledger.opened, int(now_s)),
        )
        self._keep(record, row, moved)
        self.stages.record(started_ns - arrived_ns, perf_counter_ns() - started_ns, None)
        return 200, answer.content

    def _watch(self, tenant: Tenant, said: Said, who: Who) -> tuple[Moved, bytes | None]:
        """What a tracked event means to surfaces and triggers, and the ledger that it leaves."""
        ledger, unchanged = who.ledger, who.ledger.mark()
        self.stages.quotes_missing += settle(tenant, ledger, said.events, said.applied, who.now_s)
        moved = self.watch.observe(tenant, said, who, [])
        try:
            return moved, self.store_ledger(tenant, who.key, ledger, who.now_s)
        except (RequestError, StoreFull) as error:
            LOG.error("shard %s can't keep a ledger: %s", self.shard_id, error)
            ledger.back_to(unchanged)
            return [], None

    def _identify(self, caller: Caller, body: bytes, arrived_ns: int) -> Answer:
        request = decode(self._identify_decoder, body)
        opened = self._open(caller, request, Op.IDENTIFY, body)
        if not isinstance(opened, _Opened):
            return opened
        key, now_s = opened.key, int(opened.now_s)
        check_time(self, key, request, [], now_s)
        self.tenant(caller.tenant)
        row = self.store.find(key)
        traits = merge_traits(self.store.traits(row) if row >= 0 else b"", request.traits)
        row = self.set_traits(key, now_s, traits)
        answer = self._answer(request.message_id, Op.IDENTIFY, body, row, opened.level)
        record = Identified(caller.tenant, key, now_s, traits, answer)
        self.remember(record, row)
        self.log(record)
        return 200, answer.content

    def _open(
        self,
        caller: Caller,
        request: TrackRequest | PageRequest | IdentifyRequest,
        op: int,
        body: bytes,
    ) -> _Opened | Answer:
        """Whom a request is about, and when; or its answer, if it is a repeat or has moved."""
        key = self.owned(caller, request.user_id, request.anonymous_id)
        if key is None:
            return self.moved()
        level = level_of(request.durability, caller, self.config.level, self.journal)
        if request.message_id is not None:
            repeat = self._repeat(caller.tenant, request.message_id, op, body, level)
            if repeat is not None:
                return repeat
        return _Opened(key, self.now(), level)

    def _answer(
        self, message_id: str | None, op: int, body: bytes, row: int, level: Level
    ) -> records.Answer:
        content = self._encode(TrackAnswer(False, self.store.version(row), level))
        self.level = level
        return records.Answer(message_id or "", digest(op, body), content)

    def pulse(self) -> int:
        """Let timers fire and decisions close that are due; returns FIRED_MAX if more may be."""
        if self.paused:
            return 0
        fired = self.watch.tick(self.mailroom.posted)
        if self.journal is None or self.journal.has_room:
            closed = self.rewards.close_due(int(self.now()))
            return FIRED_MAX if closed == CLOSE_MAX else fired
        return fired

    def stats(self) -> dict[str, Any]:
        """Counters of this shard, for /metrics and /v1/shards."""
        return (
            super().stats()
            | self.watch.counters()
            | self.mailroom.counters()
            | self.rewards.counters()
        )

    def _repeat(
        self, tenant: str, message_id: str, op: int, body: bytes, level: Level
    ) -> Answer | None:
        """The first answer to a message id, if there was one; 409 if the body is another."""
        first = self.dedupe.get(tenant, message_id)
        if first is None:
            return None
        if first.digest != digest(op, body):
            raise RequestError(
                409,
                "this messageId came before with another body",
                "messageId",
                repr(message_id),
                "the same body or a new messageId",
            )
        if not first.answer:
            raise RequestError(410, "the person was erased after this", "messageId", message_id)
        self.stages.duplicates += 1
        self.level = level
        return 200, at_level(first.answer, level).replace(_NEW, _REPEAT, 1)

    def _keep(self, record: Observed, row: int, moved: Moved) -> None:
        """Log what a request changed, and let follow what follows from it."""
        self.remember(record, row)
        self.log(record)
        self.watch.moved(record.key, moved)
        if record.contacted:
            self.contacted(record.tenant, record.key, record.now_s, record.contacted)
            self.mailroom.posted(record.contacted)
        self.rewards.open_all(record.opened)

    def _next_number(self) -> int:
        """The number of a call's first decision; it may have 16."""
        first = self._sequence
        self._sequence += 16
        return first


def hash_session(session: str | None) -> int:
    """A 32-bit number of a session id; tells one session of a person from the next. 0 = no id."""
    return 0 if session is None else digest(0, session.encode()) & 0xFFFFFFFF or 1
