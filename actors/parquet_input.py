"""Parquet files as input: found, checked before anything is read, and cut into bounded batches.

A file is trusted only as far as its footer goes: columns and types are checked there, so a wrong
file is refused before anything changes. What is wrong in a single row is that row's reject.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import RequestError

Kind = Literal["events", "items", "profiles"]

BATCH_ROWS = 1 << 17
"""Rows decoded at a time; what a reader holds is this and one row group's compressed columns."""
FILES_MAX = 100_000

# Field -> names a column may have. The first that is there is taken, unless a mapping names one.
ALIASES: dict[str, tuple[str, ...]] = {
    "userId": ("userId", "user_id"),
    "anonymousId": ("anonymousId", "anonymous_id"),
    "itemId": ("itemId", "item_id"),
    "event": ("event",),
    "timestamp": ("timestamp",),
    "value": ("value",),
    "id": ("id", "itemId", "item_id"),
    "embedding": ("embedding",),
}
FIELDS: dict[Kind, tuple[str, ...]] = {
    "events": ("userId", "anonymousId", "itemId", "event", "timestamp", "value"),
    "items": ("id", "embedding"),
    "profiles": ("userId", "anonymousId"),
}
REQUIRED: dict[Kind, tuple[str, ...]] = {
    "events": ("itemId", "event", "timestamp"),
    "items": ("id",),
    "profiles": (),
}


class Source(msgspec.Struct, frozen=True):
    """One Parquet file whose footer was read and found usable.

    columns       field -> column name, for the fields of its kind that the file has
    extra         the other columns: attributes of items, traits of profiles
    group_rows    rows of each row group
    identity      names the content, wherever the file lies: footer, size and column names
    """

    path: str
    kind: Kind
    columns: dict[str, str]
    extra: tuple[str, ...]
    group_rows: tuple[int, ...]
    identity: str

    @property
    def rows(self) -> int:
        return sum(self.group_rows)


def open_sources(path: str, kind: Kind, mapping: Mapping[str, str]) -> list[Source]:
    """The Parquet file at `path`, or all of a folder by name, each checked against `kind`.

    mapping  field -> column name, where a column has neither of the names in ALIASES
    Raises   RequestError naming the file, what was seen and what is wanted. Reads footers only.
    """
    for field in mapping:
        if field not in ALIASES:
            raise RequestError(
                422, "unknown field in the mapping", "mapping", repr(field), ", ".join(ALIASES)
            )
    try:
        files = _files(Path(path).expanduser(), path, kind)
    except (OSError, ValueError, RuntimeError):
        # Too long a name, a NUL in it, no such user's home, a folder that can't be read.
        raise RequestError(
            422, "the path can't be used", kind, path, "a Parquet file or a folder of them"
        ) from None
    return [_open_source(file, kind, mapping) for file in files]


def check_roots(path: str, kind: Kind, roots: Sequence[Path]) -> None:
    """Raises RequestError (403) if a path, links followed, leads out of `roots`.

    Asked before the path is looked at, so that nobody learns what lies elsewhere.
    """
    try:
        real = Path(path).expanduser().resolve()
        allowed = any(real.is_relative_to(root.resolve()) for root in roots)
    except (OSError, ValueError, RuntimeError):
        # What leads nowhere can't be opened either, and is refused for that.
        return
    if not allowed:
        wanted = " or ".join(f"below {root}" for root in roots)
        raise RequestError(403, "imports may not read there", kind, path, wanted)


def _files(root: Path, path: str, kind: Kind) -> list[Path]:
    """The file at `root`, or those in the folder. Raises RequestError if there is none."""
    if root.is_dir():
        files = sorted(p for p in root.rglob("*.parquet") if p.is_file())[: FILES_MAX + 1]
        if not files or len(files) > FILES_MAX:
            seen = f"{path}: {len(files)} files"
            raise RequestError(
                422, "no usable folder", kind, seen, f"1 to {FILES_MAX} files named *.parquet"
            )
        return files
    if not root.is_file():
        raise RequestError(
            422, "there is no such file", kind, path, "a Parquet file or a folder of them"
        )
    return [root]


