"""Shards as a warm start sees them, in this process, and tables to load into them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.messages import Item
from actors.parquet_input import Kind
from actors.people import Caller
from actors.readers import LocalReaders, ReadPlan
from actors.shard import Shard
from actors.warm_start import ImportReport, ImportSpec, Progress, WarmStart
from cluster.config import Config
from cluster.errors import RequestError, Unavailable
from cluster.frames import Op
from cluster.keys import key_hash, place, split_evenly

NOW_S = 1_750_000_000
CONFIG = Config(profiles_max=4096, profile_bytes_max=1 << 24, items_max=4096)


class ShardOwner:
    """A shard in this process with the token rule of its actor; may die after some chunks."""

    def __init__(self, shard: Shard, tenant: str = "default") -> None:
        self.shard = shard
        self.start = shard.key_range.start
        self.tenant = tenant
        self.held: set[str] = set()
        self.applied: list[str] = []
        self.dies_after = -1
        self.finished = 0

    async def load(self, kind: Kind, token: str, chunk: Any) -> None:
        if token in self.held:
            return
        if len(self.applied) == self.dies_after:
            raise Unavailable("the shard died")
        if kind == "events":
            self.shard.loads.events(token, self.tenant, chunk)
        else:
            hi, lo, traits = chunk["key_hi"], chunk["key_lo"], chunk["traits"]
            self.shard.loads.profiles(token, self.tenant, hi, lo, traits)
        self.held.add(token)
        self.applied.append(token)

    async def tokens(self, prefix: str) -> set[str]:
        return {token for token in self.held if token.startswith(prefix)}

    async def event_numbers(self, names: list[str]) -> list[int]:
        return [self.shard.tenant(self.tenant).event_types.number(name) for name in names]

    async def finish(self) -> None:
        self.finished += 1


class SharedItems:
    """The catalogue of all shards of a test."""

    def __init__(self, shards: list[Shard], tenant: str = "default") -> None:
        self.catalogues = [shard.tenant(tenant).catalogue for shard in shards]

    async def ids(self) -> list[str]:
        return list(self.catalogues[0].ids)

    async def register(self, ids: list[str]) -> None:
        for catalogue in self.catalogues:
            catalogue.register(ids)

    async def put(self, items: list[bytes]) -> list[str]:
        return [self._put(item) for item in items]

    def _put(self, document: bytes) -> str:
        try:
            item = msgspec.json.decode(document, type=Item)
            for catalogue in self.catalogues:
                catalogue.put(item)
        except (RequestError, msgspec.ValidationError) as error:
            return str(error)
        return ""


class World:
    """Shards, their catalogue and a folder."""

    def __init__(self, folder: Path, shards: int = 3) -> None:
        self.folder = folder
        self.shards = [
            Shard(f"{i}", r, CONFIG, now=lambda: NOW_S) for i, r in enumerate(split_evenly(shards))
        ]
        self.owners = [ShardOwner(shard) for shard in self.shards]
        self.items = SharedItems(self.shards)
        self.progress: list[Progress] = []

    def load(self, **spec: Any) -> ImportReport:
        camel = {"dry_run": "dryRun", "strict_items": "strictItems"}
        paths = {camel.get(k, k): str(v) if isinstance(v, Path) else v for k, v in spec.items()}
        wanted = msgspec.convert(paths, ImportSpec)

        async def run() -> ImportReport:
            plan = ReadPlan(wanted.tenant, NOW_S + 3600, wanted.dry_run)
            start = WarmStart(
                wanted,
                self.owners,
                self.items,
                LocalReaders(plan),
                self.folder / "imports",
                self.progress.append,
            )
            return await start.run()

        return asyncio.run(run())

    def shard_of(self, person: str, id_type: str = "u") -> Shard:
        position = place(key_hash("default", id_type, person))
        return next(s for s in self.shards if position in s.key_range)

    def profile(self, person: str, id_type: str = "u") -> dict[str, Any] | None:
        field = "userId" if id_type == "u" else "anonymousId"
        body = json.dumps({field: person}).encode()
        status, answer = self.shard_of(person, id_type).handle(
            Op.PROFILE_GET, Caller("s", "default"), body, 0
        )
        return json.loads(answer) if status == 200 else None

    @property
    def people(self) -> int:
        return sum(len(shard.store) for shard in self.shards)


def events_table(seed: int = 7, n: int = 500, people: int = 60) -> pa.Table:
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    names = ["Item Viewed", "Order Completed", "Impression", "my own event"]
    return pa.table(
        {
            "userId": [f"user {i} é" for i in random.integers(0, people, n)],
            "itemId": [f"item-{i}" for i in random.integers(0, 40, n)],
            "event": [names[i] for i in random.integers(0, len(names), n)],
            "timestamp": pa.array(
                np.sort(random.integers(NOW_S - 10**6, NOW_S, n)) * 1000,
                pa.timestamp("ms", "UTC"),
            ),
            "value": [float(v) if v > 3 else None for v in random.integers(0, 9, n)],
        }
    )


def write(folder: Path, table: pa.Table, name: str = "events.parquet", rows: int = 100) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    return path


def one_by_one(table: pa.Table) -> World:
    """A world that got the same events through `POST /v1/track`."""
    world = World(Path("/nonexistent"))
    ids = table["itemId"].unique().to_pylist()
    asyncio.run(world.items.register(sorted(ids)))
    for row in table.to_pylist():
        properties = {"itemId": row["itemId"], "value": row["value"] or 0.0}
        body = {
            "userId": row["userId"],
            "event": row["event"],
            "timestamp": row["timestamp"].timestamp() * 1000,
            "properties": properties,
        }
        shard = world.shard_of(row["userId"])
        status, answer = shard.handle(
            Op.TRACK, Caller("s", "default"), json.dumps(body).encode(), 0
        )
        assert status == 200, answer
    return world


def rounded(document: Any) -> Any:
    """A document with its floats to four digits: float32 sums differ in the last."""
    if isinstance(document, dict):
        return {name: rounded(value) for name, value in document.items()}
    if isinstance(document, list):
        return [rounded(value) for value in document]
    return float(f"{document:.4g}") if isinstance(document, float) else document


def await_ids(world: World) -> list[str]:
    return asyncio.run(world.items.ids())
