"""`onehop shards` against a running onehop: split and merged while people are tracked."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from serve.cli import commands
from serve.client import SyncClient
from serve.launch import Cluster
from tests.bench.elastic_load import Seen
from tests.faults.load import ITEM, Load, Wire, http_wire

pytestmark = pytest.mark.cluster


def shards(cluster: Cluster, *words: str) -> Any:
    """What the command printed; raises what it raised."""
    assert cluster.keys is not None
    where = ["--url", cluster.address, "--api-key", cluster.keys.sk]
    done = CliRunner().invoke(commands, ["shards", *words, *where], catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def owners(cluster: Cluster) -> list[str]:
    """Shards in order of their ranges."""
    assert cluster.keys is not None
    request = urllib.request.Request(f"{cluster.address}/v1/shards")
    request.add_header("X-API-Key", cluster.keys.sk)
    found = json.loads(urllib.request.urlopen(request, timeout=10).read())["owners"]
    return [o["shardId"] for o in sorted(found, key=lambda owner: int(owner["start"], 16))]


def test_shards_are_split_and_merged_under_load_and_nobody_notices(cluster: Cluster) -> None:
    assert cluster.keys is not None
    key = cluster.keys.sk
    seen = Seen()

    @asynccontextmanager
    async def watched() -> AsyncIterator[Wire]:
        async with http_wire(cluster.address, key) as wire:
            yield seen.watching(wire)

    with SyncClient(cluster.address, key) as client:
        client.put_items([{"id": ITEM}])
    before = owners(cluster)
    with Load(watched, callers=4, rate=100.0) as load:
        load.wait_answers(20)
        assert "done in" in shards(cluster, "split", before[0])
        split = owners(cluster)
        assert len(split) == len(before) + 1
        load.wait_answers(20)
        assert "done in" in shards(cluster, "merge", split[0], split[1])
        load.wait_answers(20)
    assert len(owners(cluster)) == len(before)
    assert not load.check()
    # At the first attempt: a planned change is no reason for a caller to try again.
    assert not seen.failed


def test_what_can_not_be_is_refused_in_words(cluster: Cluster) -> None:
    first, second = owners(cluster)[:2]
    for words, text in (
        (("split", "no-such"), "no such shard"),
        (("split", first, "--at", "zz"), "at"),
        (("merge", second, first), "side by side"),
        (("move", first, "--node", "10.9.9.9"), "no such node"),
        (("abort", "r-none"), "no such reshape"),
        # On one node there is nowhere to go.
        (("drain", "127.0.0.1"), "node"),
    ):
        with pytest.raises(Exception, match=text):
            shards(cluster, *words)
    assert "shards" in shards(cluster, "list")
