"""Reads the three formats of data that quality is measured on: gzip'd TSV with a header."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TIME_S = 1_600_000_000
"""Where streams without real times, or with times that no clock shows, are put."""
TIME_MAX_S = 1_700_000_000
STEP_S = 60
PAGES_LEARN_ONLY = 3000
PAGES_SESSIONS = 15000


class Case(NamedTuple):
    """One prediction: `history` (oldest first) is known, `target` comes next."""

    history: list[int]
    target: int


class Data(NamedTuple):
    """One data set. Item numbers are dense.

    train    int32 [n], [n] and uint32 [n]: people, items, times in s, in order of the stream
    sessions test cases, grouped by the session (or user) that they are taken from
    hidden   which items may not be recommended: "none", "current" or "seen"
    """

    name: str
    kind: str
    items_n: int
    people: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.uint32]
    sessions: list[list[Case]]
    hidden: str


def read(folder: Path) -> Data:
    """The data set in `folder`. Raises ValueError if it holds none of the known formats."""
    if (folder / "cases.tsv.gz").exists():
        return _next_item(folder)
    if (folder / "sequences.tsv.gz").exists():
        return _leave_one_out(folder)
    if (folder / "sessions.tsv.gz").exists():
        return _pages(folder)
    raise ValueError(f"{folder}: wanted cases.tsv.gz, sequences.tsv.gz or sessions.tsv.gz")


def _rows(path: Path) -> Iterator[list[str]]:
    with gzip.open(path, "rt") as lines:
        next(lines)
        for line in lines:
            yield line.rstrip("\n").split("\t")


def _next_item(folder: Path) -> Data:
    numbers: dict[str, int] = {}
    people: dict[str, int] = {}
    stream = [
        (people.setdefault(s, len(people)), numbers.setdefault(i, len(numbers)), float(t))
        for s, i, t in _rows(folder / "train.tsv.gz")
    ]
    sessions: list[list[Case]] = []
    for _, prefix, target in _rows(folder / "cases.tsv.gz"):
        history = [numbers.setdefault(i, len(numbers)) for i in prefix.split()]
        case = Case(history, numbers.setdefault(target, len(numbers)))
        if sessions and _same_session(sessions[-1][-1], case):
            sessions[-1].append(case)
        else:
            sessions.append([case])
    about = json.loads((folder / "about.json").read_text())
    hidden = "current" if "removed" in about.get("current_item", "") else "none"
    times = np.array([t for _, _, t in stream])
    return Data(
        folder.name,
        "next-item",
        len(numbers),
        np.array([p for p, _, _ in stream], np.int32),
        np.array([i for _, i, _ in stream], np.int32),
        _clock_times(times),
        sessions,
        hidden,
    )


def _same_session(one: Case, other: Case) -> bool:
    """Whether two neighbouring cases are cuts of one session, in either order."""
    a, b = [*one.history, one.target], [*other.history, other.target]
    short, long = sorted((a, b), key=len)
    return len(long) == len(short) + 1 and long[: len(short)] == short


def _clock_times(times: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Times as they are if a clock can show them, else squeezed into [TIME_S, TIME_MAX_S]."""
    if times.min() >= 946_684_800 and times.max() < TIME_MAX_S:
        return times.astype(np.uint32)
    span = max(float(times.max() - times.min()), 1.0)
    scale = min(1.0, (TIME_MAX_S - TIME_S) / span)
    squeezed: NDArray[np.float64] = TIME_S + (times - times.min()) * scale
    return squeezed.astype(np.uint32)


def _leave_one_out(folder: Path) -> Data:
    """All but each user's last item are learned; everybody's stream ends at the same moment."""
    sequences = [[int(i) for i in row[1].split()] for row in _rows(folder / "sequences.tsv.gz")]
    lengths = np.array([len(s) - 1 for s in sequences])
    people = np.repeat(np.arange(len(sequences), dtype=np.int32), lengths)
    items = np.array([i for s in sequences for i in s[:-1]], np.int32)
    steps = np.concatenate([np.arange(-n, 0) for n in lengths])
    order = np.argsort(steps, kind="stable")
    times = (TIME_MAX_S + steps * STEP_S).astype(np.uint32)
    return Data(
        folder.name,
        "leave-one-out",
        max(max(s) for s in sequences) + 1,
        people[order],
        items[order],
        times[order],
        [[Case(s[:-1], s[-1])] for s in sequences],
        "seen",
    )


def _pages(folder: Path) -> Data:
    numbers: dict[str, int] = {}
    sessions = [
        [numbers.setdefault(page, len(numbers)) for page in row[1].split()]
        for row in _rows(folder / "sessions.tsv.gz")
    ]
    sessions = [s for s in sessions if len(s) > 1][:PAGES_SESSIONS]
    known = sessions[:PAGES_LEARN_ONLY]
    return Data(
        folder.name,
        "pages",
        len(numbers),
        np.repeat(np.arange(len(known), dtype=np.int32), [len(s) for s in known]),
        np.array([page for s in known for page in s], np.int32),
        (TIME_S + np.arange(sum(len(s) for s in known))).astype(np.uint32),
        [[Case(s[:j], s[j]) for j in range(1, len(s))] for s in sessions[PAGES_LEARN_ONLY:]],
        "none",
    )
