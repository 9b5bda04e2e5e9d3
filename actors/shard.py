"""One shard: the owner of a key range. A request is deduped, applied and decided in one turn.

Plain Python without Ray, sockets or clock of its own. `handle` takes a frame's content and
returns a status and the bytes to send back; nothing in it awaits, so nothing interleaves.
A request is checked as a whole before anything changes.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from time import perf_counter_ns, time
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors import events
from actors.checked import Applied, check_event, decode, refusal
from actors.decide import decide, plan
from actors.messages import (
    DecideAnswer,
    DecideRequest,
    Event,
    IdentifyRequest,
    PageRequest,
    Person,
    Took,
    TrackAnswer,
    TrackRequest,
    problem,
)
from actors.people import PUBLIC_ROLE, Caller, person_key
from actors.profile import describe_profile, merge_traits
from actors.recent import Answered, DecisionLog, DecisionRecord, DedupeWindow, digest
from actors.stages import Stages
from actors.store import ProfileStore
from actors.tenant import Tenant
from cluster.config import Config
from cluster.errors import RequestError, StoreFull
from cluster.frames import Op
from cluster.keys import KeyRange

LOG = logging.getLogger("onehop.actors")

Answer = tuple[int, bytes]
_PUBLIC_OPS = frozenset((Op.DECIDE, Op.TRACK, Op.PAGE, Op.IDENTIFY))
DURABILITY = "memory"
_NOBODY = -1
_NEW = b'{"duplicate":false'
_REPEAT = b'{"duplicate":true'


class Shard:
    """Owns the profiles of `key_range` and answers for them.

    now  the clock, seconds since 1970
    """

    def __init__(
        self,
        shard_id: str,
        key_range: KeyRange,
        config: Config,
        epoch: int = 1,
        now: Callable[[], float] = time,
    ) -> None:
        self.shard_id = shard_id
        self.key_range = key_range
        self.config = config
        self.epoch = epoch
        self.now = now
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
        self.stages = Stages()
        self.tenants: dict[str, Tenant] = {}
        # Sequence numbers of decisions: a random start keeps them apart across restarts.
        self._sequence = secrets.randbits(24) << 36
        self._encode = msgspec.json.Encoder().encode
        self._decide_decoder = msgspec.json.Decoder(DecideRequest)
        self._track_decoder = msgspec.json.Decoder(TrackRequest)
        self._identify_decoder = msgspec.json.Decoder(IdentifyRequest)
        self._page_decoder = msgspec.json.Decoder(PageRequest)
        self._person_decoder = msgspec.json.Decoder(Person)
        self._swept_to = 0
        self._handlers: dict[int, Callable[[Caller, bytes, int], Answer]] = {
            Op.DECIDE: self._decide,
            Op.TRACK: self._track,
            Op.PAGE: self._page,
            Op.IDENTIFY: self._identify,
            Op.PROFILE_GET: self._profile_get,
            Op.PROFILE_DELETE: self._profile_delete,
            Op.DECISION_GET: self._decision_get,
            Op.ITEM_GET: self._item_get,
            Op.STATS: self._stats,
        }

    def tenant(self, name: str) -> Tenant:
        """The state of a tenant, made when it is first named."""
        tenant = self.tenants.get(name)
        if tenant is None:
            if len(self.tenants) >= self.config.tenants_max:
                raise RequestError(
                    403, "too many tenants", "tenant", name, f"at most {self.config.tenants_max}"
                )
            tenant = self.tenants[name] = Tenant(name, self.store, self.config)
        return tenant

    def handle(self, op: int, caller: Caller, body: bytes, arrived_ns: int) -> Answer:
        """Answer one request: (HTTP status, JSON). Never raises for what a caller can send.

        arrived_ns  perf_counter_ns when the bytes came in
        """
        handler = self._handlers.get(op)
        if handler is None:
            return self.refuse(RequestError(400, "a shard does not answer this op", "op", str(op)))
        if caller.role == PUBLIC_ROLE and op not in _PUBLIC_OPS:
            return self.refuse(RequestError(403, "a public key may not do this"))
        try:
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
        message_id = request.message_id
        if message_id is not None:
            repeat = self._repeat(caller.tenant, message_id, Op.DECIDE, body)
            if repeat is not None:
                return repeat
        tenant = self.tenant(caller.tenant)
        now_s = self.now()
        future_s = self.config.event_future_s
        applied = [
            check_event(tenant, event, request.sent_at, now_s, future_s, f"events[{i}].")
            for i, event in enumerate(request.events)
        ]
        planned = [plan(tenant, spec) for spec in request.decisions]
        row = self._apply(tenant, key, applied, request.session_id, int(now_s))
        applied_ns = perf_counter_ns()
        first = self._sequence
        self._sequence += 16
        place = key[:8].hex()
        decisions = [
            decide(tenant, f"{place}{first + i:016x}", one, row, int(now_s))
            for i, one in enumerate(planned)
        ]
        scored_ns = perf_counter_ns()
        queue_ns, update_ns, score_ns = (
            started_ns - arrived_ns,
            applied_ns - started_ns,
            scored_ns - applied_ns,
        )
        answer = self._encode(
            DecideAnswer(
                False,
                self.store.version(row),
                DURABILITY,
                False,
                Took(queue_ns / 1e6, update_ns / 1e6, score_ns / 1e6),
                decisions,
            )
        )
        self.stages.record(queue_ns, update_ns, score_ns)
        if decisions:
            record = DecisionRecord(caller.tenant, key if row >= 0 else b"", int(now_s), answer)
            self.decisions.add(first, record)
        if message_id is not None:
            entry = Answered(int(now_s), digest(Op.DECIDE, body), answer)
            self.dedupe.add(caller.tenant, message_id, entry)
        return 200, answer

    def _owned(self, caller: Caller, user_id: str | None, anonymous_id: str | None) -> bytes | int:
        """The person's key hash, or _NOBODY if another shard owns it."""
        key = person_key(caller, user_id, anonymous_id)
        place = int.from_bytes(key[:8], "big")
        return key if self.key_range.start <= place < self.key_range.stop else _NOBODY

    def _moved(self) -> Answer:
        return 421, b'{"epoch":%d}' % self.epoch

    def _repeat(self, tenant: str, message_id: str, op: int, body: bytes) -> Answer | None:
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
        self.stages.duplicates += 1
        return 200, first.answer.replace(_NEW, _REPEAT, 1)

    def _apply(
        self, tenant: Tenant, key: bytes, applied: list[Applied], session: str | None, now_s: int
    ) -> int:
        """Apply checked events to the person; returns the row, -1 if there is no profile."""
        store = self.store
        row = store.find(key)
        if not applied:
            return row
        store.check_room(row, len(applied))
        if row < 0:
            row = store.ensure(key, applied[0].time_s)
        session_number = hash_session(session) if session else 0
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
                session_number,
                catalogue.attribute_ids,
            )
            if events.enters_ring(kind, item):
                tenant.engine.learn(row, item, kind, value, time_s)
                store.enter_ring(row, item, kind, value, time_s)
                if catalogue.embeddings is not None and weight > 0.0:
                    store.blend(row, item, catalogue.embeddings)
        self.stages.events += len(applied)
        return row

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

        def change(tenant: Tenant, key: bytes, now_s: float) -> int:
            future_s = self.config.event_future_s
            applied = check_event(tenant, event, request.sent_at, now_s, future_s, "")
            return self._apply(tenant, key, [applied], request.session_id, int(now_s))

        answer = self._once(caller, body, op, request, change)
        self.stages.record(started_ns - arrived_ns, perf_counter_ns() - started_ns, None)
        return answer

    def _identify(self, caller: Caller, body: bytes, arrived_ns: int) -> Answer:
        request = decode(self._identify_decoder, body)

        def change(tenant: Tenant, key: bytes, now_s: float) -> int:
            row = self.store.find(key)
            traits = merge_traits(self.store.traits(row) if row >= 0 else b"", request.traits)
            self.store.check_room(row, 1)
            row = self.store.ensure(key, int(now_s))
            self.store.set_traits(row, traits)
            self.store.bump(row)
            return row

        return self._once(caller, body, Op.IDENTIFY, request, change)

    def _once(
        self,
        caller: Caller,
        body: bytes,
        op: int,
        request: TrackRequest | PageRequest | IdentifyRequest,
        change: Callable[[Tenant, bytes, float], int],
    ) -> Answer:
        """Apply `change` if the message id is new; answer with the profile's version."""
        key = self._owned(caller, request.user_id, request.anonymous_id)
        if isinstance(key, int):
            return self._moved()
        if request.message_id is not None:
            repeat = self._repeat(caller.tenant, request.message_id, op, body)
            if repeat is not None:
                return repeat
        now_s = self.now()
        row = change(self.tenant(caller.tenant), key, now_s)
        answer = self._encode(TrackAnswer(False, self.store.version(row), DURABILITY))
        if request.message_id is not None:
            entry = Answered(int(now_s), digest(op, body), answer)
            self.dedupe.add(caller.tenant, request.message_id, entry)
        return 200, answer

    # Reading and forgetting.

    def _profile_get(self, caller: Caller, body: bytes, _: int) -> Answer:
        person = decode(self._person_decoder, body)
        key = self._owned(caller, person.user_id, person.anonymous_id)
        if isinstance(key, int):
            return self._moved()
        row = self.store.find(key)
        if row < 0:
            raise _no_profile()
        return 200, self._encode(describe_profile(self.store, row, self.tenant(caller.tenant)))

    def _profile_delete(self, caller: Caller, body: bytes, _: int) -> Answer:
        person = decode(self._person_decoder, body)
        key = self._owned(caller, person.user_id, person.anonymous_id)
        if isinstance(key, int):
            return self._moved()
        row = self.store.find(key)
        if row < 0:
            raise _no_profile()
        for tenant in self.tenants.values():
            tenant.engine.forget(row)
        self.store.remove(row)
        return 200, b'{"deleted":true}'

    def _decision_get(self, caller: Caller, body: bytes, _: int) -> Answer:
        missing = RequestError(
            404, "no such decision", "decisionId", repr(body[:40].decode("utf-8", "replace"))
        )
        try:
            place, number = int(body[:16], 16), int(body[16:], 16)
        except ValueError:
            raise missing from None
        if not self.key_range.start <= place < self.key_range.stop:
            return self._moved()
        record = self.decisions.get(number & ~15)
        # A foreign and a missing decision look the same; a forgotten person's is missing.
        if record is None or record.tenant != caller.tenant:
            raise missing
        if record.key and self.store.find(record.key) < 0:
            raise missing
        answer = msgspec.json.decode(record.answer)
        index = number & 15
        if index >= len(answer["decisions"]):
            raise missing
        return 200, self._encode(
            answer["decisions"][index]
            | {
                "profileVersion": answer["profileVersion"],
                "decidedAt": record.time_s,
                "shardId": self.shard_id,
            }
        )

    def _item_get(self, caller: Caller, body: bytes, _: int) -> Answer:
        document = self.tenant(caller.tenant).catalogue.document(body.decode())
        if document is None:
            raise RequestError(404, "no such item", "id", repr(body.decode()))
        return 200, document

    def _stats(self, caller: Caller, body: bytes, _: int) -> Answer:
        return 200, self._encode(self.stats())

    def stats(self) -> dict[str, Any]:
        """Counters of this shard, for /metrics and /v1/shards."""
        engines = sum(tenant.engine.bytes_used() for tenant in self.tenants.values())
        return {
            "shardId": self.shard_id,
            "epoch": self.epoch,
            "profiles": len(self.store),
            "profileBytes": self.store.bytes_used(),
            "bytesPerProfile": self.store.bytes_used() / max(len(self.store), 1),
            "events": self.store.events_total,
            "modelBytes": engines,
            "items": sum(tenant.catalogue.alive_count for tenant in self.tenants.values()),
            "dedupeIds": len(self.dedupe),
            "dedupeBytes": self.dedupe.bytes_used,
            "dedupeReachSeconds": self.dedupe.reach_s(int(self.now())),
            "decisionRecords": len(self.decisions),
            "decisionBytes": self.decisions.bytes_used,
            **self.stages.counters(),
        }

    def sweep(self) -> int:
        """Forget profiles past their time to live, a bounded part at a time."""
        before_s = int(self.now()) - self.config.profile_ttl_s
        forgotten, self._swept_to = self.store.expire(max(before_s, 0), self._swept_to)
        return forgotten

    # Warm start: columns that are in this shard's range already.

    def load_events(self, tenant_name: str, chunk: dict[str, NDArray[Any]]) -> int:
        """Apply many events at once, in order. Returns how many; raises StoreFull.

        chunk  key_hi, key_lo int64; item int32 (-1 = none); type uint8; value float32; time uint32
        """
        tenant = self.tenant(tenant_name)
        rows = self.store.ensure_many(chunk["key_hi"], chunk["key_lo"], chunk["time"])
        applied = len(rows)
        self.store.apply_many(
            rows,
            chunk["item"],
            chunk["type"],
            chunk["value"],
            chunk["time"],
            tenant.catalogue.attribute_ids,
        )
        acted = (chunk["item"] >= 0) & (chunk["type"] != events.IMPRESSION)
        if not acted.all():
            rows, chunk = rows[acted], {name: column[acted] for name, column in chunk.items()}
        items, kinds = chunk["item"], chunk["type"]
        tenant.engine.learn_batch(rows, items, kinds, chunk["value"], chunk["time"])
        if tenant.catalogue.embeddings is not None:
            self.store.blend_many(rows, items, kinds, tenant.catalogue.embeddings)
        return applied

    def load_profiles(
        self,
        tenant_name: str,
        key_hi: NDArray[np.int64],
        key_lo: NDArray[np.int64],
        traits: list[bytes],
    ) -> int:
        """Merge traits (JSON objects) into many profiles, created where missing."""
        self.tenant(tenant_name)
        times = np.full(len(key_hi), int(self.now()), np.uint32)
        rows = self.store.ensure_many(key_hi, key_lo, times)
        for row, document in zip(rows.tolist(), traits, strict=True):
            merged = merge_traits(self.store.traits(row), msgspec.json.decode(document))
            self.store.set_traits(row, merged)
            self.store.bump(row)
        return len(rows)


def hash_session(session: str) -> int:
    """A 32-bit number of a session id, never 0; tells one session of a person from the next."""
    return digest(0, session.encode()) & 0xFFFFFFFF or 1


def _no_profile() -> RequestError:
    return RequestError(404, "no such profile", "id", "", "the id of a person with a profile")
