"""Real shops' events: warm-started from Parquet, then replayed through HTTP, then asked.

The data are public and not part of this project; they lie in ONEHOP_DATA or in ../shared/data.
"""

import asyncio
import gzip
import os
import random
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from serve.client import SyncClient
from serve.launch import Cluster
from serve.remote import ReplayOptions, Where, import_files, replay_file
from tests.readme_tables import ROOT
from tests.serve.tenants import new_tenant

DATA = Path(os.environ.get("ONEHOP_DATA", ROOT.parent / "shared" / "data"))
REPLAYED = 2_000
ASKED = 60
SEED = 5

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not here"),
]


class Shop(NamedTuple):
    """A shop whose history is loaded; `last` holds its newest events, not loaded, as TSV."""

    where: Where
    loaded: int
    last: Path
    people: list[str]
    items: list[str]


@pytest.fixture(
    scope="module",
    params=["events/taobao/events.tsv.gz", "next-item/serenade-example/train.tsv.gz"],
    ids=["taobao", "serenade"],
)
def shop(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    source = DATA / request.param
    # The last line of one file is cut off.
    tabs = pyarrow.csv.ParseOptions(delimiter="\t", invalid_row_handler=lambda row: "skip")
    with gzip.open(source) as file:
        table = pyarrow.csv.read_csv(file, parse_options=tabs).sort_by("timestamp")
    # Moved to the present: people last seen years ago are forgotten (profile_ttl_s).
    stamps = pc.cast(table["timestamp"], pa.int64())
    ended_ago_s = int(time.time()) - pc.max(stamps).as_py() - 60
    place = table.column_names.index("timestamp")
    table = table.set_column(place, "timestamp", pc.add(stamps, ended_ago_s))
    if "session_id" in table.column_names:
        table = table.rename_columns({"session_id": "anonymous_id"})
        table = table.append_column("event", pa.array(["Item Viewed"] * len(table)))
    person = table.column_names[0]
    loaded = table.slice(0, len(table) - REPLAYED)
    pq.write_table(loaded, folder / "events.parquet", row_group_size=30_000)
    last = folder / "last.tsv"
    rows = zip(*table.slice(len(loaded)).to_pydict().values(), strict=True)
    lines = ["\t".join(map(str, row)) for row in (table.column_names, *rows)]
    last.write_text("\n".join(lines) + "\n")
    where = Where(cluster.address, new_tenant(cluster, folder.name))
    paths: dict[str, str | None] = {"events": str(folder / "events.parquet")}
    asyncio.run(import_files(where, paths, dry_run=False))
    people = sorted({str(p) for p in table[person].to_pylist()})
    items = sorted({str(i) for i in loaded["item_id"].to_pylist()})
    return Shop(where, len(loaded), last, people, items)


def test_history_and_replay_arrive_to_the_last_event(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ReplayOptions(rate=0, limit=None, decide=True, create_items=True, direct=False)
    asyncio.run(replay_file(shop.where, shop.last, options))
    assert f"{REPLAYED:,} sent" in (printed := capsys.readouterr().out)
    assert " 0 errors, 0 duplicates, through HTTP" in printed
    with SyncClient(*shop.where, direct=False) as client:
        named = "anonymous_id" if "anonymous_id" in shop.last.read_text()[:100] else "user_id"
        total = 0
        sample = random.Random(SEED).sample(shop.people, 200)
        for person in sample:
            total += client.profile(**{named: person})["eventsTotal"]
    lines = [line.split("\t")[0] for line in shop.last.read_text().splitlines()[1:]]
    table = pq.read_table(shop.last.with_name("events.parquet"))
    wanted = [str(p) for p in table.column(0).to_pylist()] + lines
    assert total == sum(person in set(sample) for person in wanted)


def test_a_decision_knows_the_event_of_its_own_call(shop: Shop) -> None:
    rng = random.Random(SEED)
    same = changed = 0
    with SyncClient(*shop.where, direct=False) as client:
        for number in range(ASKED):
            person, item = f"visitor-{number}", rng.choice(shop.items)
            events = [{"event": "Item Viewed", "properties": {"itemId": item}}]
            decisions = [{"surface": "product", "numResults": 10}]
            before = client.decide(user_id=person, decisions=decisions).decisions[0]
            during = client.decide(user_id=person, events=events, decisions=decisions).decisions[0]
            after = client.decide(user_id=person, decisions=decisions).decisions[0]
            same += [r.id for r in during.ranking] == [r.id for r in after.ranking]
            changed += [r.id for r in before.ranking] != [r.id for r in during.ranking]
    # Between two calls the engine may bring in what it built in the background.
    assert same >= ASKED - 2
    # Where nothing ever followed an item, its event need not change what comes first.
    assert changed >= ASKED // 2
