"""A shard against a dict: any order of requests, refusals, erasures, evictions, restarts and moves.

500 lives of 50 steps, with `HYPOTHESIS=nightly` 20,000; either prints how to repeat a failure.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors.compact import compact
from actors.erasure import KEEP_S
from actors.extraction import take_range
from actors.incoming import FIRST_SEQ
from actors.journal import Journal
from actors.people import Caller, person_key
from actors.records import Evicted, Purging
from actors.recovery import drop_superfluous, recover
from actors.shard import Shard
from actors.snapshot import write_snapshot
from actors.wal import End
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange

NIGHTLY = os.environ.get("HYPOTHESIS") == "nightly"
NOW_S = 1_790_000_000
SERVER = Caller("s", "default")
CONFIG = Config(profiles_max=1024, profile_bytes_max=1 << 22, items_max=64, profile_ttl_s=5_000_000)
EVERYTHING = KeyRange(0, HASH_SPACE)
PEOPLE = st.sampled_from([f"u{number}" for number in range(6)])
IDS = st.one_of(st.none(), st.sampled_from([f"m{number}" for number in range(12)]))
NAMES = ("Searched", "Item Viewed", "mine", "Item Purchased")
ITEMS = ("i0", "i1", "i2")
TRAITS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.one_of(st.none(), st.integers(0, 9)), max_size=3
)
EVENTS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from((*ITEMS, None)), st.booleans()),
    min_size=0,
    max_size=4,
)
POISON = (
    b'{"userId":"u0","event":"e","properties":' + b'{"value":' * 3000 + b"1" + b"}" * 3001,
    b'{"userId":"u0","events":' + b"[" * 5000,
    b'{"userId":"u0","event":"e","properties":{"value":' + b"9" * 400 + b"}}",
    b'{"userId":"u0","event":"e","properties":{"value":NaN}}',
    b'{"userId":"u0","event":"e","properties":{"value":1e999}}',
    b'{"userId":"u0","event":"e","timestamp":-1e300}',
    b'{"userId":"u0","traits":{"a":' + b"[" * 40 + b"]" * 40 + b"}}",
    b'{"userId":"u0","event":"\xff\xfe"}',
    b'{"userId":0,"event":"e"}',
    b'{"userId":"u0","event":"e","durability":"replica"}',
    b'{"userId":"","event":"e"}',
    b"",
)


MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Files without a disk: what a sync leaves behind is not what is tested here."""


@dataclass
class Person:
    """What the model knows of somebody."""

    version: int = 0
    last_s: int = 0
    events: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    traits: dict[str, Any] = field(default_factory=dict)


