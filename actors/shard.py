"""One shard: the owner of a key range. A request is deduped, applied and decided in one turn.

Plain Python without Ray, sockets or clock of its own. `handle` takes a frame's content and
returns a status and the bytes to send back; nothing in it awaits, so nothing interleaves.
A request is checked as a whole before anything changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter_ns, time

import msgspec
import numpy as np

from actors import records
from actors.checked import check_event, decode, refusal
from actors.contact import reach_of
from actors.contact_ops import ContactOps
from actors.context import codes_of
from actors.decide import plan
from actors.decisions import DecideAnswer, DecideRequest, Decision, Took
from actors.degraded import decide_each
from actors.late import check_time
from actors.ledger import OpenLedger
from actors.levels import level_of
from actors.messages import BODY_BYTES_MAX, problem
from actors.people import PUBLIC_ROLE, Caller
from actors.recent import digest
from actors.records import Observed
from actors.reward_ops import RewardOps
from actors.shard_events import ShardEvents, hash_session
from actors.shard_reads import Answer
from actors.state import DISK_FULL
from actors.surfaces.interface import Plan, Who
from actors.surfaces.outcomes import settle
from actors.tenant import Tenant
from actors.watch import Moved, Said
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


class Shard(ShardEvents):
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
        super().__init__(shard_id, key_range, config, epoch, now, rng)
        self._decide_decoder = msgspec.json.Decoder(DecideRequest)
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
        key = self.owned(caller, request.user_id, request.anonymous_id)
        if key is None:
            return self.moved()
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

    def _took(self, arrived_ns: int, started_ns: int, applied_ns: int) -> Took:
        """The stages of a decide call that is scored by now; they are counted."""
        queue_ns, update_ns = started_ns - arrived_ns, applied_ns - started_ns
        score_ns = perf_counter_ns() - applied_ns
        self.stages.record(queue_ns, update_ns, score_ns)
        return Took(queue_ns / 1e6, update_ns / 1e6, score_ns / 1e6)
