"""Closed treatment decisions as Parquet: one row per decision, lists by slot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from actors.evaluation import Logged
from actors.reward_ops import Outcome
from actors.treatment.traces import traced
from cluster.errors import RequestError

ROWS_MAX = 10_000
TRACE_BYTES_MAX = 16 << 20
"""Rows of one row group, and bytes of their traces: what is held in memory."""

SCHEMA = pa.schema(
    [
        ("decisionId", pa.string()),
        ("surface", pa.string()),
        ("policyId", pa.string()),
        ("decidedAt", pa.int64()),
        ("active", pa.bool_()),
        ("actions", pa.list_(pa.string())),
        ("slots", pa.list_(pa.string())),
        ("shadow", pa.list_(pa.string())),
        ("propensities", pa.list_(pa.float64())),
        ("chances", pa.list_(pa.float32())),
        ("rewards", pa.list_(pa.float64())),
        ("rewarded", pa.list_(pa.bool_())),
        ("trace", pa.binary()),
    ]
)


class OutcomesFile:
    """A file that is written row group by row group, whole or not at all: a context manager."""

    def __init__(self, path: Path) -> None:
        self.written = 0
        self._path = path
        self._temporary = path.with_name(f".{path.name}.part")
        self._rows: list[dict[str, Any]] = []
        self._trace_bytes = 0

    def __enter__(self) -> Self:
        self._writer = pq.ParquetWriter(self._temporary, SCHEMA)
        return self

    def write(self, outcomes: Iterable[Outcome]) -> None:
        """Add decisions; a row group is written when it is full."""
        for outcome in outcomes:
            self._rows.append(_row(outcome))
            self._trace_bytes += len(outcome.trace)
            self.written += 1
            if len(self._rows) >= ROWS_MAX or self._trace_bytes >= TRACE_BYTES_MAX:
                self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows, self._trace_bytes = [], 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                self._temporary.rename(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def _row(outcome: Outcome) -> dict[str, Any]:
    seen = traced(outcome.trace)
    return {
        "decisionId": outcome.decision_id,
        "surface": outcome.surface,
        "policyId": outcome.policy_id,
        "decidedAt": outcome.decided_at,
        "active": outcome.active,
        "actions": outcome.actions,
        "slots": outcome.slots,
        "shadow": outcome.shadow,
        "propensities": seen.propensities.tolist(),
        "chances": seen.chances.tolist(),
        "rewards": outcome.rewards,
        "rewarded": outcome.rewarded,
        "trace": outcome.trace,
    }


def read_logged(paths: Sequence[Path], policy_id: str | None = None) -> list[Logged]:
    """Decisions that were seen, of one policy if it is named, in the order of their times.

    Raises RequestError if a file has other columns.
    """
    found: list[tuple[int, str, Logged]] = []
    wanted = ["decisionId", "policyId", "decidedAt", "active", "rewards", "trace"]
    for path in paths:
        for row in _rows(path, wanted):
            if row["active"] and policy_id in (None, row["policyId"]):
                logged = Logged(row["trace"], row["rewards"])
                found.append((row["decidedAt"], row["decisionId"], logged))
    found.sort(key=lambda entry: entry[:2])
    return [logged for _, _, logged in found]


def _rows(path: Path, wanted: list[str]) -> Iterator[dict[str, Any]]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise RequestError(422, f"no Parquet file: {error}", "file", str(path)) from None
    missing = sorted(set(wanted) - set(file.schema_arrow.names))
    if missing:
        seen, columns = ", ".join(file.schema_arrow.names), ", ".join(wanted)
        raise RequestError(422, f"{path} lacks {', '.join(missing)}", "columns", seen, columns)
    for batch in file.iter_batches(ROWS_MAX, columns=wanted):
        yield from batch.to_pylist()
