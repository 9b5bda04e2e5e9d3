"""The part of `Shard` that is not the hot path: what it tells of people, decisions and itself."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import Any

import msgspec

from actors.admission import Admission
from actors.checked import decode
from actors.eviction import Evictor
from actors.hot_keys import KeySample
from actors.levels import level_of
from actors.messages import Person
from actors.people import Caller, person_key
from actors.profile import describe_profile
from actors.records import Forgotten
from actors.stages import Stages
from actors.state import ShardState
from actors.stats import describe_shard
from cluster.config import Config
from cluster.errors import RequestError
from cluster.keys import KeyRange
from cluster.levels import Level

Answer = tuple[int, bytes]
"""HTTP status, and JSON."""


class ShardReads(ShardState):
    """A shard's state, and what may be asked of it. Handlers take (caller, body, arrived_ns)."""

    def __init__(
        self,
        shard_id: str,
        key_range: KeyRange,
        config: Config,
        epoch: int = 1,
        now: Callable[[], float] = time,
    ) -> None:
        super().__init__(shard_id, key_range, config, epoch, now)
        self.stages = Stages()
        self.admission = Admission(
            int(config.queue_target_s * 1e9), int(config.queue_interval_s * 1e9)
        )
        self.evictor = Evictor(self)
        self.sample = KeySample()
        self.level: Level = config.level
        """What the answer that `handle` gave last has to wait for. Reads wait for every copy there
        is: what they saw must not be lost after they told of it."""
        self._encode = msgspec.json.Encoder().encode
        self._person_decoder = msgspec.json.Decoder(Person)

    def owned(self, caller: Caller, user_id: str | None, anonymous_id: str | None) -> bytes | None:
        """The person's key hash; None if another shard owns it."""
        key = person_key(caller, user_id, anonymous_id)
        place = int.from_bytes(key[:8], "big")
        if not self.key_range.start <= place < self.key_range.stop:
            return None
        self.sample.see(key)
        return key

    def moved(self) -> Answer:
        """The answer that tells of another owner."""
        return 421, b'{"epoch":%d}' % self.epoch

    def _profile_get(self, caller: Caller, body: bytes, _: int) -> Answer:
        person = decode(self._person_decoder, body)
        key = self.owned(caller, person.user_id, person.anonymous_id)
        if key is None:
            return self.moved()
        row = self.store.find(key)
        if row < 0:
            raise _no_profile()
        return 200, self._encode(describe_profile(self.store, row, self.tenant(caller.tenant)))

    def _profile_delete(self, caller: Caller, body: bytes, _: int) -> Answer:
        person = decode(self._person_decoder, body)
        key = self.owned(caller, person.user_id, person.anonymous_id)
        if key is None:
            return self.moved()
        self.level = level_of(None, caller, self.config.level, self.journal)
        # Somebody unknown is erased too, and it is no error: events may be under way, and in files
        # that are yet to be loaded.
        record = Forgotten(caller.tenant, key, int(self.now()))
        self.tombstones.check_room(key, record.now_s)
        known = self.erase(record)
        self.log(record)
        return 200, self._encode({"deleted": known})

    def _decision_get(self, caller: Caller, body: bytes, _: int) -> Answer:
        missing = RequestError(
            404, "no such decision", "decisionId", repr(body[:40].decode("utf-8", "replace"))
        )
        try:
            place, number = int(body[:16], 16), int(body[16:], 16)
        except ValueError:
            raise missing from None
        if not self.key_range.start <= place < self.key_range.stop:
            return self.moved()
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
        tenant = self.tenant(record.tenant)
        names, ids = tenant.event_types.names, tenant.catalogue.ids
        events = [
            {"event": names[kind]} | ({"itemId": ids[item]} if item >= 0 else {})
            for kind, item in record.events
        ]
        return 200, self._encode(
            answer["decisions"][index]
            | {
                "profileVersion": answer["profileVersion"],
                "decidedAt": record.time_s,
                "shardId": self.shard_id,
                "events": events,
                "reward": self._reward_of(number),
                "because": self.rewards.because(number),
            }
        )

    def _reward_of(self, number: int) -> dict[str, Any] | None:
        """What came of a decision of a policy so far; None if none is waited for or kept."""
        decisions = self.rewards.decisions
        waiting = decisions.get(number)
        found = waiting or decisions.closed(number)
        if found is None:
            return None
        values = dict(zip(found.slots, found.values, strict=True))
        return {
            "open": waiting is not None,
            "active": found.active,
            "closesAt": found.closes_s,
            "values": values,
        }

    def _decision_find(self, caller: Caller, body: bytes, _: int) -> Answer:
        """The first decision that a message made, by its message id."""
        person = decode(self._person_decoder, body)
        key = self.owned(caller, person.user_id, person.anonymous_id)
        if key is None:
            return self.moved()
        first = self.dedupe.get(caller.tenant, person.message_id or "")
        made = msgspec.json.decode(first.answer).get("decisions") if first is not None else None
        if not made:
            raise RequestError(404, "no such event is known", "eventId", repr(person.message_id))
        return 200, self._encode({"decisionId": made[0]["decisionId"]})

    def _books_get(self, caller: Caller, body: bytes, _: int) -> Answer:
        return 200, msgspec.json.encode(self.tenant(caller.tenant).books)

    def _item_get(self, caller: Caller, body: bytes, _: int) -> Answer:
        document = self.tenant(caller.tenant).catalogue.document(body.decode())
        if document is None:
            raise RequestError(404, "no such item", "id", repr(body.decode()))
        return 200, document

    def _stats(self, caller: Caller, body: bytes, _: int) -> Answer:
        return 200, self._encode(self.stats())

    def stats(self) -> dict[str, Any]:
        """Counters of this shard, for /metrics and /v1/shards."""
        return (
            describe_shard(self, self.stages, self.admission, self.evictor) | self.sample.report()
        )


def _no_profile() -> RequestError:
    return RequestError(404, "no such profile", "id", "", "the id of a person with a profile")
