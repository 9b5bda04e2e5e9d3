"""What callers saw, and whether a correct system could have shown it. Pure; one pass per list.

Every list is one test profile. Callers append numbers that no other append has, and read the whole
list. A history is the calls with the time of their invocation and return, on one clock; an append
is `ok` (acknowledged), `fail` (surely not done) or `unknown` (it may have been done, once). `check`
compares it with what stands in the lists at the end, wherever that was read: from memory, from a
backup, or from what a restart replayed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

Outcome = Literal["ok", "fail", "unknown"]
NEVER = 1 << 62
"""Returns of calls of which nobody ever heard."""


class Append(msgspec.Struct, tag="append", gc=False):
    """One number appended to a list, however often it was tried.

    position  where the answer said it stands, from 1; 0 = it said nothing
    """

    client: int
    key: str
    number: int
    invoked_ns: int
    returned_ns: int
    outcome: Outcome
    position: int = 0


class Read(msgspec.Struct, tag="read", gc=False):
    """One answered read of a list."""

    client: int
    key: str
    invoked_ns: int
    returned_ns: int
    numbers: list[int]


Call = Append | Read


class Violation(NamedTuple):
    """Something that must not be: which rule, in which list, and what was seen."""

    rule: str
    key: str
    detail: str


def check(history: Iterable[Call], final: Mapping[str, Sequence[int]]) -> list[Violation]:
    """Every way in which the history and the lists at the end contradict the promises.

    final  the lists at the end, a missing one is empty

    lost       an acknowledged number is not there
    doubled    a number is there twice
    phantom    a number is there that nobody appended, or whose append surely failed
    order      a number whose append returned before another's began stands behind it
    position   an answer named another place than the one where the number stands
    prefix     a read saw what is no beginning of the list
    stale      a read lacks what was acknowledged, or was read, before it began
    future     a read has a number whose append began after it returned
    """
    appends: defaultdict[str, list[Append]] = defaultdict(list)
    reads: defaultdict[str, list[Read]] = defaultdict(list)
    for call in history:
        if isinstance(call, Append):
            appends[call.key].append(call)
        else:
            reads[call.key].append(call)
    found: list[Violation] = []
    for key in {*appends, *reads, *final}:
        numbers = final.get(key, ())
        found += _check_presence(key, appends[key], numbers)
        found += _check_order(key, appends[key], numbers)
        found += _check_reads(key, appends[key], reads[key], numbers)
    return found


def _check_presence(
    key: str, appends: Sequence[Append], numbers: Sequence[int]
) -> Iterable[Violation]:
    counts = Counter(numbers)
    known = {append.number: append for append in appends}
    for number, count in counts.items():
        if number not in known or known[number].outcome == "fail":
            yield Violation("phantom", key, f"{number} is there, {known.get(number)}")
        if count > 1:
            yield Violation("doubled", key, f"{number} is there {count} times")
    for append in appends:
        if append.outcome == "ok" and append.number not in counts:
            yield Violation("lost", key, f"{append} is not there")


def _check_order(
    key: str, appends: Sequence[Append], numbers: Sequence[int]
) -> Iterable[Violation]:
    known = {append.number: append for append in appends}
    latest: Append | None = None
    for place, number in enumerate(numbers, 1):
        append = known.get(number)
        if append is None:
            continue
        if append.position not in (0, place):
            yield Violation("position", key, f"{append} stands at {place}")
        # Whoever stands before me must not have begun after I was done: the latest start decides.
        if latest is not None and _returned(append) < latest.invoked_ns:
            yield Violation("order", key, f"{append} stands behind {latest}")
        if latest is None or append.invoked_ns > latest.invoked_ns:
            latest = append


def _check_reads(
    key: str, appends: Sequence[Append], reads: Sequence[Read], numbers: Sequence[int]
) -> Iterable[Violation]:
    invoked = {append.number: append.invoked_ns for append in appends}
    places = {number: place for place, number in enumerate(numbers, 1)}
    # How long a list must be at least, from when on: acknowledged appends, and earlier reads.
    demands = [
        (append.returned_ns, places[append.number])
        for append in appends
        if append.outcome == "ok" and append.number in places
    ]
    demands += [(read.returned_ns, len(read.numbers)) for read in reads]
    demands.sort()
    at, least = 0, 0
    for read in sorted(reads, key=lambda read: read.invoked_ns):
        while at < len(demands) and demands[at][0] < read.invoked_ns:
            least = max(least, demands[at][1])
            at += 1
        seen = len(read.numbers)
        if read.numbers != list(numbers[:seen]):
            yield Violation("prefix", key, f"{read} of {list(numbers)}")
        if seen < least:
            yield Violation("stale", key, f"{read} has {seen} numbers, {least} were there before")
        if any(invoked.get(number, 0) > read.returned_ns for number in read.numbers):
            yield Violation("future", key, f"{read} has what was not appended yet")


def _returned(append: Append) -> int:
    return append.returned_ns if append.outcome == "ok" else NEVER


_decode = msgspec.json.Decoder(Call).decode


def write_history(path: Path, history: Iterable[Call]) -> None:
    """One JSON object a line."""
    with path.open("wb") as file:
        for call in history:
            file.write(msgspec.json.encode(call) + b"\n")


def read_history(path: Path) -> list[Call]:
    """What `write_history` wrote."""
    return [_decode(line) for line in path.read_bytes().splitlines()]
