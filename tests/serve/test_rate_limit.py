"""What a key's rate lets through, over HTTP as over time."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from actors.principals import Principals
from cluster.access import key_id, read_keys
from cluster.config import Config
from serve.auth import Keys, ensure_secret, generate_key, write_keys
from serve.rate_limit import Bucket
from tests.serve.edge import key_header, new_edge
from tests.serve.fake_owner import asynchronous


def test_over_any_time_no_more_than_rate_and_burst_get_through() -> None:
    generator = random.Random(5)
    bucket = Bucket(10.0, 25.0)
    taken: list[float] = []
    now_s = 0.0
    for _ in range(20_000):
        now_s += generator.expovariate(60.0)
        if bucket.wait_s(now_s) == 0.0:
            taken.append(now_s)
    for first in range(0, len(taken), 7):
        for size in (1, 26, 200, 1000):
            if first + size < len(taken):
                passed_s = taken[first + size] - taken[first]
                assert size + 1 <= 25.0 + 10.0 * passed_s + 1e-6
    assert len(taken) > 0.99 * 10.0 * now_s


@asynchronous
async def test_a_key_beyond_its_rate_gets_429_and_when_to_come_back(tmp_path: Path) -> None:
    async with new_edge(tmp_path) as edge:
        path = edge.gateway.keys._path
        stored = [
            msgspec.structs.replace(key, rate=0.5, burst=3) if key.role == "pk" else key
            for key in read_keys(path)
        ]
        write_keys(path, stored)
        edge.gateway.keys._checked_at = 0.0
        body = b'{"anonymousId":"v","event":"e"}'
        limited = [await edge.post("/v1/track", body, key_header(edge.keys.pk)) for _ in range(5)]
        assert [reply.status for reply in limited] == [200, 200, 200, 429, 429]
        assert limited[3].headers["retry-after"] == "2"
        assert "0.5 messages a second, 3 at once" in limited[3].json["detail"]
        assert len(edge.owner.requests) == 3
        batch = b'{"batch":[{"type":"track","anonymousId":"v","event":"e"}]}'
        reply = await edge.post("/v1/batch", batch, key_header(edge.keys.pk))
        assert reply.json["results"][0]["status"] == 429
        # The file is read again for another key's sake: that fills nobody's bucket.
        write_keys(path, [*stored, generate_key("sk", "other", 1.0)[1]])
        edge.gateway.keys._checked_at = 0.0
        assert (await edge.post("/v1/track", body, key_header(edge.keys.pk))).status == 429
        assert (await edge.post("/v1/track", body, key_header(edge.keys.sk))).status == 200


def test_a_key_with_a_rate_reaches_no_shard_past_the_gateways(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    ensure_secret(config)
    free, free_stored = generate_key("sk", "a", 1.0)
    bound, bound_stored = generate_key("sk", "b", 1.0)
    write_keys(config.keys_path, [free_stored, msgspec.structs.replace(bound_stored, rate=5.0)])
    principals = Principals(config)
    assert principals.secret_of(key_id(free.encode())) is not None
    assert principals.secret_of(key_id(bound.encode())) is None
    assert Keys(config.keys_path, False).caller_of_key(free.encode()).bucket is None
