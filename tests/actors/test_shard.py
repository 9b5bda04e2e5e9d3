"""A shard as its callers see it: what comes back, what changed, what did not."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import Item
from actors.people import Caller, person_key
from actors.shard import Shard
from cluster.config import Config
from cluster.errors import RequestError
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange

SERVER = Caller("s", "default")
BROWSER = Caller("p", "default")
NOW_S = 1_790_000_000
EVERYTHING = KeyRange(0, HASH_SPACE)
SMALL = Config(profiles_max=4096, profile_bytes_max=1 << 24, items_max=4096)


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


def new_shard(config: Config = SMALL, key_range: KeyRange = EVERYTHING, items: int = 50) -> Shard:
    shard = Shard("0", key_range, config, epoch=3, now=Clock())
    generator = np.random.default_rng(1)
    catalogue = shard.tenant("default").catalogue
    for i in range(items):
        embedding = generator.standard_normal(4).tolist()
        catalogue.put(Item(f"i{i}", {"category": f"c{i % 5}", "price": 1.0}, embedding))
    return shard


def ask(shard: Shard, op: Op, body: Any, caller: Caller = SERVER) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    status, answer = shard.handle(op, caller, raw, 0)
    return status, msgspec.json.decode(answer)


def view(item: str, **properties: Any) -> dict[str, Any]:
    return {"event": "Item Viewed", "properties": {"itemId": item, **properties}}


def state(shard: Shard) -> Any:
    """Everything that a refused request must leave as it was."""
    rows = int(shard.store.heap[8])
    return (
        len(shard.store),
        shard.store.events_total,
        shard.store.rows[:rows].tobytes(),
        shard.store.words[:4096].tobytes(),
        len(shard.dedupe),
        len(shard.decisions),
    )


def test_the_answer_to_an_event_equals_what_a_fresh_read_gives() -> None:
    shard = new_shard()
    generator = random.Random(7)
    changed = 0
    decisions = [{"surface": "product", "policy": p} for p in ("default", "vector")]
    for _ in range(300):
        person = {"userId": f"u{generator.randrange(20)}"}
        read = person | {"decisions": decisions}
        _, before = ask(shard, Op.DECIDE, read)
        _, answer = ask(shard, Op.DECIDE, read | {"events": [view(f"i{generator.randrange(50)}")]})
        _, after = ask(shard, Op.DECIDE, read)
        rankings = [[d["ranking"] for d in a["decisions"]] for a in (before, answer, after)]
        assert rankings[1] == rankings[2]
        assert answer["profileVersion"] == after["profileVersion"] == before["profileVersion"] + 1
        changed += rankings[0] != rankings[1]
    assert changed > 290


def test_vector_policy_ranks_by_the_dot_product_with_the_decayed_mean() -> None:
    shard = new_shard()
    embeddings = shard.tenant("default").catalogue.embeddings
    assert embeddings is not None
    generator = random.Random(3)
    person = np.zeros(4, np.float32)
    answer: Any = None
    for _ in range(30):
        item = generator.randrange(50)
        person = np.float32(0.9) * person + np.float32(0.1) * embeddings[item]
        _, answer = ask(
            shard,
            Op.DECIDE,
            {
                "userId": "ada",
                "events": [view(f"i{item}")],
                "decisions": [{"surface": "product", "policy": "vector", "numResults": 10}],
            },
        )
    scores = embeddings[:50] @ person
    best = np.argsort(-scores)[:10]
    ranking = answer["decisions"][0]["ranking"]
    assert [entry["id"] for entry in ranking] == [f"i{i}" for i in best]
    assert [entry["score"] for entry in ranking] == pytest.approx(scores[best].tolist(), rel=1e-4)


def test_a_repeat_gets_the_first_answer_and_counts_once() -> None:
    shard = new_shard()
    body = {
        "messageId": "m1",
        "userId": "ada",
        "events": [view("i1")],
        "decisions": [{"surface": "product"}],
    }
    _, first = ask(shard, Op.DECIDE, body)
    ask(shard, Op.TRACK, {"userId": "ada", **view("i2")})
    status, again = ask(shard, Op.DECIDE, body)
    assert status == 200
    assert again == first | {"duplicate": True}
    _, profile = ask(shard, Op.PROFILE_GET, {"userId": "ada"})
    assert profile["eventsTotal"] == 2


def test_the_same_message_id_with_another_body_is_refused() -> None:
    shard = new_shard()
    ask(shard, Op.TRACK, {"messageId": "m1", "userId": "ada", **view("i1")})
    before = state(shard)
    status, answer = ask(shard, Op.TRACK, {"messageId": "m1", "userId": "ada", **view("i2")})
    assert (status, answer["field"]) == (409, "messageId")
    assert state(shard) == before


def test_a_message_id_of_another_tenant_is_another_message() -> None:
    shard = new_shard()
    body = {"messageId": "m1", "userId": "ada", "event": "Searched"}
    ask(shard, Op.TRACK, body)
    _, answer = ask(shard, Op.TRACK, body, Caller("s", "other"))
    assert not answer["duplicate"]


def test_dedupe_window_is_bounded_by_bytes_and_by_age() -> None:
    shard = new_shard(msgspec.structs.replace(SMALL, dedupe_bytes_max=1 << 16, dedupe_window_s=60))
    for i in range(2000):
        ask(shard, Op.TRACK, {"messageId": f"m{i}", "userId": "ada", "event": "Searched"})
    assert shard.dedupe.bytes_used <= 1 << 16
    shard.now.now_s += 61  # type: ignore[attr-defined]
    for i in range(400):
        ask(shard, Op.TRACK, {"messageId": f"n{i}", "userId": "ada", "event": "Searched"})
    assert shard.dedupe.get("default", "m1999") is None


def test_another_range_is_answered_with_moved_and_our_epoch() -> None:
    shard = new_shard(key_range=KeyRange(0, 1))
    assert ask(shard, Op.TRACK, {"userId": "ada", "event": "Searched"}) == (421, {"epoch": 3})
    assert ask(shard, Op.PROFILE_GET, {"userId": "ada"}) == (421, {"epoch": 3})
    assert ask(shard, Op.DECISION_GET, b"f" * 32) == (421, {"epoch": 3})


def test_a_public_key_may_not_speak_for_a_user() -> None:
    shard = new_shard()
    status, answer = ask(shard, Op.TRACK, {"userId": "ada", "event": "Searched"}, BROWSER)
    assert (status, answer["field"]) == (403, "userId")
    status, _ = ask(shard, Op.TRACK, {"anonymousId": "a1", "event": "Searched"}, BROWSER)
    assert status == 200


@pytest.mark.parametrize("op", [Op.PROFILE_GET, Op.PROFILE_DELETE, Op.DECISION_GET, Op.ITEM_GET])
def test_a_public_key_may_not_read_or_delete(op: Op) -> None:
    shard = new_shard()
    ask(shard, Op.TRACK, {"anonymousId": "a1", "event": "Searched"}, BROWSER)
    before = state(shard)
    status, _ = ask(shard, op, {"anonymousId": "a1"}, BROWSER)
    assert status == 403
    assert state(shard) == before


def test_user_and_anonymous_ids_and_tenants_are_kept_apart() -> None:
    shard = new_shard()
    for body, caller in (
        ({"userId": "x"}, SERVER),
        ({"anonymousId": "x"}, SERVER),
        ({"userId": "x"}, Caller("s", "other")),
    ):
        ask(shard, Op.TRACK, body | {"event": "Searched"}, caller)
    assert len(shard.store) == 3


BAD_BODIES: list[tuple[Op, Any, int, str]] = [
    (Op.DECIDE, b"", 400, ""),
    (Op.DECIDE, b"{", 400, ""),
    (Op.DECIDE, b"[]", 422, ""),
    (Op.DECIDE, b'{"userId":"a","x":1}', 422, ""),
    (Op.DECIDE, b'{"userId":"\xff"}', 400, ""),
    (Op.TRACK, b'{"userId":"a","event":"e","unused":"\xff"}', 400, ""),
    (Op.TRACK, b'{"userId":"a","event":"e","properties":{"value":NaN}}', 400, ""),
    (Op.TRACK, b'{"userId":"a","event":"e","properties":{"value":1e999}}', 422, "properties.value"),
    (Op.TRACK, b'{"userId":"a","event":"e","properties":{"value":-1e16}}', 422, "properties.value"),
    (Op.TRACK, b'{"userId":"a","event":"e","timestamp":' + b"9" * 30 + b"}", 422, "timestamp"),
    (Op.TRACK, b'{"userId":"a","event":"e","x":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, ""),
    (Op.TRACK, {"userId": "", "event": "e"}, 422, "userId"),
    (Op.TRACK, {"userId": "a\0b", "event": "e"}, 422, "userId"),
    (Op.TRACK, {"userId": "é" * 129, "event": "e"}, 422, "userId"),
    (Op.TRACK, {"event": "e"}, 422, "userId"),
    (Op.TRACK, {"userId": "a", "event": ""}, 422, "event"),
    (Op.TRACK, {"userId": "a", "event": 5}, 422, "event"),
    (Op.TRACK, {"userId": "a", "event": "e", "messageId": ""}, 422, "messageId"),
    (Op.TRACK, {"userId": "a", "event": "e", "timestamp": "1999-12-31"}, 422, "timestamp"),
    (Op.TRACK, {"userId": "a", "event": "e", "timestamp": "soon"}, 422, "timestamp"),
    (Op.TRACK, {"userId": "a", "event": "e", "timestamp": 1e300}, 422, "timestamp"),
    (Op.TRACK, {"userId": "a", "event": "e", "timestamp": "9999-12-31"}, 422, "timestamp"),
    (Op.TRACK, {"userId": "a", **view("nope")}, 422, "properties.itemId"),
    (
        Op.DECIDE,
        {"userId": "a", "events": [view("i1"), view("x")]},
        422,
        "events[1].properties.itemId",
    ),
    (Op.DECIDE, {"userId": "a", "decisions": [{"surface": "shelf"}]}, 422, "decisions[0].surface"),
    (Op.DECIDE, {"userId": "a", "decisions": [{}]}, 422, "decisions[0]"),
    (
        Op.DECIDE,
        {"userId": "a", "decisions": [{"surface": "content", "numResults": 0}]},
        422,
        "decisions[0].numResults",
    ),
    (
        Op.DECIDE,
        {"userId": "a", "decisions": [{"surface": "content", "actions": []}]},
        422,
        "decisions[0].actions",
    ),
    (Op.IDENTIFY, {"userId": "a", "traits": []}, 422, "traits"),
    (Op.IDENTIFY, {"userId": "a", "traits": {"long": "x" * 5000}}, 422, "traits"),
    (Op.IDENTIFY, {"userId": "a", "traits": {str(i): 1 for i in range(300)}}, 422, "traits"),
    (Op.PROFILE_GET, {"userId": "nobody"}, 404, "id"),
    (Op.DECISION_GET, b"zz", 404, "decisionId"),
    (Op.DECISION_GET, b"0" * 32, 404, "decisionId"),
    (Op.DECISION_GET, b"\xff" * 32, 404, "decisionId"),
    (Op.ITEM_GET, b"nope", 404, "id"),
    (Op.ITEM_GET, b"\xff", 400, ""),
    (Op.HELLO, b"", 400, "op"),
]


@pytest.mark.parametrize(("op", "body", "status", "field"), BAD_BODIES)
def test_bad_input_is_a_problem_that_names_the_field_and_changes_nothing(
    op: Op, body: Any, status: int, field: str
) -> None:
    shard = new_shard()
    ask(shard, Op.TRACK, {"userId": "ada", **view("i1")})
    before = state(shard)
    got_status, problem = ask(shard, op, body)
    assert (got_status, problem["status"], problem.get("field", "")) == (status, status, field)
    assert problem["title"]
    assert state(shard) == before
    shard.store.check()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "userId",
                    "anonymousId",
                    "messageId",
                    "event",
                    "events",
                    "properties",
                    "itemId",
                    "decisions",
                    "surface",
                    "actions",
                    "timestamp",
                    "traits",
                    "value",
                    "sentAt",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(
    op=st.sampled_from(list(Op)),
    body=json_values.map(lambda value: repr(value).replace("'", '"').encode())
    | json_values.map(lambda v: msgspec.json.encode(v))
    | st.binary(max_size=60),
    caller=st.sampled_from([SERVER, BROWSER]),
)
def test_any_bytes_get_an_answer_and_never_a_500(op: Op, body: bytes, caller: Caller) -> None:
    status, answer = SHARED.handle(op, caller, body, 0)
    assert status in (200, 400, 403, 404, 409, 421, 422), (status, answer)
    msgspec.json.decode(answer)


SHARED = new_shard()


def test_unknown_and_excluded_candidates_are_left_out_and_named() -> None:
    shard = new_shard()
    spec = {
        "surface": "product",
        "actions": ["i1", {"id": "i2"}, "ghost", "i3", "i3"],
        "excludedActions": ["i1", "never heard of"],
    }
    _, answer = ask(shard, Op.DECIDE, {"userId": "a", "decisions": [spec]})
    decision = answer["decisions"][0]
    assert sorted(r["id"] for r in decision["ranking"]) == ["i2", "i3"]
    assert decision["rejected"] == [{"id": "ghost", "rule": "unknown item"}]


def test_content_is_not_shown_twice_but_products_may_be() -> None:
    shard = new_shard(items=5)
    ask(shard, Op.DECIDE, {"userId": "a", "events": [view("i1"), view("i2")]})
    shown = {}
    for surface in ("content", "product"):
        body = {"userId": "a", "decisions": [{"surface": surface}]}
        _, answer = ask(shard, Op.DECIDE, body)
        shown[surface] = {entry["id"] for entry in answer["decisions"][0]["ranking"]}
    assert shown["content"] == {"i0", "i3", "i4"}
    assert {"i1", "i2"} <= shown["product"]


def test_a_taken_down_item_is_never_decided_for() -> None:
    shard = new_shard(items=5)
    ask(shard, Op.DECIDE, {"userId": "a", "events": [view("i1")]})
    shard.tenant("default").catalogue.take_down("i1")
    for policy in ("default", "vector"):
        spec = {"surface": "product", "policy": policy}
        _, answer = ask(shard, Op.DECIDE, {"userId": "a", "decisions": [spec]})
        ids = {entry["id"] for entry in answer["decisions"][0]["ranking"]}
        assert "i1" not in ids
        assert len(ids) == 4


def test_a_decision_is_found_by_its_id_and_only_by_its_tenant() -> None:
    shard = new_shard()
    body = {"userId": "a", "events": [view("i1")], "decisions": [{"surface": "product"}] * 2}
    _, answer = ask(shard, Op.DECIDE, body)
    for decision in answer["decisions"]:
        decision_id = decision["decisionId"].encode()
        _, record = ask(shard, Op.DECISION_GET, decision_id)
        assert decision.items() <= record.items()
        assert record["profileVersion"] == answer["profileVersion"]
        assert ask(shard, Op.DECISION_GET, decision_id, Caller("s", "other"))[0] == 404
    ask(shard, Op.PROFILE_DELETE, {"userId": "a"})
    assert ask(shard, Op.DECISION_GET, decision_id)[0] == 404


def test_deleting_forgets_the_person() -> None:
    shard = new_shard()
    ask(shard, Op.IDENTIFY, {"userId": "a", "traits": {"plan": "gold"}})
    assert ask(shard, Op.PROFILE_DELETE, {"userId": "a"}) == (200, {"deleted": True})
    assert ask(shard, Op.PROFILE_GET, {"userId": "a"})[0] == 404
    assert ask(shard, Op.PROFILE_DELETE, {"userId": "a"}) == (200, {"deleted": False})
    shard.store.check()


def test_traits_merge_and_null_removes() -> None:
    shard = new_shard()
    ask(shard, Op.IDENTIFY, {"userId": "a", "traits": {"plan": "gold", "age": 3}})
    ask(shard, Op.IDENTIFY, {"userId": "a", "traits": {"age": None, "city": "Ulm"}})
    _, profile = ask(shard, Op.PROFILE_GET, {"userId": "a"})
    assert profile["traits"] == {"plan": "gold", "city": "Ulm"}


def test_a_purchase_adds_its_revenue_and_late_events_keep_last_seen() -> None:
    shard = new_shard()
    for revenue, at in ((30.0, NOW_S), (12.5, NOW_S - 86400)):
        event = {"event": "Order Completed", "properties": {"revenue": revenue}, "timestamp": at}
        ask(shard, Op.TRACK, {"userId": "a", **event})
    _, profile = ask(shard, Op.PROFILE_GET, {"userId": "a"})
    assert (profile["money"], profile["lastSeen"]) == (42.5, NOW_S)


def test_sent_at_sets_a_wrong_client_clock_right() -> None:
    shard = new_shard()
    wrong = NOW_S - 500_000
    body = {"userId": "a", "event": "Searched", "timestamp": wrong - 60, "sentAt": wrong}
    ask(shard, Op.TRACK, body)
    _, profile = ask(shard, Op.PROFILE_GET, {"userId": "a"})
    assert profile["lastSeen"] == NOW_S - 60


def test_a_full_store_refuses_with_503_and_goes_on_for_known_people() -> None:
    # Whom nothing protects would leave to make room.
    full = msgspec.structs.replace(SMALL, profiles_max=1024, evict_protects="traits")
    shard = new_shard(full)
    for i in range(1024):
        assert ask(shard, Op.IDENTIFY, {"userId": f"u{i}", "traits": {"plan": "pro"}})[0] == 200
    assert ask(shard, Op.TRACK, {"userId": "one more", "event": "Searched"})[0] == 503
    assert ask(shard, Op.TRACK, {"userId": "u5", **view("i1")})[0] == 200
    shard.store.check()


def test_deciding_alone_makes_no_profile() -> None:
    shard = new_shard()
    _, answer = ask(shard, Op.DECIDE, {"userId": "a", "decisions": [{"surface": "product"}]})
    assert (answer["profileVersion"], len(shard.store)) == (0, 0)
    assert len(answer["decisions"][0]["ranking"]) == 10


def test_sweep_forgets_who_was_not_seen_for_the_time_to_live() -> None:
    shard = new_shard(msgspec.structs.replace(SMALL, profile_ttl_s=100))
    ask(shard, Op.TRACK, {"userId": "old", "event": "Searched"})
    shard.now.now_s += 101  # type: ignore[attr-defined]
    ask(shard, Op.TRACK, {"userId": "new", "event": "Searched"})
    assert shard.sweep() == 1
    assert ask(shard, Op.PROFILE_GET, {"userId": "new"})[0] == 200


def test_loaded_events_give_the_profiles_that_tracked_ones_give() -> None:
    tracked, loaded = new_shard(), new_shard()
    generator = random.Random(11)
    rows = [(f"u{generator.randrange(9)}", generator.randrange(50), 1 + i % 4) for i in range(300)]
    names = ("Item Viewed", "Item Clicked", "Item Added", "Impression")
    for i, (person, item, kind) in enumerate(rows):
        event = view(f"i{item}") | {"event": names[kind - 1], "timestamp": NOW_S - 300 + i}
        ask(tracked, Op.TRACK, {"userId": person, **event})
    numbers = [tracked.tenant("default").event_types.number(names[kind - 1]) for _, _, kind in rows]
    keys = np.frombuffer(b"".join(person_key(SERVER, p, None) for p, _, _ in rows), ">i8")
    halves = keys.astype(np.int64).reshape(-1, 2)
    loaded.loads.events(
        "chunk",
        "default",
        {
            "key_hi": halves[:, 0].copy(),
            "key_lo": halves[:, 1].copy(),
            "item": np.array([item for _, item, _ in rows], np.int32),
            "type": np.array(numbers, np.uint8),
            "value": np.zeros(300, np.float32),
            "time": np.arange(NOW_S - 300, NOW_S, dtype=np.uint32),
        },
    )
    for person in {p for p, _, _ in rows}:
        body = {"userId": person}
        assert ask(loaded, Op.PROFILE_GET, body) == ask(tracked, Op.PROFILE_GET, body)
    loaded.store.check()


def test_an_item_id_with_a_nul_is_refused() -> None:
    catalogue = new_shard().tenant("default").catalogue
    with pytest.raises(RequestError, match="NUL") as refused:
        catalogue.put(Item("a\0b"))
    assert (refused.value.status, refused.value.field) == (422, "id")
    assert "a\0b" not in catalogue.numbers
