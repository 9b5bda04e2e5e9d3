"""Bytes per profile: onehop's store, the bare payload, and a Redis hash with the same fields.

    python -m tests.bench.memory [--json FILE] [--people N] [--seed N]

Histories are generated in order of time, so that profiles grow as they do in life: event by
event, among each other. How often a person comes is log-normal; `sigma` 0.91 is the fit to the
Taobao log, whose four event types and their shares are used too. Set `shop` has 40 events a
person on average, set `visits` 6, most people having come once or twice. Nobody has an embedding
or traits: both are stored as they are, and would only bring all three columns closer together.

    raw    what must be kept, packed without alignment, index or allocator: key hash 16 bytes;
           version, first seen, last seen, session start, session id, events, money 4 each and
           events of the session 2; 9 per event type counted (type, fast, slow); 8 per affinity
           (attribute, weight); 12 per event of the ring (item 3, type 1, time 4, value 4)
    store  `ProfileStore.bytes_used()`; `rss` is what the process grew by, growth's waste included
    redis  used_memory per key, one key per person: HSET with each scalar as a field of text, one
           packed field per counter, one for all affinities and one for the ring. `redis` has the
           default settings, where the ring is too long for the compact encoding;
           `redis_listpack` is tuned to use it for these hashes throughout

Ratios are those of the set in which onehop does worst.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import socket
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import hiredis
import numpy as np
from numpy.typing import NDArray

from actors.events import ADDED, LIKED, PURCHASED, VIEWED
from actors.store import ProfileStore
from actors.store_kernels import EVENT_WORDS, fixed_words
from tests.bench.harness import Redis, Row, report, rounded, rss_bytes, tree

RAW_FIXED_BYTES = 16 + 7 * 4 + 2
RAW_COUNTER_BYTES = 9
RAW_AFFINITY_BYTES = 8
RAW_EVENT_BYTES = 12

SIGMA = 0.91
TYPES = np.array([VIEWED, ADDED, LIKED, PURCHASED], np.uint8)
TYPE_SHARES = (0.898, 0.053, 0.028, 0.021)
ITEMS = 50_000
CATEGORIES = 2_000
START_S = 1_760_000_000
DAYS = 30
CHUNK = 1 << 20
REDIS_CHUNK = 2_000
# Redis's names of the scalar fields are as short as they can be.
SCALARS = {
    "v": "version",
    "f": "first_seen",
    "l": "last_seen",
    "b": "session_start",
    "i": "session_id",
    "n": "events_total",
    "m": "money",
    "s": "session_events",
}
LISTPACK = ("--hash-max-listpack-value", "4096", "--hash-max-listpack-entries", "512")
PACKAGES = ("numpy", "numba", "hiredis", "redis-server")


class Set(NamedTuple):
    """One kind of histories."""

    name: str
    events_mean: float
    sigma: float


SETS = (Set("shop", 40.0, SIGMA), Set("visits", 6.0, 1.2))


class Events(NamedTuple):
    """Events in order of time, all [n]."""

    people: NDArray[np.int64]
    items: NDArray[np.int32]
    types: NDArray[np.uint8]
    values: NDArray[np.float32]
    times_s: NDArray[np.uint32]


def generated(kind: Set, people: int, seed: int) -> Iterator[Events]:
    """Chunks of events; everybody has at least one."""
    generator = np.random.default_rng(seed)
    shares = np.cumsum(generator.lognormal(0.0, kind.sigma, people))
    shares /= shares[-1]
    total = max(people, int(kind.events_mean * people))
    first = generator.permutation(people)
    drawn_share = 1.0 - people / total
    begun = 0
    for start in range(0, total, CHUNK):
        count = min(CHUNK, total - start)
        who = np.searchsorted(shares, generator.random(count))
        # First visits are spread over the whole time.
        new = np.flatnonzero(generator.random(count) >= drawn_share)[: people - begun]
        if start + count == total:
            new = np.arange(count - (people - begun), count)
        who[new] = first[begun : begun + len(new)]
        begun += len(new)
        # A square: few items have most of the views.
        items = (generator.random(count) ** 2 * ITEMS).astype(np.int32)
        times = START_S + (start + np.arange(count)) * (DAYS * 86400 / total)
        yield Events(
            who,
            items,
            generator.choice(TYPES, count, p=TYPE_SHARES),
            np.zeros(count, np.float32),
            times.astype(np.uint32),
        )


def filled(kind: Set, people: int, seed: int) -> tuple[ProfileStore, float]:
    """A store with everybody in it, and the CPU seconds that applying took."""
    # A key hash is 128 random bits.
    hi, lo = np.random.default_rng(seed + 1).integers(-(1 << 63), (1 << 63) - 1, (2, people))
    attributes = (np.arange(ITEMS, dtype=np.int32) * 7919 % CATEGORIES).reshape(-1, 1)
    store = ProfileStore(profiles_max=people, profile_bytes_max=8 << 30)
    took_s = 0.0
    for events in generated(kind, people, seed):
        began = time.process_time()
        rows = store.ensure_many(hi[events.people], lo[events.people], events.times_s)
        store.apply_many(
            rows, events.items, events.types, events.values, events.times_s, attributes
        )
        took_s += time.process_time() - began
    return store, took_s


def raw_bytes(store: ProfileStore) -> int:
    """The payload of all profiles, as the module's text defines it."""
    rows = store.rows[: len(store)]
    return (
        RAW_FIXED_BYTES * len(rows)
        + RAW_COUNTER_BYTES * int(rows["counters_n"].sum(dtype=np.int64))
        + RAW_AFFINITY_BYTES * int(rows["affinities_n"].sum(dtype=np.int64))
        + RAW_EVENT_BYTES * int(rows["ring_n"].sum(dtype=np.int64))
    )


