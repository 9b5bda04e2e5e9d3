"""The surface communication: rules before the choice, contacts counted, what we send is queued."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.shard import Shard
from cluster.frames import Op
from tests.actors.test_shard import ask
from tests.actors.test_watch import CART, data, messages, passed, put, reborn, watching


def decide(shard: Shard, person: str = "ada", **spec: Any) -> dict[str, Any]:
    request = {"userId": person, "decisions": [{"surface": "communication"} | spec]}
    status, answer = ask(shard, Op.DECIDE, request)
    assert status == 200, answer
    decision: dict[str, Any] = answer["decisions"][0]
    return decision


def test_without_a_policy_the_first_that_is_allowed_is_taken_and_the_caller_sends() -> None:
    shard = watching()
    decision = decide(shard, channels=["push", "email"], templates=["hello"])
    assert (decision["send"], decision["channel"], decision["template"]) == (True, "push", "hello")
    assert decision["sendAt"] == "2026-09-21T14:13:20Z"
    assert decision["queued"] is False
    assert messages(shard) == []
    cap = {"max": 1, "per": "P1D", "channel": "push"}
    decision = decide(shard, channels=["push", "email"], frequencyCap=cap)
    assert decision["channel"] == "email"
    assert decision["rejected"] == [{"id": "push", "rule": "frequency cap: 1 per P1D by push"}]


def test_nothing_is_sent_when_every_channel_is_forbidden_and_the_answer_says_why() -> None:
    shard = watching()
    decision = decide(shard, channels=["email"], requiresConsent="marketing")
    assert (decision["send"], decision["suppressedBy"]) == (False, "no consent: marketing")
    assert "channel" not in decision
    ask(shard, Op.CONSENTS_PUT, {"userId": "ada", "consents": {"marketing": True}})
    assert decide(shard, channels=["email"], requiresConsent="marketing")["send"]
    ask(shard, Op.SUPPRESS, {"userId": "ada", "channels": ["email"]})
    assert decide(shard, channels=["email"])["suppressedBy"] == "suppressed"
    assert decide(shard, channels=["email", "push"])["channel"] == "push"


def test_by_a_trigger_the_message_is_queued_and_survives_with_its_decision() -> None:
    shard = watching(cart=CART)
    decision = decide(shard, trigger="cart")
    assert decision["queued"] is True
    (message,) = messages(shard)
    assert message.message_id == decision["decisionId"]
    assert data(message)["trigger"] == "cart"
    again = reborn(shard)
    assert messages(again) == messages(shard)
    assert ask(again, Op.DECISION_GET, message.message_id.encode())[1]["send"] is True


def test_a_repeated_decide_sends_once() -> None:
    shard = watching(cart=CART)
    request = {
        "userId": "ada",
        "messageId": "m1",
        "decisions": [{"surface": "communication", "trigger": "cart"}],
    }
    first = ask(shard, Op.DECIDE, request)[1]
    again = ask(shard, Op.DECIDE, request)[1]
    assert again["duplicate"]
    assert again["decisions"] == first["decisions"]
    assert len(messages(shard)) == 1


def traces_of(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the treatment engine leaves with each choice, for rewards to learn from."""
    treatment = shard.tenant("default").treatment
    choose, traces = treatment.choose, []

    def kept(*args: Any, **kwargs: Any) -> Any:
        choice = choose(*args, **kwargs)
        traces.append(choice.trace)
        return choice

    monkeypatch.setattr(treatment, "choose", kept)
    return traces


def test_a_policy_learns_the_channel_and_says_with_which_probability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = watching()
    traces = traces_of(shard, monkeypatch)
    put(shard, "policies", "reach", {"surface": "communication"})
    tenant = shard.tenant("default")
    policy = tenant.policy("reach")
    assert policy is not None
    chosen = {"email": 0, "push": 0, "sms": 0}
    for n in range(300):
        decision = decide(
            shard, f"u{n}", channels=list(chosen), policy="reach", templates=["a", "b"]
        )
        assert 0 < decision["propensity"] <= 1
        assert decision["policyId"] == "reach"
        chosen[decision["channel"]] += n >= 200
        # People answer pushes only.
        tenant.treatment.learn(policy, traces[-1], 0, float(decision["channel"] == "push"))
    assert chosen["push"] > 70


def test_a_policy_that_may_hold_back_learns_to_leave_people_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = watching()
    traces = traces_of(shard, monkeypatch)
    put(shard, "policies", "reach", {"surface": "communication", "rewardMin": 0, "rewardMax": 1})
    tenant = shard.tenant("default")
    policy = tenant.policy("reach")
    assert policy is not None
    held = 0
    for n in range(200):
        decision = decide(shard, f"u{n}", channels=["email"], policy="reach", holdBack=True)
        sent = decision["send"]
        held += not sent and n >= 100
        if not sent:
            assert decision["suppressedBy"] == "held back by the policy"
        tenant.treatment.learn(policy, traces[-1], 0, float(not sent))
    assert held > 70


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "channels"),
        ({"trigger": "nowhere"}, "trigger"),
        ({"channels": ["email"], "policy": "nowhere"}, "policy"),
        ({"channels": ["email"], "delays": ["PT0S", "PT1H"]}, "policy"),
        ({"channels": ["sms"], "trigger": "cart"}, "channels"),
        ({"trigger": "cart", "requiresConsent": "x"}, "trigger"),
        ({"channels": ["e mail"]}, "channels[0]"),
        ({"channels": ["email"], "webhook": "esp"}, ""),
    ],
)
def test_a_decision_that_can_not_be_made_is_refused_by_field(spec: Any, field: str) -> None:
    shard = watching(cart=CART)
    request = {"userId": "ada", "decisions": [{"surface": "communication"} | spec]}
    status, problem = ask(shard, Op.DECIDE, request)
    assert status == 422
    if field:
        assert problem["field"] == f"decisions[0].{field}"
    assert len(shard.store) == 0


@settings(max_examples=30, deadline=None)
@given(
    caps=st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from([60, 3600, 86_400]), st.booleans()),
        min_size=1,
        max_size=3,
    ),
    steps=st.lists(st.tuples(st.integers(1, 7200), st.sampled_from([0, 0, 1800])), max_size=60),
)
def test_no_window_ever_holds_more_than_its_cap(caps: Any, steps: Any) -> None:
    """Against a plain count over all contacts that were made, those put off included."""
    shard = watching()
    rules = [
        {"max": most, "per": f"PT{per_s}S"} | ({"channel": "email"} if one else {})
        for most, per_s, one in caps
    ]
    sent: list[tuple[int, str]] = []
    for wait_s, delay_s in steps:
        passed(shard, wait_s)
        spec: dict[str, Any] = {
            "channels": ["email", "push"],
            "frequencyCap": rules,
            "delays": [f"PT{delay_s}S"],
        }
        decision = decide(shard, **spec)
        if decision["send"]:
            sent.append((int(shard.now()) + delay_s, decision["channel"]))
        for most, per_s, one in caps:
            times = sorted(at_s for at_s, channel in sent if not one or channel == "email")
            for first in times:
                assert sum(first <= at_s < first + per_s for at_s in times) <= most
