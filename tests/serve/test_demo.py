"""The demo shop has the structure it claims, and the same seed gives the same files."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from serve.demo import (
    CATEGORIES,
    DAY_S,
    DAYS,
    DIMENSIONS,
    GOES_WITH,
    ITEMS_PER_CATEGORY,
    DemoFiles,
    ensure_demo,
    write_demo,
)

END_S = 1_790_000_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    return write_demo(tmp_path_factory.mktemp("demo"), END_S)


def category_of(item: str) -> str:
    return item.rpartition("-")[0]


def test_same_seed_and_end_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_demo(tmp_path / "a", END_S, seed=3, people=200, events=2_000)
    again = write_demo(tmp_path / "b", END_S, seed=3, people=200, events=2_000)
    other = write_demo(tmp_path / "c", END_S, seed=4, people=200, events=2_000)
    assert first.events.read_bytes() == again.events.read_bytes()
    assert first.items.read_bytes() == again.items.read_bytes()
    assert first.events.read_bytes() != other.events.read_bytes()


def test_a_shop_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    first = write_demo(tmp_path, END_S, people=200, events=2_000).events.read_bytes()
    assert ensure_demo(tmp_path, END_S + DAY_S).events.read_bytes() == first


def test_catalogue_is_complete_and_embeddings_are_unit_length(shop: DemoFiles) -> None:
    items = pq.read_table(shop.items)
    assert items.num_rows == len(CATEGORIES) * ITEMS_PER_CATEGORY == 2_000
    assert len(set(items["id"].to_pylist())) == 2_000
    vectors = np.array(items["embedding"].to_pylist())
    assert vectors.shape == (2_000, DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert min(items["price"].to_pylist()) > 0


def test_events_are_in_order_on_known_items_and_within_the_month(shop: DemoFiles) -> None:
    events = pq.read_table(shop.events)
    items = pq.read_table(shop.items)
    times = np.asarray(events["timestamp"].cast("int64"))
    assert events.num_rows == 200_000
    assert (np.diff(times) >= 0).all()
    assert times[-1] < END_S * 1000
    assert times[0] >= (END_S - DAYS * DAY_S) * 1000
    assert set(events["itemId"].to_pylist()) <= set(items["id"].to_pylist())
    assert len(set(events["userId"].to_pylist())) > 10_000


def test_what_goes_with_an_item_follows_it_more_often_than_chance(shop: DemoFiles) -> None:
    events = pq.read_table(shop.events, columns=["userId", "itemId"]).to_pylist()
    last: dict[str, str] = {}
    follows: Counter[bool] = Counter()
    for event in events:
        before = last.get(event["userId"])
        if before is not None:
            follows[category_of(event["itemId"]) == GOES_WITH[category_of(before)]] += 1
        last[event["userId"]] = event["itemId"]
    # By chance one category in twenty; by taste alone one in four of the favourite department.
    assert follows[True] / follows.total() > 0.3


def test_people_have_a_favourite_department(shop: DemoFiles) -> None:
    department = dict(
        zip(
            *pq.read_table(shop.items).select(["id", "department"]).to_pydict().values(),
            strict=True,
        )
    )
    seen: dict[str, Counter[str]] = {}
    for event in pq.read_table(shop.events, columns=["userId", "itemId"]).to_pylist():
        seen.setdefault(event["userId"], Counter())[department[event["itemId"]]] += 1
    regulars = [c for c in seen.values() if c.total() >= 20]
    share = sum(c.most_common(1)[0][1] for c in regulars) / sum(c.total() for c in regulars)
    assert len(regulars) > 100
    assert share > 0.5
