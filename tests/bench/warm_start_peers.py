"""What `tests.bench.warm_start` is measured against: the bare read, and loading into Redis."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import redis

from tests.bench.harness import Redis

RING = 50
BATCH_ROWS = 1 << 16
PIPELINE_EVENTS = 1000
SEND_EVENTS = 2000

Event = tuple[str, str, str, Any, float | None]


def read_table_s(path: Path) -> float:
    """Seconds of the bare read; the table is dropped."""
    started_s = time.perf_counter()
    table = pq.read_table(path)
    seconds = time.perf_counter() - started_s
    assert table.num_columns == 5
    return seconds


def events(path: Path, limit: int) -> Iterator[Event]:
    """The file's first `limit` events as Python values; the time in milliseconds."""

    def rows() -> Iterator[Event]:
        for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
            stamps = batch.column("timestamp").cast("int64").to_pylist()
            columns = [batch.column(n).to_pylist() for n in ("userId", "itemId", "event")]
            yield from zip(*columns, stamps, batch.column("value").to_pylist(), strict=True)

    return islice(rows(), limit)


def redis_s(path: Path, limit: int) -> float:
    """Seconds to load `limit` events with redis-py and hiredis, pipelined, over a Unix socket.

    Per event a counter per event type and the last RING events: HINCRBY, LPUSH, LTRIM.
    """
    with Redis() as server:
        client = redis.Redis(unix_socket_path=server.socket)
        started_s = time.perf_counter()
        stream = events(path, limit)
        while chunk := list(islice(stream, PIPELINE_EVENTS)):
            pipeline = client.pipeline(transaction=False)
            for person, item, event, stamp, value in chunk:
                pipeline.hincrby(f"c:{person}", event, 1)
                pipeline.lpush(f"r:{person}", f"{item}|{event}|{stamp}|{value or 0}")
                pipeline.ltrim(f"r:{person}", 0, RING - 1)
            pipeline.execute()
        return time.perf_counter() - started_s


def redis_raw_s(path: Path, limit: int) -> float:
    """As `redis_s`, but protocol written by hand and no replies: Redis' mass insertion.

    It is faster than any client library, and does not learn of an error until the end.
    """
    with Redis() as server, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server.socket)
        started_s = time.perf_counter()
        connection.sendall(b"CLIENT REPLY OFF\r\n")
        stream = events(path, limit)
        while chunk := list(islice(stream, SEND_EVENTS)):
            connection.sendall("".join([_commands(*event) for event in chunk]).encode())
        connection.sendall(b"CLIENT REPLY ON\r\nPING\r\n")
        answer = b""
        while not answer.endswith(b"+PONG\r\n"):
            answer += connection.recv(1024)
        seconds = time.perf_counter() - started_s
        assert redis.Redis(unix_socket_path=server.socket).dbsize() > 0
        return seconds


def _commands(person: str, item: str, event: str, stamp: Any, value: float | None) -> str:
    entry = f"{item}|{event}|{stamp}|{value or 0}"
    size = len(person) + 2
    return (
        f"*4\r\n$7\r\nHINCRBY\r\n${size}\r\nc:{person}\r\n${len(event)}\r\n{event}\r\n$1\r\n1\r\n"
        f"*3\r\n$5\r\nLPUSH\r\n${size}\r\nr:{person}\r\n${len(entry)}\r\n{entry}\r\n"
        f"*4\r\n$5\r\nLTRIM\r\n${size}\r\nr:{person}\r\n$1\r\n0\r\n$2\r\n49\r\n"
    )
