"""The whole way over real HTTP: HAProxy, gateway, hop, owner."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from websockets.sync.client import connect

from serve.launch import Cluster
from serve.processes import Process, alive, descendants

pytestmark = pytest.mark.cluster

LISTENING = "0A"
HEALED_S = 30.0


def call(
    cluster: Cluster, method: str, path: str, body: Any = None, key: str | None = None
) -> tuple[int, Any]:
    """One request; (status, JSON). key None: the tenant's sk_ key; "": none."""
    assert cluster.keys is not None
    data = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
    request = urllib.request.Request(cluster.address + path, data, method=method)
    if key != "":
        request.add_header("X-API-Key", cluster.keys.sk if key is None else key)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, msgspec.json.decode(response.read())
    except urllib.error.HTTPError as error:
        return error.code, msgspec.json.decode(error.read())


def new_items(cluster: Cluster, count: int) -> list[str]:
    ids = [f"item-{uuid4()}" for _ in range(count)]
    status, answer = call(cluster, "POST", "/v1/items:batch", {"items": [{"id": i} for i in ids]})
    assert status == 200
    assert [result["status"] for result in answer["results"]] == [200] * count
    return ids


def viewed(item: str) -> dict[str, Any]:
    return {"event": "Item Viewed", "properties": {"itemId": item}}


def named(word: str) -> list[Process]:
    """Processes below this one with `word` in their command line."""
    found = []
    for process in descendants(os.getpid()):
        try:
            if word in Path(f"/proc/{process.pid}/cmdline").read_text():
                found.append(process)
        except OSError:
            continue
    return found


