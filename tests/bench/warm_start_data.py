"""Event histories as Parquet for `tests.bench.warm_start`: Zipf activity, in sessions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ITEMS = 50_000
DAYS = 30
SESSION_EVENTS = 4
"""Mean events of a session."""
NAMES = ("Item Viewed", "Item Clicked", "Item Added", "Order Completed")
SHARES = (0.8, 0.1, 0.06, 0.04)


class Files(NamedTuple):
    """The same events twice: as they happened, and each person's together."""

    by_time: Path
    by_person: Path
    person: str
    """Someone who is in them."""


def write_events(folder: Path, events: int, people: int, seed: int, end_s: int) -> Files:
    """Write `events` events of `people` people that end at `end_s`; everyone has at least one.

    Activity and popularity follow a Zipf-like law (Pareto with exponent 1). Ids are text, the row
    groups and encodings those that pyarrow chooses.
    """
    random = np.random.default_rng(seed)
    sessions = max(people, events // SESSION_EVENTS)
    extra = np.minimum((random.pareto(1.0, sessions - people) * 20).astype(np.int64), people - 1)
    who = random.permutation(people)[np.concatenate([np.arange(people), extra])]
    start_s = end_s - DAYS * 86400 + random.integers(0, DAYS * 86400 - 7200, sessions)
    session = np.concatenate([np.arange(sessions), random.integers(0, sessions, events - sessions)])
    time_ms = start_s[session] * 1000 + (random.exponential(300_000, events)).astype(np.int64)
    time_ms = np.minimum(time_ms, end_s * 1000)
    order = np.argsort(time_ms, kind="stable")
    who_of, time_ms = who[session[order]], time_ms[order]
    kind = random.choice(len(NAMES), events, p=SHARES)
    item = np.minimum((random.pareto(1.0, events) * 200).astype(np.int64), ITEMS - 1)
    ids = pa.array([f"user-{(i * 2654435761) & 0xFFFFFFFF:08x}" for i in range(people)])
    items = pa.array([f"item-{i:06d}" for i in range(ITEMS)])
    price = np.round(random.gamma(2.0, 20.0, events), 2)
    table = pa.table(
        {
            "userId": ids.take(pa.array(who_of)),
            "itemId": items.take(pa.array(item)),
            "event": pa.array(NAMES).take(pa.array(kind)),
            "timestamp": pa.array(time_ms, pa.timestamp("ms", "UTC")),
            "value": pa.array(price, mask=kind < 3),
        }
    )
    files = Files(folder / "by_time.parquet", folder / "by_person.parquet", ids[0].as_py())
    pq.write_table(table, files.by_time)
    pq.write_table(table.take(pa.array(np.argsort(who_of, kind="stable"))), files.by_person)
    return files
