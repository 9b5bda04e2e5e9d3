"""Work beside serving that must not disturb it: in a thread of low priority, on a disk with rests.

A log shares its disk with snapshots and with what is deleted. A flush of the log waits for all that
the disk was given before: for a large write, and for the blocks of a deleted file, which a disk may
be told of one by one. So both are done in small pieces, and the disk has as much time to itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from io import BufferedWriter
from pathlib import Path
from typing import TypeVar

LOG = logging.getLogger("onehop.actors")
T = TypeVar("T")
NICE = 5
"""Who answers gets the core at once, and it still gets a quarter of a busy one."""
PIECE_BYTES = 256 << 10
HURRIED_BYTES = 4 << 20
WORK_S = 0.0005
FREED_BYTES = 4 << 20
FREED_REST_S = 0.02
GONE = ".gone"
"""How a file is called while it is being deleted."""


async def quietly(act: Callable[..., T], *args: object) -> T:
    """What `act` returns, called in this process's one thread of low priority."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_thread("quiet"), _yielding, act, *args)


def later(act: Callable[..., object], *args: object) -> None:
    """Call `act` some time in a thread of low priority; nobody waits, errors are logged."""

    def logged() -> None:
        try:
            act(*args)
        except Exception:
            LOG.exception("what was put off failed")

    # Not the one of `quietly`: what takes minutes would stand before what is waited for.
    _thread("later").submit(_yielding, logged)


@lru_cache(maxsize=2)
def _thread(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, name)


def _yielding(act: Callable[..., T], *args: object) -> T:
    # Of this thread: Linux knows no priority of a process.
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))
    return act(*args)


def starting_niceness() -> int:
    """At what niceness processes may start that call `come_first` once they answer: at NICE, if
    this process may lower one again, else at 0."""

    def lowered() -> int:
        thread = threading.get_native_id()
        try:
            os.setpriority(os.PRIO_PROCESS, thread, NICE)
            os.setpriority(os.PRIO_PROCESS, thread, 0)
        except PermissionError:
            return 0
        return NICE

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lowered).result()


def come_first() -> None:
    """Let this process's threads have the cores before those of processes that only start yet.

    Where the system forbids it, all have the same niceness, since `starting_niceness` said so.
    """
    for thread in os.listdir("/proc/self/task"):
        with suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread), 0)


def settle_memory() -> None:
    """Of a process that is about to answer: what lives now lives for good, and the hot path makes
    no cycles. The garbage collector looks seldom, since a long look stops everything."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


class Pace:
    """Work with rests, each as long as the work before it: who answers meanwhile has the core, its
    cache and the way to memory for itself half of the time, whatever the priorities say.

    hurried  somebody waits: there are no rests
    clock    what counts as work, in seconds: what this thread has of a core, so that on a machine
             without time it does not rest for having waited; for a disk, all time
    """

    def __init__(
        self, hurried: bool = False, clock: Callable[[], float] = time.thread_time
    ) -> None:
        self.hurried = hurried
        self._clock = clock
        self._since_s = clock()

    def rest(self) -> None:
        """Called often; rests once there was work for WORK_S."""
        if self.hurried:
            return
        worked_s = self._clock() - self._since_s
        if worked_s > WORK_S:
            time.sleep(worked_s)
            self._since_s = self._clock()


def write_resting(file: BufferedWriter, data: memoryview, hurried: bool = False) -> None:
    """Write and flush piece by piece, with rests; if `hurried`, in larger pieces."""
    size = HURRIED_BYTES if hurried else PIECE_BYTES
    pace = Pace(hurried, time.monotonic)
    for at in range(0, len(data), size):
        file.write(data[at : at + size])
        file.flush()
        os.fdatasync(file.fileno())
        pace.rest()


def remove_resting(folder: Path, paths: Iterable[Path]) -> None:
    """Delete files of a folder: all of their names at once, then their blocks bit by bit. What a
    process that ended meanwhile had begun to delete, too."""
    for path in paths:
        path.rename(path.with_name(path.name + GONE))
    for path in folder.glob("*" + GONE):
        # Another may be at it too.
        with suppress(FileNotFoundError):
            _shorten(path)
            path.unlink()


def _shorten(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END) if _is_ours_alone(file.fileno()) else 0
        while size > FREED_BYTES:
            size -= FREED_BYTES
            file.truncate(size)
            time.sleep(FREED_REST_S)


def _is_ours_alone(descriptor: int) -> bool:
    """Whether nobody reads the file, nor knows it by another name: what they see must stay."""
    if os.fstat(descriptor).st_nlink > 1:
        return False
    # Who opens a leased file has its holder sent a signal: one that ends nobody.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    try:
        # Linux leases a file for writing only where no other descriptor of it is open.
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
