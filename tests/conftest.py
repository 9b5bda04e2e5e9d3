"""The one running onehop that all tests with the mark `cluster` share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from cluster.config import Config

if TYPE_CHECKING:
    from serve.launch import Cluster


SHARED = ("cluster", "_shared")
"""Fixtures that are a running onehop."""


# Before xdist's own, in its workers, reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers (`make test`), whoever shares a running onehop shares a worker, and what
    takes longest begins first."""
    if not config.getoption("loadgroup", False):
        return
    items.sort(key=lambda item: item.get_closest_marker("faults") is None)
    for item in items:
        for name in SHARED:
            if isinstance(item, pytest.Function) and name in item.fixturenames:
                item.add_marker(pytest.mark.xdist_group(name))


def pytest_collection_finish(session: pytest.Session) -> None:
    """xdist reads its groups in a way that not every pytest goes along with, and says nothing."""
    for item in session.items:
        if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} is in no group: several onehops would run")


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End a onehop that is used no more: even an idle one costs a quarter of a core."""
    if not isinstance(item, pytest.Function):
        return
    for name in SHARED:
        if name in item.fixturenames and name not in getattr(nextitem, "fixturenames", ()):
            for fixture in item._fixtureinfo.name2fixturedefs[name]:
                fixture.finish(item._request)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two shards and one gateway behind HAProxy, on free ports of loopback, with keys.

    Shared, and started once: a test uses people and items of its own.
    """
    # Ray takes seconds to import: only the tests that need it pay.
    from serve.launch import launch
    from serve.processes import alive, descendants

    config = Config(
        port=0,
        data_dir=str(tmp_path_factory.mktemp("data")),
        shards=2,
        profiles_max=100_000,
        webhooks_private=True,
        spares=False,
    )
    before = descendants(os.getpid())
    with launch(config) as running:
        yield running
        started = descendants(os.getpid()) - before
    assert not [process for process in started if alive(process)]
