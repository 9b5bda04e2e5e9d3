"""Through a whole shard: a click teaches the surface whose decision last showed the item.

Which lesson an event becomes is in no answer, so HTTP would add nothing that could be looked at.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from actors.engine.engine import NextAction
from actors.engine.sums import EVERYWHERE, SURFACES
from actors.messages import Item
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from tests.actors.test_shard import ask, view


def lessons(shard: Shard) -> dict[str, float]:
    """Lessons that each surface has had."""
    engine = shard.tenant("default").engine
    assert isinstance(engine, NextAction)
    had = engine.stacker.sums().missed[:, :, 0].sum(axis=1)
    return {name: float(had[number]) for name, number in SURFACES.items()}


def decide(shard: Shard, person: str, surface: str | None, item: str, *clicked: str) -> None:
    """One request: what the person clicked, then a decision that shows them `item`."""
    body: dict[str, Any] = {"userId": person, "events": [view(each) for each in clicked]}
    if surface is not None:
        body["decisions"] = [{"surface": surface, "actions": [item]}]
    status, answer = ask(shard, Op.DECIDE, body)
    assert status == 200
    if surface is not None:
        assert [entry["id"] for entry in answer["decisions"][0]["ranking"]] == [item]


def test_a_click_teaches_the_surface_that_last_showed_the_item_to_that_person(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.engine.engine.TUNE_EVERY", 1)
    config = Config(profiles_max=2048, profile_bytes_max=1 << 23, items_max=128)
    shard = Shard("0", KeyRange(0, HASH_SPACE), config, now=lambda: 1_790_000_000.0)
    shard.put_items("default", msgspec.json.encode([Item(f"i{i}") for i in range(10)]))
    for person in ("ann", "bob"):
        # Of an unknown person's first event nothing can be learned: no history explains it.
        decide(shard, person, None, "", "i9")
    none = {"content": 0.0, "product": 0.0}
    assert lessons(shard) == none

    decide(shard, "ann", "content", "i1")
    decide(shard, "bob", None, "", "i1")
    assert lessons(shard) == none, "it was shown to ann, not to bob"
    decide(shard, "ann", "product", "i2", "i1")
    assert lessons(shard) == none | {"content": 1.0}
    decide(shard, "ann", None, "", "i2")
    assert lessons(shard) == pytest.approx({"content": 1.0, "product": 1.0}, abs=1e-3)

    for surface in ("content", "product"):
        decide(shard, "bob", surface, "i3")
    decide(shard, "bob", None, "", "i3")
    assert lessons(shard) == pytest.approx({"content": 1.0, "product": 2.0}, abs=1e-3)
    weights = shard.tenant("default").engine.stacker.weights
    for number in SURFACES.values():
        assert (weights[number] != weights[EVERYWHERE]).any()