class ShardAgainstDict(RuleBasedStateMachine):
    """The shard has a real log in a real folder; the model is dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="shard-model-", dir=MEMORY))
        self.now_s = float(NOW_S)
        self.day = 0
        self.people: dict[str, Person] = {}
        self.answers: dict[str, tuple[int, bytes, Any]] = {}
        self.erased: dict[str, int] = {}
        self.start()

    def start(self) -> None:
        self.shard = Shard("0", EVERYTHING, CONFIG, now=lambda: self.now_s)
        self.runner.run(self.logging(recover(self.shard, self.folder)))

    async def logging(self, end: End) -> None:
        self.shard.journal = Journal(self.folder, end, self.failed, segment_bytes=1 << 14)

    def failed(self, error: OSError) -> None:
        raise AssertionError(error)

    def teardown(self) -> None:
        assert self.shard.journal is not None
        self.shard.journal.close()
        self.runner.close()
        shutil.rmtree(self.folder)

    @initialize()
    def items(self) -> None:
        self.shard.put_items("default", msgspec.json.encode([{"id": item} for item in ITEMS]))

    def ask(self, op: Op, body: Any) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        status, answer = self.shard.handle(op, SERVER, raw, 0)
        return status, msgspec.json.decode(answer)

    def send(self, op: Op, body: dict[str, Any]) -> Any:
        """The answer, if the message was taken now; None if it is a repeat or another's id."""
        raw = msgspec.json.encode(body)
        status, answer = self.ask(op, raw)
        message_id = body.get("messageId")
        known = self.answers.get(message_id) if message_id else None
        if known is None:
            assert status == 200, answer
            assert answer["duplicate"] is False
            if message_id:
                self.answers[message_id] = (op, raw, answer)
            return answer
        if known[:2] != (op, raw):
            assert (status, answer["field"]) == (409, "messageId")
        elif known[2] is None:
            assert (status, answer["field"]) == (410, "messageId")
        else:
            assert (status, answer) == (200, known[2] | {"duplicate": True})
        return None

    @rule(person=PEOPLE, message_id=IDS, events=EVENTS, decides=st.booleans())
    def decide(self, person: str, message_id: str | None, events: list[Any], decides: bool) -> None:
        body: dict[str, Any] = {"userId": person}
        if message_id:
            body["messageId"] = f"{message_id}-{self.day}"
        body["events"] = [
            {"event": name}
            | ({"properties": {"itemId": item}} if item else {})
            | ({"timestamp": self.now_s * 1000} if stamped and person not in self.erased else {})
            for name, item, stamped in events
        ]
        body["decisions"] = [{"surface": "product"}] if decides else []
        answer = self.send(Op.DECIDE, body)
        if answer is None:
            return
        if events:
            one = self.people.setdefault(person, Person())
            one.version += len(events)
            one.last_s = max(one.last_s, int(self.now_s))
            one.events += [name for name, _, _ in events]
            one.items += [item for _, item, _ in events if item]
        assert answer["profileVersion"] == self.people.get(person, Person()).version
        assert len(answer["decisions"]) == decides
        assert answer["degraded"] is False

    @rule(person=PEOPLE, message_id=IDS, traits=TRAITS)
    def identify(self, person: str, message_id: str | None, traits: dict[str, Any]) -> None:
        body = {"userId": person, "traits": traits}
        if message_id:
            body["messageId"] = f"{message_id}-{self.day}"
        if self.send(Op.IDENTIFY, body) is None:
            return
        one = self.people.setdefault(person, Person(last_s=int(self.now_s)))
        one.version += 1
        merged = one.traits | traits
        one.traits = {name: value for name, value in merged.items() if value is not None}

    @rule(person=PEOPLE)
    def erase(self, person: str) -> None:
        known = self.people.pop(person, None) is not None
        answer = self.ask(Op.PROFILE_DELETE, {"userId": person})
        assert answer == (200, {"deleted": known})
        self.erased[person] = int(self.now_s)
        for message_id, (op, raw, answer) in list(self.answers.items()):
            told = msgspec.json.decode(raw)
            if told["userId"] == person and answer and answer.get("decisions"):
                self.answers[message_id] = (op, raw, None)
        self.now_s += 1

    @rule(person=PEOPLE, age_s=st.integers(0, 3600))
    def late(self, person: str, age_s: int) -> None:
        erased_s = self.erased.get(person)
        if erased_s is None or erased_s < self.now_s - KEEP_S or erased_s - age_s < NOW_S - 3600:
            return
        stamp = (erased_s - age_s) * 1000
        assert self.ask(Op.TRACK, {"userId": person, "event": "e", "timestamp": stamp})[0] == 410

    @rule(which=st.integers(0, len(POISON) - 1), op=st.sampled_from([Op.TRACK, Op.DECIDE]))
    def poison(self, which: int, op: Op) -> None:
        assert self.ask(op, POISON[which])[0] in (400, 422, 503)

    @rule(passed_s=st.sampled_from([1, 3600, 2_000_000]))
    def wait(self, passed_s: int) -> None:
        self.now_s += passed_s
        # After a day an id may be forgotten or not; new ones then.
        self.day += passed_s > 86400

    @rule()
    def sweep(self) -> None:
        before_s = int(self.now_s) - CONFIG.profile_ttl_s
        self.shard.sweep()
        self.people = {name: one for name, one in self.people.items() if one.last_s >= before_s}

    @rule(share=st.floats(0.0, 1.0))
    def evict(self, share: float) -> None:
        seen = sorted(one.last_s for one in self.people.values())
        if not seen:
            return
        until_s = seen[int(share * (len(seen) - 1))]
        record = Evicted(until_s, 0, 1000, 1)
        self.shard.forget_by_rule(record)
        kept = {n: p for n, p in self.people.items() if p.last_s > until_s or p.traits}
        self.people = kept

    @rule(snapshot=st.booleans())
    def restart(self, snapshot: bool) -> None:
        journal = self.shard.journal
        assert journal is not None
        if snapshot:
            journal.writer.seal()
            self.shard.log(Purging(int(self.now_s)))
        self.runner.run(journal.sync())
        if snapshot and compact(self.folder, CONFIG) is not None:
            drop_superfluous(self.folder)
        journal.close()
        self.start()
        self.shard.store.check()

    @rule(cut=st.floats(0.05, 0.95), merges=st.booleans())
    def hand_over(self, cut: float, merges: bool) -> None:
        """The keys move to a successor, or to two that are merged again, each with files of its
        own."""
        sources = [self.shard]
        if merges:
            edge = int(cut * HASH_SPACE)
            halves = (KeyRange(0, edge), KeyRange(edge, HASH_SPACE))
            sources = [self.successor(half, sources) for half in halves]
            assert sum(len(source.store) for source in sources) == len(self.people)
        folder = Path(tempfile.mkdtemp(prefix="shard-model-", dir=MEMORY))
        whole = self.successor(EVERYTHING, sources)
        end = End(FIRST_SEQ, 1, None, 0, 0)
        write_snapshot(whole, folder, end)
        assert self.shard.journal is not None
        self.shard.journal.close()
        shutil.rmtree(self.folder)
        self.shard, self.folder = whole, folder
        self.runner.run(self.logging(end))
        self.shard.store.check()

    def successor(self, key_range: KeyRange, sources: list[Shard]) -> Shard:
        target = Shard("0", key_range, CONFIG, now=lambda: self.now_s)
        for source in sources:
            take_range(target, source, source.key_range.start in key_range)
        return target

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        shard = self.shard
        assert len(shard.store) == len(self.people)
        for name, one in self.people.items():
            row = shard.store.find(person_key(SERVER, name, None))
            assert row >= 0, name
            assert shard.store.version(row) == one.version
            status, profile = self.ask(Op.PROFILE_GET, {"userId": name})
            assert status == 200
            assert profile["traits"] == one.traits
            assert profile["eventsTotal"] == len(one.events)
            assert [e["itemId"] for e in profile["events"]] == one.items[::-1][:50]
            assert set(profile["counters"]) == set(one.events)
        shard.dedupe.check()


ShardAgainstDict.TestCase.settings = settings(
    max_examples=20_000 if NIGHTLY else 500,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestShard = ShardAgainstDict.TestCase
TestShard.pytestmark = [pytest.mark.timeout(14_400 if NIGHTLY else 600)]  # type: ignore[attr-defined]
