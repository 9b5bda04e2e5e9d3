"""A decision that fails, or comes too late, costs neither the events nor the call."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

import msgspec
import pytest

from actors import records
from actors.ledger import Consent, Sticky, unpack
from actors.people import Caller, person_key
from actors.shard import Shard
from actors.surfaces.ranking import decide
from cluster.frames import Op
from tests.actors.list_journal import ListJournal
from tests.actors.test_recovery import NOW_S, contents, live, new_shard

SERVER = Caller("s", "default")
BODY: dict[str, Any] = {
    "userId": "new",
    "messageId": "x",
    "events": [{"event": "Item Viewed", "properties": {"itemId": "i3"}}],
    "decisions": [{"surface": "product", "numResults": 5}, {"surface": "product"}],
}


def lived_shard() -> tuple[Shard, ListJournal]:
    shard, journal = new_shard(), ListJournal()
    shard.journal = journal  # type: ignore[assignment]
    live(shard, [float(NOW_S)], 80, 3)
    return shard, journal


def ask(shard: Shard, body: Any, arrived_ns: int = 0) -> tuple[int, Any]:
    status, answer = shard.handle(Op.DECIDE, SERVER, msgspec.json.encode(body), arrived_ns)
    return status, msgspec.json.decode(answer)


def refuse(*_: object) -> None:
    raise KeyError("injected")


def most_popular(shard: Shard, allowed: set[str]) -> list[str]:
    tenant = shard.tenants["default"]
    counts = dict(zip(tenant.catalogue.ids, tenant.engine.counts.tolist(), strict=False))
    alive = {i for i in allowed if tenant.catalogue.alive[tenant.catalogue.numbers[i]]}
    return sorted(alive, key=lambda item: -counts[item])


def test_what_failed_is_answered_by_the_popular_and_a_repeat_counts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard, journal = lived_shard()
    before = shard.store.events_total
    with monkeypatch.context() as patched:
        patched.setattr("actors.surfaces.ranking.decide", refuse)
        status, answer = ask(shard, BODY)
    assert (status, answer["degraded"], answer["profileVersion"]) == (200, True, 1)
    everything = set(shard.tenants["default"].catalogue.ids)
    counts = shard.tenants["default"].engine.counts
    numbers = shard.tenants["default"].catalogue.numbers
    got = [entry["id"] for entry in answer["decisions"][0]["ranking"]]
    wanted = most_popular(shard, everything)[:5]
    assert [counts[numbers[i]] for i in got] == [counts[numbers[i]] for i in wanted]
    assert answer["decisions"][0]["policyId"] == "popular"
    # The engine works again; still the first answer is the answer.
    assert ask(shard, BODY) == (200, answer | {"duplicate": True})
    assert shard.store.events_total == before + 1
    assert shard.stats()["degraded"] == 1
    again = new_shard()
    for record in journal.records:
        again.replay(records.decode(record))
    assert contents(again) == contents(shard)


def test_one_failure_leaves_the_other_decisions_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard, _ = lived_shard()
    shard.handle(Op.DECIDE, SERVER, b'{"userId":"new"}', 0)
    _, whole = ask(shard, BODY | {"events": [], "messageId": "whole"})
    rank = type(shard.tenants["default"].vector).rank
    assert rank is not None
    with monkeypatch.context() as patched:
        patched.setattr("actors.engine.vector.VectorPolicy.rank", refuse)
        mixed = [BODY["decisions"][0], {"surface": "product", "policy": "vector"}]
        status, answer = ask(shard, BODY | {"events": [], "decisions": mixed, "messageId": "y"})
    assert (status, answer["degraded"], whole["degraded"]) == (200, True, False)
    assert answer["decisions"][0]["ranking"] == whole["decisions"][0]["ranking"]
    assert answer["decisions"][1]["policyId"] == "popular"


def test_the_cheap_answer_keeps_to_candidates_exclusions_filter_and_takedowns() -> None:
    shard, _ = lived_shard()
    shard.take_down("default", ["i4"])
    spec = {
        "surface": "product",
        "actions": ["i3", "i4", "i6", "i9", "i10", "nowhere"],
        "excludedActions": ["i6"],
        "filter": "category = 'c0'",
    }
    late = {"deadlineMs": 5, "decisions": [spec, spec | {"actions": None}]}
    status, answer = ask(shard, BODY | late, perf_counter_ns() - 6_000_000)
    assert (status, answer["degraded"]) == (200, True)
    first, second = answer["decisions"]
    assert {entry["id"] for entry in first["ranking"]} == {"i3", "i9"}
    assert first["rejected"] == [{"id": "nowhere", "rule": "unknown item"}]
    allowed = {f"i{n}" for n in range(0, 20, 3)} - {"i6"}
    assert {entry["id"] for entry in second["ranking"]} == set(most_popular(shard, allowed))


def test_a_deadline_that_is_kept_changes_nothing() -> None:
    shard, _ = lived_shard()
    _, answer = ask(shard, BODY | {"deadlineMs": 60_000}, perf_counter_ns())
    assert answer["degraded"] is False
    for wrong in (0, -1, 60_001, "soon"):
        status, problem = ask(shard, BODY | {"deadlineMs": wrong, "messageId": "z"})
        assert (status, problem["field"]) == (422, "deadlineMs")


def test_a_decision_that_fails_takes_its_changes_of_the_ledger_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard, journal = lived_shard()

    def spend(tenant: Any, decision_id: str, planned: Any, who: Any, explain: bool) -> Any:
        who.ledger.change().sticky[planned.spec.surface] = Sticky("a")
        if planned.spec.surface == "content":
            raise KeyError("injected")
        return decide(tenant, decision_id, planned, who, explain)

    surfaces = [{"surface": "product"}, {"surface": "content"}]
    monkeypatch.setattr("actors.surfaces.ranking.decide", spend)
    assert ask(shard, BODY | {"decisions": surfaces})[1]["degraded"] is True
    row = shard.store.find(person_key(SERVER, "new", None))
    assert unpack(shard.store.ledger(row)).sticky == {"product": Sticky("a")}
    assert ask(shard, BODY | {"decisions": surfaces[1:], "messageId": "y"})[0] == 200
    assert unpack(shard.store.ledger(row)).sticky == {"product": Sticky("a")}
    again = new_shard()
    for record in journal.records:
        again.replay(records.decode(record))
    assert contents(again) == contents(shard)


def test_decisions_whose_ledger_can_not_be_kept_do_not_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard, journal = lived_shard()

    def hoard(tenant: Any, decision_id: str, planned: Any, who: Any, explain: bool) -> Any:
        for number in range(500):
            who.ledger.change().consents[f"purpose {number}"] = Consent(True, 1)
        return decide(tenant, decision_id, planned, who, explain)

    before = shard.store.events_total
    monkeypatch.setattr("actors.surfaces.ranking.decide", hoard)
    status, answer = ask(shard, BODY)
    assert (status, answer["degraded"], shard.store.events_total) == (200, True, before + 1)
    assert [one["policyId"] for one in answer["decisions"]] == ["popular", "popular"]
    assert shard.store.ledger(shard.store.find(person_key(SERVER, "new", None))) == b""
    again = new_shard()
    for record in journal.records:
        again.replay(records.decode(record))
    assert contents(again) == contents(shard)
