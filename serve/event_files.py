"""Events from a file, as messages of `POST /v1/track`. Reads line by line, never the whole file.

Two formats, either of them gzip'd: JSON lines, each a track message in Segment's spelling; and
tables with tabs and a header, whose columns may be named as public data sets name them.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec

from cluster.errors import ConfigError

LINE_BYTES_MAX = 64 << 10
JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})

DEFAULT_EVENT = "Item Viewed"

# What a column may be called; the first name that a header has is taken.
COLUMNS = {
    "userId": ("userId", "user_id", "user"),
    "anonymousId": ("anonymousId", "anonymous_id", "session_id", "visitor_id"),
    "itemId": ("itemId", "item_id", "item"),
    "event": ("event", "event_type"),
    "value": ("value", "rating"),
    "timestamp": ("timestamp", "time"),
}
Message = dict[str, Any]


class BadLine(NamedTuple):
    """A line that holds no event, and why. Lines count from 1."""

    line: int
    why: str


def read_events(path: Path) -> Iterator[Message | BadLine]:
    """Each line's message, or what is wrong with it.

    Raises ConfigError if the file can't be read or its header names no item or nobody.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            yield from _messages(cast(BinaryIO, file), path)
    except (OSError, EOFError) as error:
        raise ConfigError(f"events file {path}: {error}") from None


def item_ids(path: Path) -> set[str]:
    """Every item that the file's events name."""
    found: set[str] = set()
    for message in read_events(path):
        if not isinstance(message, BadLine):
            item = (message.get("properties") or {}).get("itemId")
            if isinstance(item, str):
                found.add(item)
    return found


def _messages(file: BinaryIO, path: Path) -> Iterator[Message | BadLine]:
    lines = _lines(file)
    message_of: Callable[[bytes], Message]
    if JSON_SUFFIXES.intersection(path.suffixes):
        message_of = _json_message
    else:
        header = next(lines, (1, b""))[1] or b""
        message_of = _reader_of(header.decode("utf-8", "replace").split("\t"), path)
    for number, line in lines:
        try:
            if line is None:
                raise ValueError(f"it is longer than {LINE_BYTES_MAX} bytes")
            if line:
                yield message_of(line)
        except (ValueError, msgspec.DecodeError) as error:
            yield BadLine(number, str(error))


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of each line; None for one longer than LINE_BYTES_MAX."""
    number = 0
    while line := file.readline(LINE_BYTES_MAX):
        number += 1
        whole = line.endswith(b"\n") or len(line) < LINE_BYTES_MAX
        yield number, line.rstrip(b"\r\n") if whole else None
        while not whole:
            rest = file.readline(LINE_BYTES_MAX)
            whole = rest.endswith(b"\n") or not rest


def _json_message(line: bytes) -> Message:
    message: Message = msgspec.json.decode(line, type=dict[str, Any])
    kind = message.pop("type", "track")
    if kind != "track":
        raise ValueError(f"type must be 'track', got {kind!r}")
    if "event" not in message:
        raise ValueError("it has no 'event'")
    return message


def _reader_of(header: list[str], path: Path) -> Callable[[bytes], Message]:
    """A function from a line to its message. Raises ConfigError if the header is not enough."""
    at = {
        field: next((header.index(name) for name in names if name in header), None)
        for field, names in COLUMNS.items()
    }
    person = "userId" if at["userId"] is not None else "anonymousId"
    for field in (person, "itemId"):
        if at[field] is None:
            wanted = " or ".join(n for f in ("userId", person, field) for n in COLUMNS[f])
            raise ConfigError(
                f"events file {path}: the header must name {wanted}, got {header[:20]}"
            )
    columns: Mapping[str, int] = {f: i for f, i in at.items() if i is not None}

    def message_of(line: bytes) -> Message:
        row = line.decode().split("\t")
        if len(row) != len(header):
            raise ValueError(f"it must have {len(header)} columns, got {len(row)}")
        properties: Message = {"itemId": _filled(row[columns["itemId"]], "itemId")}
        if "value" in columns:
            properties["value"] = float(row[columns["value"]])
        message: Message = {
            person: _filled(row[columns[person]], person),
            "event": row[columns["event"]] if "event" in columns else DEFAULT_EVENT,
            "properties": properties,
        }
        if "timestamp" in columns:
            message["timestamp"] = _timestamp(row[columns["timestamp"]])
        return message

    return message_of


def _filled(text: str, field: str) -> str:
    if not text:
        raise ValueError(f"{field} is empty")
    return text


def _timestamp(text: str) -> str | float:
    """A number (seconds or milliseconds, onehop can tell them apart) or ISO 8601 as it stands."""
    try:
        return float(text)
    except ValueError:
        return text
