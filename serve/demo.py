"""A made-up shop to try onehop with: items and a month of events with the structure of real ones.

People have tastes (departments, a brand, a price level), sessions stay in a category or move on to
what goes with it (phone -> phone case), some items are popular, evenings are busy. Nothing here
is anybody's data. The same seed and end give the same files, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Rng = np.random.Generator

# category -> what people look at next; departments are runs of four.
GOES_WITH = {
    "phone": "phone-case",
    "phone-case": "charger",
    "charger": "headphones",
    "headphones": "phone",
    "laptop": "laptop-bag",
    "laptop-bag": "mouse",
    "mouse": "monitor",
    "monitor": "laptop",
    "running-shoe": "sports-sock",
    "sports-sock": "water-bottle",
    "water-bottle": "fitness-watch",
    "fitness-watch": "running-shoe",
    "tent": "sleeping-bag",
    "sleeping-bag": "camping-stove",
    "camping-stove": "backpack",
    "backpack": "tent",
    "espresso-machine": "coffee-grinder",
    "coffee-grinder": "coffee-beans",
    "coffee-beans": "mug",
    "mug": "espresso-machine",
}
CATEGORIES = tuple(GOES_WITH)
DEPARTMENT_SIZE = 4
BRANDS = ("Aster", "Borealis", "Cobalt", "Drift", "Ember", "Fjord", "Grove", "Halo")
PRICE_LEVELS = (
    599,
    39,
    25,
    129,
    999,
    59,
    35,
    249,
    119,
    15,
    19,
    199,
    229,
    99,
    69,
    89,
    449,
    149,
    14,
    12,
)

VIEWED, ADDED, PURCHASED = 0, 1, 2
EVENTS = ("Item Viewed", "Item Added", "Item Purchased")

ITEMS_PER_CATEGORY = 100
DIMENSIONS = 32
DAYS = 30
DAY_S = 86_400
STEPS_MAX = 20


class DemoFiles(NamedTuple):
    """Where `write_demo` has put the shop."""

    events: Path
    items: Path


class Events(NamedTuple):
    """Events as columns, all [n], in order of time. Items and people are numbers from 0."""

    people: Ints
    items: Ints
    types: Ints
    times_ms: Ints


def ensure_demo(folder: Path, end_s: int) -> DemoFiles:
    """The shop in `folder`, made there if there is none.

    A shop that was loaded once must stay as it is: files with other events would be loaded too.
    """
    files = _files(folder)
    return files if files.events.exists() else write_demo(folder, end_s)


def write_demo(
    folder: Path, end_s: int, seed: int = 7, people: int = 20_000, events: int = 200_000
) -> DemoFiles:
    """Write items.parquet and events.parquet into `folder`, which is created; about a second.

    end_s  seconds since 1970 at which the month of events ends
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    files = _files(folder)
    shop = items_table(rng)
    pq.write_table(shop, files.items)
    happened = draw_events(rng, people, events, end_s)
    # Whoever finds the events can rely on both files being whole.
    unfinished = folder / "events.unfinished"
    pq.write_table(events_table(happened, shop), unfinished)
    unfinished.replace(files.events)
    return files


def _files(folder: Path) -> DemoFiles:
    return DemoFiles(folder / "events.parquet", folder / "items.parquet")


def item_id(number: int) -> str:
    """The id of an item by its number.

    >>> item_id(0), item_id(142)
    ('phone-000', 'phone-case-042')
    """
    category, place = divmod(number, ITEMS_PER_CATEGORY)
    return f"{CATEGORIES[category]}-{place:03d}"


def items_table(rng: Rng) -> pa.Table:
    """The catalogue: id, category, department, brand, title, price, embedding [32]."""
    count = len(CATEGORIES) * ITEMS_PER_CATEGORY
    numbers = np.arange(count)
    categories, places = np.divmod(numbers, ITEMS_PER_CATEGORY)
    brands = places % len(BRANDS)
    spread = rng.lognormal(0.0, 0.35, count)
    prices = np.round(np.asarray(PRICE_LEVELS)[categories] * spread, 2)
    vectors = (
        rng.normal(size=(len(CATEGORIES) // DEPARTMENT_SIZE, DIMENSIONS))[
            categories // DEPARTMENT_SIZE
        ]
        + rng.normal(size=(len(CATEGORIES), DIMENSIONS))[categories]
        + 0.5 * rng.normal(size=(len(BRANDS), DIMENSIONS))[brands]
        + 0.3 * rng.normal(size=(count, DIMENSIONS))
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [c.replace("-", " ") for c in CATEGORIES]
    return pa.table(
        {
            "id": [item_id(int(i)) for i in numbers],
            "category": [CATEGORIES[c] for c in categories],
            "department": [CATEGORIES[c - c % DEPARTMENT_SIZE] for c in categories],
            "brand": [BRANDS[b] for b in brands],
            "title": [
                f"{BRANDS[b]} {names[c]} {p}"
                for b, c, p in zip(brands, categories, places, strict=True)
            ],
            "price": prices,
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.astype(np.float32).ravel()), DIMENSIONS
            ),
        }
    )