def listeners() -> dict[int, str]:
    """Address by port of all IPv4 sockets that listen on this machine."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, port = local.split(":")
        if state == LISTENING:
            found[int(port, 16)] = socket.inet_ntoa(struct.pack("=L", int(address, 16)))
    return found


def test_only_loopback_is_listened_on(cluster: Cluster):
    """HAProxy, its statistics and metrics, the proxy of last resort, gateways, shards."""
    _, shards = call(cluster, "GET", "/v1/shards")
    ports = {cluster.config.port, *(owner["port"] for owner in shards["owners"])}
    for name in ("HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT", "FALLBACK_PROXY_HTTP_PORT"):
        ports.add(int(os.environ[f"RAY_SERVE_{name}"]))
    found = listeners()
    assert {port: found.get(port) for port in ports} == dict.fromkeys(ports, "127.0.0.1")
    first = int(os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])
    last = int(os.environ["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"])
    gateways = {port: address for port, address in found.items() if first <= port < last}
    assert list(gateways.values()) == ["127.0.0.1"] * cluster.config.gateways


def test_the_plan_measures_every_shard_and_finds_nothing_to_do(cluster: Cluster):
    deadline = time.monotonic() + 30
    while True:
        status, plan = call(cluster, "GET", "/v1/plan")
        assert status == 200
        if plan["shards"] or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    _, shards = call(cluster, "GET", "/v1/shards")
    assert [shard["shardId"] for shard in plan["shards"]] == [
        owner["shardId"] for owner in shards["owners"]
    ]
    assert all(shard["nodeId"] and shard["bytes"] > 0 for shard in plan["shards"])


def test_the_answer_knows_the_event_of_its_own_call(cluster: Cluster):
    """For random people and items: what the call that carries the event answers is what a fresh
    read gives after it, and the item just viewed is no longer what it was before."""
    rng = random.Random(7)
    items = new_items(cluster, 8)
    decision = {"surface": "product", "actions": items, "excludeSeen": True, "numResults": 8}
    for person in (str(uuid4()) for _ in range(10)):
        item = rng.choice(items)
        fresh = {"userId": person, "decisions": [decision]}
        before = call(cluster, "POST", "/v1/decide", fresh)[1]["decisions"][0]
        during = call(cluster, "POST", "/v1/decide", fresh | {"events": [viewed(item)]})[1]
        after = call(cluster, "POST", "/v1/decide", fresh)[1]["decisions"][0]
        ranking = during["decisions"][0]["ranking"]
        assert [entry["id"] for entry in ranking] == [entry["id"] for entry in after["ranking"]]
        assert item in {entry["id"] for entry in before["ranking"]}
        assert item not in {entry["id"] for entry in ranking}
        assert during["profileVersion"] == 1


def test_the_same_message_counts_once_and_answers_the_same(cluster: Cluster):
    (item,) = new_items(cluster, 1)
    person = str(uuid4())
    message = {"userId": person, "messageId": str(uuid4()), "events": [viewed(item)]}
    first = call(cluster, "POST", "/v1/decide", message)[1]
    again = call(cluster, "POST", "/v1/decide", message)[1]
    assert (first["duplicate"], again["duplicate"]) == (False, True)
    assert again["profileVersion"] == first["profileVersion"]
    status, problem = call(cluster, "POST", "/v1/decide", message | {"events": []})
    assert (status, problem["status"]) == (409, 409)
    assert call(cluster, "GET", f"/v1/profiles/{person}")[1]["eventsTotal"] == 1


def test_a_decision_is_found_again_by_its_id(cluster: Cluster):
    (item,) = new_items(cluster, 1)
    message = {"userId": str(uuid4()), "decisions": [{"surface": "content", "actions": [item]}]}
    (decision,) = call(cluster, "POST", "/v1/decide", message)[1]["decisions"]
    status, found = call(cluster, "GET", f"/v1/decisions/{decision['decisionId']}")
    assert status == 200
    assert found["decisionId"] == decision["decisionId"]
    assert call(cluster, "GET", "/v1/decisions/" + "0" * 32)[0] == 404


def test_tenants_do_not_see_each_other(cluster: Cluster):
    """Keyless callers on loopback are tenant "default", and so are the first start's keys: a
    third key of another tenant sees nothing of it, and what is missing looks the same."""
    from cluster.access import read_keys
    from serve.auth import generate_key, write_keys

    text, stored = generate_key("sk", "other", time.time())
    path = cluster.config.keys_path
    write_keys(path, [*read_keys(path), stored])
    time.sleep(1.1)
    (item,) = new_items(cluster, 1)
    person = str(uuid4())
    call(cluster, "POST", "/v1/decide", {"userId": person, "events": [viewed(item)]})
    assert call(cluster, "GET", f"/v1/profiles/{person}", key="")[0] == 200
    foreign = call(cluster, "GET", f"/v1/profiles/{person}", key=text)
    missing = call(cluster, "GET", f"/v1/profiles/{uuid4()}", key=text)
    assert foreign == missing
    assert foreign[0] == 404
    assert call(cluster, "GET", f"/v1/items/{item}", key=text)[0] == 404


def test_a_forgotten_person_is_gone_and_an_item_taken_down_is_not_chosen(cluster: Cluster):
    items = new_items(cluster, 3)
    person = str(uuid4())
    decision = {"surface": "product", "actions": items}
    message = {"userId": person, "events": [viewed(items[0])], "decisions": [decision]}
    call(cluster, "POST", "/v1/decide", message)
    assert call(cluster, "DELETE", f"/v1/profiles/{person}")[0] == 200
    assert call(cluster, "GET", f"/v1/profiles/{person}")[0] == 404
    assert call(cluster, "DELETE", f"/v1/items/{items[0]}")[0] == 200
    assert call(cluster, "GET", f"/v1/items/{items[0]}")[0] == 404
    status, answer = call(
        cluster, "POST", "/v1/decide", {"userId": person, "decisions": [decision]}
    )
    if status == 200:
        assert items[0] not in {entry["id"] for entry in answer["decisions"][0]["ranking"]}
    else:
        assert status == 422


def test_a_batch_and_a_stream_say_what_single_calls_say(cluster: Cluster):
    (item,) = new_items(cluster, 1)
    people = [str(uuid4()) for _ in range(20)]
    batch = [{"type": "track", "userId": p, **viewed(item)} for p in people]
    status, answer = call(cluster, "POST", "/v1/batch", {"batch": batch})
    assert status == 200
    assert [r["answer"]["profileVersion"] for r in answer["results"]] == [1] * len(people)
    assert cluster.keys is not None
    url = cluster.address.replace("http", "ws") + "/v1/stream"
    with connect(url, additional_headers={"X-API-Key": cluster.keys.sk}) as stream:
        messages = [message | {"id": i} for i, message in enumerate(batch)]
        stream.send(msgspec.json.encode(messages).decode())
        replies: list[dict[str, Any]] = []
        while len(replies) < len(batch):
            replies += msgspec.json.decode(stream.recv(timeout=30))
    assert sorted(reply["id"] for reply in replies) == list(range(len(batch)))
    assert {reply["answer"]["profileVersion"] for reply in replies} == {2}


def test_many_callers_at_once_lose_nothing(cluster: Cluster):
    (item,) = new_items(cluster, 1)
    person = str(uuid4())
    message = {"userId": person, **viewed(item)}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: call(cluster, "POST", "/v1/track", message), range(200)))
    assert {status for status, _ in answers} == {200}
    # One owner, one order: every version is handed out exactly once.
    assert sorted(answer["profileVersion"] for _, answer in answers) == list(range(1, 201))


def test_a_killed_shard_comes_back_without_a_restart_of_the_gateway(cluster: Cluster):
    (item,) = new_items(cluster, 1)
    gateways = named("ray::ServeReplica")
    epoch = call(cluster, "GET", "/v1/shards")[1]["epoch"]
    victim = named("ray::ShardActor")[0]
    os.kill(victim.pid, signal.SIGKILL)
    deadline = time.monotonic() + HEALED_S
    people = [str(uuid4()) for _ in range(16)]
    for person in people:
        message = {"userId": person, "messageId": str(uuid4()), "events": [viewed(item)]}
        # A caller repeats what failed with the same messageId.
        while (answer := call(cluster, "POST", "/v1/decide", message))[0] != 200:
            assert answer[0] in (500, 503), answer
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)
    assert not alive(victim)
    assert call(cluster, "GET", "/v1/shards")[1]["epoch"] > epoch
    assert named("ray::ServeReplica") == gateways
    # The catalogue is whole again on the new shard too.
    assert {call(cluster, "GET", f"/v1/items/{item}")[0] for _ in range(20)} == {200}


@pytest.mark.parametrize("word", ["ray::ServeReplica", "haproxy.cfg"])
def test_a_killed_gateway_or_haproxy_is_replaced_and_nobody_is_told_anything_final(
    cluster: Cluster, word: str
):
    victim = named(word)[0]
    os.kill(victim.pid, signal.SIGKILL)
    deadline = time.monotonic() + HEALED_S
    status = 0
    message = {"userId": str(uuid4()), "messageId": str(uuid4()), "event": "Tried"}
    while status != 200 or alive(victim):
        assert time.monotonic() < deadline, status
        try:
            status, _ = call(cluster, "POST", "/v1/track", message)
        except OSError:
            status = 0  # nobody listens, or the connection was cut
        assert status in (0, 200, 500, 503), status
        time.sleep(0.05)


def test_a_gateway_serves_until_the_one_that_replaces_it_does(cluster: Cluster):
    from ray import serve as ray_serve

    from serve.app import APP_NAME, app

    def deploy() -> None:
        other = msgspec.structs.replace(cluster.config, log_level="WARNING")
        ray_serve.run(app(other), name=APP_NAME, route_prefix="/")

    def serving() -> int:
        deployment: Any = ray_serve.status().applications[APP_NAME].deployments["gateway"]
        return int(deployment.replica_states.get("RUNNING", 0))

    (old,) = named("ray::ServeReplica")
    with ThreadPoolExecutor(1) as pool:
        deployed = pool.submit(deploy)
        while not deployed.done():
            assert serving() >= 1
            assert call(cluster, "GET", "/v1/nodes")[0] == 200
        deployed.result()
    assert not alive(old)
    assert serving() == 1


def test_health_and_metrics_are_plain(cluster: Cluster):
    assert call(cluster, "GET", "/health/live", key="") == (200, {"status": "live"})
    assert call(cluster, "GET", "/health/ready", key="") == (200, {"status": "ready"})
    assert cluster.keys is not None
    request = urllib.request.Request(cluster.address + "/metrics")
    request.add_header("X-API-Key", cluster.keys.sk)
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.headers["content-type"].startswith("text/plain")
        text = response.read().decode()
    assert 'onehop_shard_up{shard="' in text
    assert 'onehop_stage_seconds_bucket{le="+Inf",stage="score"}' in text


def test_a_refused_import_says_why_and_shows_no_traceback(cluster: Cluster):
    status, problem = call(cluster, "POST", "/v1/imports", {"events": "/no/such/file"})
    assert status == 422
    assert problem["field"] == "events"
    assert problem["seen"] == "/no/such/file"
    assert problem["detail"] == (
        "events: there is no such file, got /no/such/file, "
        "wanted a Parquet file or a folder of them"
    )
