"""What one person does is what another person's owner knows seconds later; and what survives."""

from __future__ import annotations

import os
import signal
import time
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from cluster.keys import USER, key_hash, place
from cluster.partition_map import decode_map
from serve.launch import Cluster
from tests.serve.test_cluster import call, named, new_items, viewed

pytestmark = pytest.mark.cluster

WAIT_S = 30.0


def person_on(cluster: Cluster, shard: int) -> str:
    """A new user id that the shard owns, the first or the second: ranges may have moved."""
    status, answer = call(cluster, "GET", "/v1/shards")
    assert status == 200
    owners = [{k: v for k, v in o.items() if k != "stats"} for o in answer["owners"]]
    partition_map = decode_map(msgspec.json.encode({"epoch": 1, "owners": owners}))
    wanted = sorted(partition_map.owners, key=lambda owner: owner.range.start)[shard]
    while True:
        name = str(uuid4())
        if partition_map.owner_of(place(key_hash("default", USER, name))) == wanted:
            return name


def decide(cluster: Cluster, person: str, actions: list[str]) -> dict[str, Any]:
    body = {"userId": person, "decisions": [{"surface": "product", "actions": actions}]}
    status, answer = call(cluster, "POST", "/v1/decide", body)
    assert status == 200
    decision: dict[str, Any] = answer["decisions"][0]
    return decision


def test_a_decision_on_another_shard_knows_within_seconds(cluster: Cluster) -> None:
    phone, case, cup = new_items(cluster, 3)
    watcher = person_on(cluster, 1)
    call(cluster, "POST", "/v1/track", {"userId": watcher, **viewed(phone)})
    for _ in range(8):
        buyer = person_on(cluster, 0)
        for item in (phone, case):
            call(cluster, "POST", "/v1/track", {"userId": buyer, **viewed(item)})
    started_s = time.monotonic()
    while True:
        ranking = decide(cluster, watcher, [cup, case])["ranking"]
        if ranking[0]["id"] == case and ranking[0]["score"] > ranking[1]["score"]:
            break
        assert time.monotonic() - started_s < WAIT_S
        time.sleep(0.1)
    assert decide(cluster, watcher, [case])["modelVersion"].startswith("m")


def test_a_model_version_can_be_listed_and_an_unknown_one_is_not_found(cluster: Cluster) -> None:
    status, models = call(cluster, "GET", "/v1/models")
    assert status == 200
    assert models["serving"].startswith("m")
    assert call(cluster, "POST", "/v1/models/m0:rollback")[0] == 404


def test_what_was_acknowledged_survives_kill_9_of_every_shard(cluster: Cluster) -> None:
    """Profiles, versions, the first answer to a message, and decisions."""
    (item,) = new_items(cluster, 1)
    people = [person_on(cluster, shard) for shard in (0, 1) for _ in range(5)]
    first = {}
    for person in people:
        body = {
            "userId": person,
            "messageId": person,
            "events": [viewed(item)],
            "decisions": [{"surface": "product", "actions": [item]}],
        }
        first[person] = (body, call(cluster, "POST", "/v1/decide", body)[1])
    shards = named("ShardActor")
    assert len(shards) == 2
    for process in shards:
        os.kill(process.pid, signal.SIGKILL)
    for person, (body, answer) in first.items():
        deadline_s = time.monotonic() + WAIT_S
        while True:
            status, again = call(cluster, "POST", "/v1/decide", body)
            if status == 200 or time.monotonic() > deadline_s:
                break
            time.sleep(0.2)
        assert again == answer | {"duplicate": True}
        profile = call(cluster, "GET", f"/v1/profiles/{person}")[1]
        assert (profile["eventsTotal"], profile["profileVersion"]) == (1, 1)
        decision_id = answer["decisions"][0]["decisionId"]
        assert call(cluster, "GET", f"/v1/decisions/{decision_id}")[0] == 200
