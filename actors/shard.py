"""One shard: the owner of a key range. A request is deduped, applied and decided in one turn.

Plain Python without Ray, sockets or clock of its own. `handle` takes a frame's content and
returns a status and the bytes to send back; nothing in it awaits, so nothing interleaves.
A request is checked as a whole before anything changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter_ns, time
from typing import Any

import msgspec
import numpy as np

from actors import records
from actors.checked import check_event, decode, refusal
from actors.contact import reach_of
from actors.contact_ops import ContactOps
from actors.context import NO_CODES, codes_of
from actors.decide import plan
from actors.decisions import DecideAnswer, DecideRequest, Decision, Took
from actors.degraded import decide_each
from actors.late import check_time
from actors.ledger import OpenLedger
from actors.levels import at_level, level_of
from actors.mailroom import Mailroom
from actors.messages import (
    BODY_BYTES_MAX,
    Event,
    IdentifyRequest,
    PageRequest,
    TrackAnswer,
    TrackRequest,
    problem,
)
from actors.people import PUBLIC_ROLE, Caller
from actors.profile import merge_traits
from actors.recent import digest
from actors.records import (
    Identified,
    Observed,
)
from actors.reward_ops import RewardOps
from actors.rewards import CLOSE_MAX
from actors.shard_reads import Answer, ShardReads
from actors.state import DISK_FULL
from actors.surfaces.interface import Plan, Who
from actors.surfaces.outcomes import settle
from actors.tenant import Tenant
from actors.watch import FIRED_MAX, Moved, Said, Watch
from cluster.config import Config
from cluster.errors import RequestError, StoreFull
from cluster.frames import Op
from cluster.keys import KeyRange
from cluster.levels import Level

LOG = logging.getLogger("onehop.actors")

_WRITE_OPS = frozenset((Op.DECIDE, Op.TRACK, Op.PAGE, Op.IDENTIFY, Op.PROFILE_DELETE)) | {
    *(Op.CONSENTS_PUT, Op.SUPPRESS, Op.ACKNOWLEDGE, Op.REDRIVE, Op.DISCARD),
    *(Op.REWARD, Op.ACTIVATE),
}
_PUBLIC_OPS = frozenset(
    (Op.DECIDE, Op.TRACK, Op.PAGE, Op.IDENTIFY, Op.ACKNOWLEDGE, Op.REWARD, Op.ACTIVATE)
)
OVERLOADED = problem(RequestError(429, "the owner has more to do than time, retry after a pause"))
_NEW = b'{"duplicate":false'
_REPEAT = b'{"duplicate":true'


class _Opened(msgspec.Struct, frozen=True):
    """A request that is neither a repeat nor another shard's."""

    key: bytes
    now_s: float
    level: Level


