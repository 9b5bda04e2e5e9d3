"""Rows of a Parquet batch as JSON: traits of profiles for their owners, items for the catalogue."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.bulk_hash import OK
from actors.import_rows import (
    BAD_ITEM,
    BAD_TRAITS,
    Reject,
    decoded,
    encoded,
    person_hashes,
    sample_rejects,
    usable_name,
)
from actors.parquet_input import Source
from actors.profile import TRAITS_BYTES_MAX, TRAITS_MAX

Counted = tuple[dict[str, int], list[Reject]]


def profile_chunks(
    source: Source,
    first_row: int,
    batch: pa.RecordBatch,
    tenant: str,
    starts: NDArray[np.uint64],
) -> tuple[list[dict[str, Any]], Counted]:
    """One chunk per owner, and what was refused.

    A chunk is {"key_hi": int64 [n], "key_lo": int64 [n], "traits": JSON objects [n]}.
    """
    hi, lo, faults = person_hashes(batch, source.columns, tenant)
    documents = _documents(batch, source.extra)
    for i in np.flatnonzero(faults == OK).tolist():
        document = documents[i]
        if document is None or len(document) > TRAITS_BYTES_MAX or len(source.extra) > TRAITS_MAX:
            faults[i] = BAD_TRAITS
    owner_of = np.searchsorted(starts, hi, side="right") - 1
    chunks: list[dict[str, Any]] = []
    for owner in range(len(starts)):
        rows = np.flatnonzero((owner_of == owner) & (faults == OK))
        chunks.append(
            {
                "key_hi": hi[rows].view(np.int64),
                "key_lo": lo[rows].view(np.int64),
                "traits": [documents[i] for i in rows.tolist()],
            }
        )
    return chunks, sample_rejects(faults, first_row, batch, source.columns, source.path)


def item_documents(
    source: Source, first_row: int, batch: pa.RecordBatch
) -> tuple[list[bytes], list[int], Counted]:
    """Items as JSON, the row of each in the file, and what was refused."""
    dictionary, codes = encoded(batch.column(source.columns["id"]))
    texts = decoded(dictionary)
    embedding = source.columns.get("embedding")
    vectors = batch.column(embedding).to_pylist() if embedding else [None] * batch.num_rows
    attributes = [_cells(batch.column(name)) for name in source.extra]
    faults = np.zeros(batch.num_rows, np.uint8)
    documents: list[bytes] = []
    rows: list[int] = []
    for i, code in enumerate(codes.tolist()):
        text = texts[code] if code >= 0 else None
        if not usable_name(text):
            faults[i] = BAD_ITEM
            continue
        item: dict[str, Any] = {"id": text}
        item["attributes"] = {
            name: column[i]
            for name, column in zip(source.extra, attributes, strict=True)
            if column[i] is not None
        }
        if vectors[i] is not None:
            item["embedding"] = vectors[i]
        documents.append(msgspec.json.encode(item))
        rows.append(first_row + i)
    return documents, rows, sample_rejects(faults, first_row, batch, source.columns, source.path)


def _documents(batch: pa.RecordBatch, names: tuple[str, ...]) -> list[bytes | None]:
    """Each row's columns as a JSON object without nulls; None where a value can't be shown."""
    columns = [_cells(batch.column(name)) for name in names]
    documents: list[bytes | None] = []
    for i in range(batch.num_rows):
        traits = {
            name: column[i]
            for name, column in zip(names, columns, strict=True)
            if column[i] is not None
        }
        try:
            documents.append(msgspec.json.encode(traits))
        except (TypeError, ValueError, OverflowError):
            documents.append(None)
    return documents


def _cells(column: pa.Array) -> list[Any]:
    """Python values; an object that can't be encoded where one can't be read."""
    try:
        cells: list[Any] = column.to_pylist()
        return cells
    except (UnicodeDecodeError, ValueError, OverflowError):
        return [_cell(column[i]) for i in range(len(column))]


def _cell(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        return error
