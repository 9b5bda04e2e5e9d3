"""Which processes were started below this one, and how to end them: by id, never by name.

A process id alone can be reused; together with its start time it can't.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.05
PR_SET_CHILD_SUBREAPER = 36


class Process(NamedTuple):
    """One process: id, parent, and start time in clock ticks since boot."""

    pid: int
    parent: int
    started: int


def descendants(root: int) -> set[Process]:
    """All processes below `root`, without it. Empty where there is no /proc."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        process = _read(int(entry.name))
        if process is not None:
            children.setdefault(process.parent, []).append(process)
    found: set[Process] = set()
    queue = [root]
    while queue:
        for process in children.get(queue.pop(), ()):
            if process not in found:
                found.add(process)
                queue.append(process.pid)
    return found


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent dies, so that `descendants` goes on finding
    them. Only on Linux; elsewhere nothing."""
    if Path("/proc").exists():
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def name_of(process: Process) -> str:
    """The name of its program, at most 15 bytes; "" if it is gone."""
    try:
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    except OSError:
        return ""


def end(processes: Iterable[Process], grace_s: float) -> None:
    """Wait `grace_s` for these to end by themselves, then SIGTERM, then SIGKILL."""
    left = list(processes)
    for number, wait_s in ((None, grace_s), (signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        if number is not None:
            for process in left:
                if alive(process):
                    _signal(process.pid, number)
        deadline = time.monotonic() + wait_s
        while left and time.monotonic() < deadline:
            left = [process for process in left if alive(process)]
            time.sleep(POLL_S)
        if not left:
            return


def alive(process: Process) -> bool:
    """Whether this very process still runs; a zombie does not."""
    now = _read(process.pid)
    return now is not None and now.started == process.started


def _read(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may itself hold blanks and parentheses.
    state, parent, *rest = text.rpartition(")")[2].split()
    return None if state == "Z" else Process(pid, int(parent), int(rest[17]))


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