class Shard(ShardReads):
    """Owns the profiles of `key_range` and answers for them.

    now  the clock, seconds since 1970
    rng  what chance decides here, choices and numbers of decisions; by default seeded by the system
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
        self._decide_decoder = msgspec.json.Decoder(DecideRequest)
        self._track_decoder = msgspec.json.Decoder(TrackRequest)
        self._identify_decoder = msgspec.json.Decoder(IdentifyRequest)
        self._page_decoder = msgspec.json.Decoder(PageRequest)
        self.watch = Watch(self, self._next_number, self._rng)
        self.mailroom = Mailroom(self)
        contact_ops = ContactOps(self, self, self.mailroom)
        self._handlers: dict[int, Callable[[Caller, bytes, int], Answer]] = {
            **contact_ops.handlers,
            **RewardOps(self).handlers,
            Op.DECIDE: self._decide,
            Op.TRACK: self._track,
            Op.PAGE: self._page,
            Op.IDENTIFY: self._identify,
            Op.PROFILE_GET: self._profile_get,
            Op.PROFILE_DELETE: self._profile_delete,
            Op.DECISION_GET: self._decision_get,
            Op.ITEM_GET: self._item_get,
            Op.BOOKS_GET: self._books_get,
            Op.DECISION_FIND: self._decision_find,
            Op.STATS: self._stats,
        }

    @property
    def read_level(self) -> Level:
        """What the answer to a read has to wait for."""
        return self.config.level if self.journal is None else self.journal.read_level

    def admits(self, wait_ns: int, now_ns: int) -> bool:
        """Whether to answer a request that waited so long, or to refuse it with OVERLOADED."""
        if self.journal is not None and self.journal.behind:
            self.admission.shed += 1
            return False
        return self.admission.admits(wait_ns, now_ns)

    def handle(self, op: int, caller: Caller, body: bytes, arrived_ns: int) -> Answer:
        """Answer one request: (HTTP status, JSON). Never raises for what a caller can send.

        arrived_ns  perf_counter_ns when the bytes came in
        """
        self.level = self.read_level
        handler = self._handlers.get(op)
        if handler is None:
            return self.refuse(RequestError(400, "a shard does not answer this op", "op", str(op)))
        if caller.role == PUBLIC_ROLE and op not in _PUBLIC_OPS:
            return self.refuse(RequestError(403, "a public key may not do this"))
        if len(body) > BODY_BYTES_MAX:
            # Its answer might not fit a frame, and that would end the connection for all on it.
            seen, wanted = f"{len(body)} bytes", f"at most {BODY_BYTES_MAX} bytes"
            return self.refuse(RequestError(413, "the body is too large", "", seen, wanted))
        if self.journal is not None and not self.journal.has_room and op in _WRITE_OPS:
            return self.refuse(RequestError(503, DISK_FULL))
        try:
            events_total = self.store.events_total
            try:
                return handler(caller, body, arrived_ns)
            except StoreFull:
                # Only what has changed nothing may be done again.
                if self.store.events_total != events_total or not self.evictor.step():
                    raise
                return handler(caller, body, arrived_ns)
        except RequestError as error:
            return self.refuse(error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self.refuse(refusal(error, body))
        except StoreFull as error:
            return self.refuse(RequestError(503, str(error)))
        except Exception:
            # A bug in one request must not end the connection that carries the others.
            LOG.exception("shard %s: op %d failed", self.shard_id, op)
            return self.refuse(RequestError(500, "the shard failed on this request"))

    def refuse(self, error: RequestError) -> Answer:
        """The answer that tells of an error."""
        self.stages.refused += 1
        return error.status, problem(error)

    # The hot path.

    def _decide(self, caller: Caller, body: bytes, arrived_ns: int) -> Answer:
        started_ns = perf_counter_ns()
        request = decode(self._decide_decoder, body)
        key = self._owned(caller, request.user_id, request.anonymous_id)
        if isinstance(key, int):
            return self._moved()
        level = level_of(request.durability, caller, self.config.level, self.journal)
        message_id = request.message_id
        if message_id is not None:
            repeat = self._repeat(caller.tenant, message_id, Op.DECIDE, body, level)
            if repeat is not None:
                return repeat
        tenant = self.tenant(caller.tenant)
        now_s = self.now()
        future_s = self.config.event_future_s
        applied = [
            check_event(tenant, event, request.sent_at, now_s, future_s, f"events[{i}].")
            for i, event in enumerate(request.events)
        ]
        stamps = [(e.timestamp, one.time_s) for e, one in zip(request.events, applied, strict=True)]
        check_time(self, key, request, stamps, now_s)
        planned = [
            plan(tenant, spec, f"decisions[{i}].") for i, spec in enumerate(request.decisions)
        ]
        session = hash_session(request.session_id)
        context = codes_of(request.context)
        row = self.apply_events(tenant, key, applied, session, context)
        applied_ns = perf_counter_ns()
        first = self._next_number()
        place = key[:8].hex()
        ids = [f"{place}{first + i:016x}" for i in range(len(planned))]
        ledger = OpenLedger(self.store, row)
        reach = reach_of(caller.tenant, request.user_id, request.anonymous_id)
        known = (ledger, key, request.context, reach)
        who = Who(self.store, row, int(now_s), context, self._rng, *known)
        said = Said(request.events, applied, body)
        decisions, cheap, moved, changed = self._make(
            tenant, request, said, who, dict(zip(ids, planned, strict=True)), arrived_ns
        )
        row = row if changed is None else self.store.find(key)
        self.stages.degraded += cheap > 0
        took = self._took(arrived_ns, started_ns, applied_ns)
        version = self.store.version(row)
        if self.journal is not None:
            self.journal.rouse()
        answer = self._encode(DecideAnswer(False, version, level, cheap > 0, took, decisions))
        self.level = level
        kept = records.Answer(message_id or "", digest(Op.DECIDE, body), answer)
        opened = ledger.opened
        if request.defer_activation:
            opened = [one._replace(active=False) for one in opened]
        record = Observed(
            *(caller.tenant, key, session, int(now_s), applied, first if decisions else 0, kept),
            context.tolist(),
            changed,
            ledger.effects,
            ledger.contacted,
            self.rewards.waiting(caller.tenant, key, opened, int(now_s)),
        )
        self._keep(record, row, moved)
        return 200, answer

    def _make(
        self,
        tenant: Tenant,
        request: DecideRequest,
        said: Said,
        who: Who,
        planned: dict[str, Plan],
        arrived_ns: int,
    ) -> tuple[list[Decision], int, Moved, bytes | None]:
        """The decisions by their ids, how many are baselines for want of better, the timers that
        moved, and the person's ledger if it changed."""
        ledger, now_s = who.ledger, who.now_s
        unchanged = ledger.mark()
        if who.row >= 0 and said.applied:
            self.stages.quotes_missing += settle(
                tenant, ledger, request.events, said.applied, now_s
            )
        deadline_ms = request.deadline_ms
        decisions, cheap = decide_each(
            tenant,
            planned,
            who,
            request.explain,
            None if deadline_ms is None else arrived_ns + int(deadline_ms * 1e6),
        )
        try:
            moved = self.watch.observe(tenant, said, who, decisions)
            changed = self.store_ledger(tenant, who.key, ledger, now_s)
        except Exception:
            # What the decisions rest on can't be kept, so they can't stand.
            LOG.exception("shard %s can't keep a ledger", self.shard_id)
            ledger.back_to(unchanged)
            cheaper = [one.cheap(tenant, decision_id, who) for decision_id, one in planned.items()]
            return cheaper, len(planned), [], None
        return decisions, cheap, moved, changed

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

    def _took(self, arrived_ns: int, started_ns: int, applied_ns: int) -> Took:
        """The stages of a decide call that is scored by now; they are counted."""
        queue_ns, update_ns = started_ns - arrived_ns, applied_ns - started_ns
        score_ns = perf_counter_ns() - applied_ns
        self.stages.record(queue_ns, update_ns, score_ns)
        return Took(queue_ns / 1e6, update_ns / 1e6, score_ns / 1e6)

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

    # Segment's calls.

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
        key = self._owned(caller, request.user_id, request.anonymous_id)
        if isinstance(key, int):
            return self._moved()
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


def hash_session(session: str | None) -> int:
    """A 32-bit number of a session id; tells one session of a person from the next. 0 = no id."""
    return 0 if session is None else digest(0, session.encode()) & 0xFFFFFFFF or 1
