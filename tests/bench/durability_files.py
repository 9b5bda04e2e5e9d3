"""Files of `tests.bench.durability`: a snapshot restored beside cat and Redis, and a bare flush."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from actors.snapshot import read_snapshot, write_snapshot
from actors.state import ShardState
from actors.wal import End, fsync_folder
from cluster.config import Config
from cluster.keys import HASH_SPACE, KeyRange
from tests.bench.harness import Redis, percentile
from tests.bench.memory import REDIS_CHUNK, SETS, Filler, filled, hset_commands

EVERYTHING = KeyRange(0, HASH_SPACE)
FLUSHES = 2000
SEGMENT_BYTES = 64 << 20
REDIS_S = 120.0


def timed(act: Callable[[], object]) -> float:
    """Seconds that `act` takes."""
    began_s = time.perf_counter()
    act()
    return time.perf_counter() - began_s


def fdatasync_p50_us(folder: Path, size: int, pause_s: float = 0.0) -> float:
    """Median of a write of `size` bytes and its fdatasync, into a file allocated before.

    pause_s  before each: a disk that rests in between, as between requests, takes longer
    """
    path = folder / "flushed"
    content = os.urandom(size)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, SEGMENT_BYTES)
        os.fsync(descriptor)
        taken = []
        for number in range(FLUSHES):
            if pause_s:
                time.sleep(pause_s)
            began_ns = time.perf_counter_ns()
            os.pwrite(descriptor, content, number * size)
            os.fdatasync(descriptor)
            taken.append((time.perf_counter_ns() - began_ns) / 1e3)
    finally:
        os.close(descriptor)
        path.unlink()
    return percentile(sorted(taken), 0.5)


class Restores:
    """A snapshot of `people`, and the same people in a Redis dump."""

    def __init__(self, people: int, seed: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bench-durability-"))
        store, _ = filled(SETS[0], people, seed)
        state = ShardState("0", EVERYTHING, Config(), learns=False)
        state.store = store
        self.path = write_snapshot(state, self._folder, End(2, 1, None, 0, 0))
        fsync_folder(self._folder)
        self.bytes = self.path.stat().st_size
        self._dump(state)

    def _dump(self, state: ShardState) -> None:
        with Redis() as server:
            filler = Filler(server)
            commands = hset_commands(state.store)
            while chunk := list(islice(commands, REDIS_CHUNK)):
                filler.send(chunk)
            filler.send([b"SAVE\r\n"])
            shutil.copy(server.folder / "dump.rdb", self._folder / "dump.rdb")
            filler.close()

    def cat_s(self) -> float:
        with Path(os.devnull).open("wb") as nothing:
            return timed(lambda: subprocess.run(["cat", self.path], stdout=nothing, check=True))

    def evict(self) -> None:
        """Drop the snapshot from the page cache, as a reboot does."""
        descriptor = os.open(self.path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def restore_s(self) -> float:
        """Seconds from an empty shard to all profiles, every checksum compared."""
        state = ShardState("0", EVERYTHING, Config(), learns=False)
        return timed(lambda: read_snapshot(self.path, state))

    def redis_s(self) -> float:
        """Seconds from the start of redis-server to its first answer with all data."""

        def restart() -> None:
            with Redis("--dbfilename", "dump.rdb", folder=self._folder) as server:
                filler = Filler(server)
                deadline = time.monotonic() + REDIS_S
                while time.monotonic() < deadline:
                    try:
                        filler.send([b"DBSIZE\r\n"])
                        break
                    except Exception as error:
                        if "LOADING" not in str(error):
                            raise
                        time.sleep(0.005)
                self._loaded_s = time.perf_counter()
                filler.close()

        began_s = time.perf_counter()
        restart()
        return self._loaded_s - began_s

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