def events_table(happened: Events, shop: pa.Table) -> pa.Table:
    """Events as a warm start reads them; `value` is the price of what was bought, else 1."""
    prices = np.asarray(shop["price"])
    bought = happened.types == PURCHASED
    people = pa.array([f"demo-{i}" for i in range(int(happened.people.max()) + 1)])
    return pa.table(
        {
            "userId": people.take(pa.array(happened.people)),
            "event": pa.array(EVENTS).take(pa.array(happened.types)),
            "itemId": shop["id"].combine_chunks().take(pa.array(happened.items)),
            "timestamp": pa.array(happened.times_ms, pa.timestamp("ms", tz="UTC")),
            "value": np.where(bought, prices[happened.items], 1.0).astype(np.float32),
        }
    )


def draw_events(rng: Rng, people: int, events: int, end_s: int) -> Events:
    """`events` events of at most `people` people in the DAYS before `end_s`."""
    # Sessions have 4.5 events on average: a few too many are drawn, and the oldest cut.
    sessions = int(events * 0.24) + 10
    # A few come every day, most come now and then.
    activity = rng.lognormal(0.0, 0.8, people)
    visitors = rng.choice(people, sessions, p=activity / activity.sum())
    lengths = np.minimum(rng.geometric(0.22, sessions), STEPS_MAX)
    items = _walk(rng, visitors, people, lengths)

    starts = _start_times(rng, sessions, end_s)
    pauses = np.minimum(rng.lognormal(3.6, 0.8, items.shape), 900.0)
    pauses[:, 0] = 0.0
    times = starts[:, None] + pauses.cumsum(axis=1)

    real = (np.arange(STEPS_MAX) < lengths[:, None]) & (times < end_s)
    session, step = np.nonzero(real)
    types = _types(rng, step, lengths[session])
    order = np.argsort(times[real], kind="stable")[-events:]
    return Events(
        visitors[session][order],
        items[session, step][order],
        types[order],
        (times[real][order] * 1000).astype(np.int64),
    )


def _start_times(rng: Rng, sessions: int, end_s: int) -> NDArray[np.float64]:
    """Start of each session: any of the DAYS, evenings busier than nights. Seconds, [sessions]."""
    hours = np.arange(24)
    busy = 0.3 + np.exp(-(((hours - 20) / 3.0) ** 2)) + 0.6 * np.exp(-(((hours - 12) / 3.0) ** 2))
    hour = rng.choice(24, sessions, p=busy / busy.sum())
    day = rng.integers(0, DAYS, sessions)
    return end_s - (day + 1) * DAY_S + hour * 3600 + rng.random(sessions) * 3600


def _walk(rng: Rng, visitors: Ints, people: int, lengths: Ints) -> Ints:
    """The items of each session, int64 [sessions, STEPS_MAX]; beyond a length there is nothing."""
    departments = len(CATEGORIES) // DEPARTMENT_SIZE
    goes_with = np.asarray([CATEGORIES.index(GOES_WITH[c]) for c in CATEGORIES])
    favourite = rng.integers(0, departments, people)
    second = rng.integers(0, departments, people)
    brand = rng.integers(0, len(BRANDS), people)

    def from_taste(who: Ints) -> Ints:
        draw = rng.random(len(who))
        department = np.where(draw < 0.65, favourite[who], second[who])
        anywhere = rng.integers(0, departments, len(who))
        department = np.where(draw > 0.92, anywhere, department)
        return department * DEPARTMENT_SIZE + rng.integers(0, DEPARTMENT_SIZE, len(who))

    def within(category: Ints, who: Ints) -> Ints:
        place = np.minimum(rng.zipf(1.5, len(who)) - 1, 10**6) % ITEMS_PER_CATEGORY
        own_brand = place - place % len(BRANDS) + brand[who]
        loyal = (rng.random(len(who)) < 0.45) & (own_brand < ITEMS_PER_CATEGORY)
        return category * ITEMS_PER_CATEGORY + np.where(loyal, own_brand, place)

    items = np.full((len(visitors), STEPS_MAX), -1, np.int64)
    items[:, 0] = within(from_taste(visitors), visitors)
    for step in range(1, STEPS_MAX):
        active = np.nonzero(lengths > step)[0]
        who, last = visitors[active], items[active, step - 1]
        category, place = np.divmod(last, ITEMS_PER_CATEGORY)
        draw = rng.random(len(active))
        # What goes with it: often the very item made for it, which has the same place.
        follower = goes_with[category]
        chosen = within(category, who)
        chosen = np.where(draw < 0.40, follower * ITEMS_PER_CATEGORY + place, chosen)
        chosen = np.where(draw < 0.18, within(follower, who), chosen)
        chosen = np.where(draw > 0.90, within(from_taste(who), who), chosen)
        items[active, step] = chosen
    return items


def _types(rng: Rng, step: Ints, length: Ints) -> Ints:
    """Views, some additions to the cart, and now and then a purchase as a session's last event."""
    draw = rng.random(len(step))
    types = np.where(draw < 0.10, ADDED, VIEWED)
    return np.where((step == length - 1) & (step > 0) & (draw > 0.75), PURCHASED, types)
