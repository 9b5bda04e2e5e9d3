"""One onehop that faults of single processes share, and how a history is judged and kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.load import ITEM, Load, http_wire
from tests.faults.onehop import Onehop
from tests.history import write_history

SMALL: dict[str, str | int] = {
    "ONEHOP_SHARDS": 2,
    "ONEHOP_PROFILES_MAX": 100_000,
    # Rotates every few seconds of load, so that faults meet compactions.
    "ONEHOP_WAL_SEGMENT_BYTES": 1 << 20,
}


def new_load(onehop: Onehop, seed: int, **settings: float) -> Load:
    """Callers of a running onehop, over HTTP."""
    return Load(lambda: http_wire(onehop.url, onehop.key), seed, **settings)  # type: ignore[arg-type]


def put_item(onehop: Onehop) -> None:
    """The item that all events are about."""
    onehop.call("PUT", f"/v1/items/{ITEM}", {})


def judge(load: Load, kept: Path) -> None:
    """Fail, and keep the history, unless all is as it was promised."""
    wrong = load.check()
    acknowledged = load.acknowledged()
    print(f"{len(load.history)} calls, {acknowledged} acknowledged appends")
    if wrong:
        kept.mkdir(parents=True, exist_ok=True)
        write_history(kept / f"{load.name}.jsonl", load.history)
    assert not wrong, f"{len(wrong)} violations, history kept in {kept}: {wrong[:5]}"
    assert acknowledged > 0


@pytest.fixture(scope="session")
def kept() -> Path:
    """Where histories of failures stay."""
    return Path(".cache/histories").absolute()


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Onehop]:
    """Two shards and a gateway behind HAProxy."""
    with Onehop(tmp_path_factory.mktemp("faults"), **SMALL) as running:
        put_item(running)
        yield running


@pytest.fixture
def onehop(_shared: Onehop) -> Onehop:
    """What the tests share; one that fails and leaves it dead does not cost the others."""
    if not _shared.running():
        _shared.start()
    return _shared
