"""Triggers and webhooks over real HTTP, with a real receiver, through the death of every shard."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from serve.launch import Cluster
from tests.actors.receiver import SECRET, Receiver
from tests.serve.test_cluster import HEALED_S, call, named, new_items

pytestmark = pytest.mark.cluster


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    found = Receiver()
    asyncio.run_coroutine_threadsafe(found.__aenter__(), loop).result(10)
    yield found
    asyncio.run_coroutine_threadsafe(found.__aexit__(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)


def put(cluster: Cluster, path: str, document: dict[str, Any]) -> None:
    status, answer = call(cluster, "PUT", path, document)
    assert status == 200, answer


def track(cluster: Cluster, person: str, event: str, **properties: Any) -> None:
    """Tell an event, again if need be, as callers do."""
    message = {"userId": person, "event": event, "messageId": str(uuid4())}
    deadline = time.monotonic() + HEALED_S
    while call(cluster, "POST", "/v1/track", message | {"properties": properties})[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def until(condition: Callable[[], bool], within_s: float = HEALED_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def new_webhook(cluster: Cluster, receiver: Receiver, **settings: Any) -> str:
    webhook = f"w-{uuid4()}"
    document = {"url": receiver.url, "secret": SECRET, "retryS": 0.2, "retryMaxS": 1.0}
    put(cluster, f"/v1/webhooks/{webhook}", document | settings)
    return webhook


def test_timers_fire_once_and_messages_arrive_though_every_shard_is_killed(
    cluster: Cluster, receiver: Receiver
) -> None:
    (item,) = new_items(cluster, 1)
    trigger, event = f"t-{uuid4()}", f"Cart {uuid4()}"
    put(
        cluster,
        f"/v1/triggers/{trigger}",
        {
            "onEvent": event,
            "onInactivity": "PT3S",
            "exitOn": ["Order Completed"],
            "channels": ["email"],
            "webhook": new_webhook(cluster, receiver, openAfter=1000),
            "traits": ["email"],
        },
    )
    people = [str(uuid4()) for _ in range(24)]
    buyers = people[:8]
    for person in people:
        track(cluster, person, event, itemId=item)
    for person in buyers:
        track(cluster, person, "Order Completed")
    # The receiver fails while the shards are killed: before, while and after timers fire.
    receiver.status = 503
    for pause_s in (0.5, 3.0):
        time.sleep(pause_s)
        for shard in named("ray::ShardActor"):
            os.kill(shard.pid, signal.SIGKILL)
    until(lambda: {e["subject"] for _, e in receiver.got} >= set(people[8:]))
    receiver.status = 200
    failed = len(receiver.got)
    until(lambda: {e["subject"] for _, e in receiver.got[failed:]} >= set(people[8:]))
    time.sleep(1.5)
    by_person: dict[str, set[str]] = {}
    bodies: dict[str, set[bytes]] = {}
    for (message_id, sent), body in zip(receiver.got, receiver.bodies, strict=True):
        by_person.setdefault(sent["subject"], set()).add(message_id)
        bodies.setdefault(message_id, set()).add(body)
    # One firing each, whatever died; none for who bought; every attempt the same.
    assert by_person.keys() == set(people[8:])
    assert {len(ids) for ids in by_person.values()} == {1}
    assert {len(one) for one in bodies.values()} == {1}
    sent = receiver.got[-1][1]
    assert sent["data"]["trigger"] == trigger
    assert sent["data"]["itemId"] == item
    decision = call(cluster, "GET", f"/v1/decisions/{sent['id']}")
    assert decision[0] == 200
    assert decision[1]["channel"] == "email"


def test_a_dead_letter_is_listed_and_redriven(cluster: Cluster, receiver: Receiver) -> None:
    trigger, event, person = f"t-{uuid4()}", f"Asked {uuid4()}", str(uuid4())
    webhook = new_webhook(cluster, receiver, maxAttempts=2)
    rules = {"channels": ["sms"], "webhook": webhook, "frequencyCap": {"max": 1, "per": "P1D"}}
    put(cluster, f"/v1/triggers/{trigger}", {"onEvent": event} | rules)
    receiver.status = 500
    track(cluster, person, event)
    track(cluster, person, event)

    def letters() -> list[Any]:
        _, answer = call(cluster, "GET", "/v1/deadletters")
        return [one for one in answer["messages"] if one["webhook"] == webhook]

    until(lambda: len(letters()) == 1)
    (letter,) = letters()
    assert letter["error"] == "the receiver answered 500"
    assert letter["event"]["subject"] == person
    receiver.status = 200
    assert call(cluster, "POST", f"/v1/messages/{letter['id']}:redrive")[0] == 200
    until(lambda: len(receiver.got) == 3)
    assert {message_id for message_id, _ in receiver.got} == {letter["id"]}
    until(lambda: call(cluster, "GET", f"/v1/messages/{letter['id']}")[0] == 404)
    # The cap let one of the two events through.
    assert letters() == []


def test_the_secret_of_a_webhook_is_shown_to_nobody(cluster: Cluster, receiver: Receiver) -> None:
    webhook = new_webhook(cluster, receiver)
    for path in (f"/v1/webhooks/{webhook}", "/v1/webhooks"):
        answer = call(cluster, "GET", path)[1]
        assert SECRET not in str(answer)
        assert "(not shown)" in str(answer)
    # Nor is what was shown taken for a secret.
    document = call(cluster, "GET", f"/v1/webhooks/{webhook}")[1]["document"]
    status, problem = call(cluster, "PUT", f"/v1/webhooks/{webhook}", document)
    assert (status, problem["field"]) == (422, "secret")


def test_consent_is_asked_for_and_shown(cluster: Cluster, receiver: Receiver) -> None:
    event, person = f"Asked {uuid4()}", str(uuid4())
    rules = {"channels": ["sms"], "requiresConsent": "ads"}
    webhook = new_webhook(cluster, receiver)
    put(cluster, f"/v1/triggers/t-{uuid4()}", {"onEvent": event, "webhook": webhook} | rules)
    track(cluster, person, event)
    consents = {"consents": {"ads": True}}
    assert call(cluster, "PUT", f"/v1/profiles/{person}/consents", consents) == (200, consents)
    track(cluster, person, event)
    until(lambda: len(receiver.got) == 1)
    assert call(cluster, "POST", f"/v1/profiles/{person}/suppress", {})[0] == 200
    track(cluster, person, event)
    time.sleep(1)
    assert len(receiver.got) == 1
    ledger = call(cluster, "GET", f"/v1/profiles/{person}")[1]["ledger"]
    assert ledger["consents"]["ads"]["granted"] is True
    assert ledger["suppressed"] == {"": 0}


def test_a_document_is_only_checked_on_a_dry_run(cluster: Cluster) -> None:
    path = f"/v1/triggers/t-{uuid4()}"
    trigger = {"onEvent": "Searched", "channels": ["inApp"]}
    assert call(cluster, "PUT", f"{path}?dryRun=true", trigger)[1]["dryRun"] is True
    assert call(cluster, "GET", path)[0] == 404
    status, problem = call(cluster, "PUT", path, trigger | {"onInactivity": "soon"})
    assert (status, problem["field"]) == (422, "onInactivity")