def _open_source(path: Path, kind: Kind, mapping: Mapping[str, str]) -> Source:
    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        identity = _identity(path, sorted(mapping.items()))
    except (pa.ArrowException, OSError, ValueError) as error:
        seen = str(error).partition("\n")[0]
        wanted = "a whole Parquet file (it ends with its footer)"
        raise RequestError(422, f"{path.name} can't be read", kind, seen, wanted) from None
    columns: dict[str, str] = {}
    for field in FIELDS[kind]:
        names = (mapping[field],) if field in mapping else ALIASES[field]
        found = next((name for name in names if name in schema.names), None)
        if found is not None:
            _check_type(path, field, schema.field(found))
            columns[field] = found
        elif field in REQUIRED[kind] or field in mapping:
            raise _missing(path, names, schema)
    if kind != "items" and "userId" not in columns and "anonymousId" not in columns:
        raise _missing(path, ALIASES["userId"] + ALIASES["anonymousId"], schema)
    group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    extra = tuple(name for name in schema.names if name not in columns.values())
    if kind == "items":
        for name in extra:
            _check_type(path, "attribute", schema.field(name))
    return Source(str(path), kind, columns, extra, group_rows, identity)


def _missing(path: Path, names: tuple[str, ...], schema: pa.Schema) -> RequestError:
    return RequestError(
        422,
        f"{path.name} has no such column",
        " or ".join(names),
        f"columns {', '.join(schema.names)}",
        "the column, or a mapping that names another",
    )


def _identity(path: Path, mapping: list[tuple[str, str]]) -> str:
    """Names a file by its size and footer, which holds every row group's place and statistics."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(size - 8)
        footer_bytes = int.from_bytes(file.read(4), "little")
        file.seek(size - 8 - footer_bytes)
        footer = file.read(footer_bytes)
    hashed = blake2b(f"{size}{mapping}".encode(), digest_size=16)
    hashed.update(footer)
    return hashed.hexdigest()


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, plain or dictionary-encoded."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_type(path: Path, field: str, column: pa.Field) -> None:
    kind, types = column.type, pa.types
    number = types.is_integer(kind) or types.is_floating(kind)
    if field in ("userId", "anonymousId", "itemId", "id"):
        fits, wanted = is_text(kind) or types.is_integer(kind), "text or integers"
    elif field == "event":
        fits, wanted = is_text(kind), "text"
    elif field == "timestamp":
        fits = types.is_timestamp(kind) or number
        wanted = "timestamps, or numbers of seconds or milliseconds since 1970"
    elif field == "value":
        fits, wanted = number or types.is_decimal(kind), "numbers"
    elif field == "attribute":
        fits, wanted = (
            is_text(kind) or number or types.is_boolean(kind),
            "text, numbers or booleans",
        )
    else:
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        fits = is_list and types.is_floating(kind.value_type)
        wanted = "lists of float"
    if not fits:
        raise RequestError(
            422, f"{path.name}: a column has the wrong type", column.name, str(kind), wanted
        )


def batches(
    source: Source, row_group: int, columns: list[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Record batches of one row group, each with the number of its first row in the file.

    Text columns among items and events come dictionary-encoded. Raises RequestError if the
    row group is corrupt.
    """
    encoded = [source.columns[f] for f in ("itemId", "event") if f in source.columns]
    first = sum(source.group_rows[:row_group])
    try:
        with pq.ParquetFile(source.path, read_dictionary=encoded, memory_map=True) as file:
            for batch in file.iter_batches(BATCH_ROWS, [row_group], columns, use_threads=False):
                yield first, batch
                first += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RequestError(
            422,
            f"{source.path}: row group {row_group} can't be read",
            source.kind,
            str(error).partition("\n")[0],
            "intact pages",
        ) from None