def hset_commands(store: ProfileStore) -> Iterator[bytes]:
    """The command that writes each profile into Redis."""
    scalars = [(field, store.rows[name].tolist()) for field, name in SCALARS.items()]
    pack = hiredis.pack_command
    for row in range(len(store)):
        fields: list[Any] = [b"HSET", b"p:" + store.key(row)]
        for field, column in scalars:
            fields += (field, column[row])
        for kind, decayed in store.counters(row).items():
            fields += (f"c{kind}", np.array(decayed, "<f4").tobytes())
        fields += ("a", affinities_packed(store, row), "r", ring_packed(store, row))
        yield pack(tuple(fields))


def affinities_packed(store: ProfileStore, row: int) -> bytes:
    found = store.affinities(row)
    return np.fromiter(found, "<u4").tobytes() + np.fromiter(found.values(), "<f4").tobytes()


def ring_packed(store: ProfileStore, row: int) -> bytes:
    """The events as the store has them, 12 bytes each; their order does not change the size."""
    entry = store.rows[row]
    start = int(entry["blob_at"]) + int(fixed_words(store.rows, row))
    return store.words[start : start + EVENT_WORDS * int(entry["ring_n"])].tobytes()


class Filler:
    """Sends commands to a Redis in chunks, and checks every reply."""

    def __init__(self, server: Redis) -> None:
        self._reader = hiredis.Reader()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(server.socket)

    def send(self, commands: Sequence[bytes]) -> list[Any]:
        self._socket.sendall(b"".join(commands))
        replies: list[Any] = []
        while len(replies) < len(commands):
            self._reader.feed(self._socket.recv(1 << 20))
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, Exception):
                    raise reply
                replies.append(reply)
        return replies

    def used_bytes(self) -> int:
        [info] = self.send([b"INFO memory\r\n"])
        text = info.decode()
        return int(text.partition("used_memory:")[2].split()[0])

    def close(self) -> None:
        self._socket.close()


def redis_bytes(store: ProfileStore) -> dict[str, float]:
    """Bytes per key of a Redis with default settings and one tuned for compact hashes."""
    found: dict[str, float] = {}
    with Redis() as usual, Redis(*LISTPACK) as tuned:
        fillers = {"redis": Filler(usual), "redis_listpack": Filler(tuned)}
        empty = {name: filler.used_bytes() for name, filler in fillers.items()}
        commands = hset_commands(store)
        while chunk := list(islice(commands, REDIS_CHUNK)):
            for filler in fillers.values():
                filler.send(chunk)
        for name, filler in fillers.items():
            found[name] = (filler.used_bytes() - empty[name]) / len(store)
            filler.close()
    return found


def settled_rss() -> int:
    """Resident bytes of this process, without what was freed but not yet given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return rss_bytes(tree(os.getpid()))


def measured(kind: Set, people: int, seed: int) -> Row:
    """One row of the table."""
    before = settled_rss()
    store, took_s = filled(kind, people, seed)
    rss = settled_rss() - before
    raw = raw_bytes(store) / people
    profile = store.bytes_used() / people
    peers = redis_bytes(store)
    bound = 1.25 * raw + 24
    return {
        "set": kind.name,
        "people": people,
        "events": store.events_total,
        "ring_mean": rounded(float(store.rows["ring_n"][:people].mean()), 1),
        "raw": rounded(raw, 1),
        "bytes_per_profile": rounded(profile, 1),
        "bound": rounded(bound, 1),
        "rss": rounded(rss / people, 1),
        "redis": rounded(peers["redis"], 1),
        "redis_listpack": rounded(peers["redis_listpack"], 1),
        "apply_ns": rounded(took_s / store.events_total * 1e9, 0),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="bytes per profile")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args(arguments)
    filled(SETS[1], 1000, flags.seed)
    rows = [measured(kind, flags.people, flags.seed) for kind in SETS]
    ratios = {
        f"bytes/{peer}": round(max(row["bytes_per_profile"] / row[peer] for row in rows), 3)
        for peer in ("raw", "redis", "redis_listpack")
    }
    report("memory", flags.seed, rows, ratios, PACKAGES, flags.json)


if __name__ == "__main__":
    main()
