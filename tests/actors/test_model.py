"""The merger over engines without Ray: one model out of many, nothing counted twice."""

from __future__ import annotations

import asyncio
import gzip
import io
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.catalogue import Catalogue
from actors.context import ContextCounts, codes_of
from actors.engine.engine import NextAction
from actors.engine.sums import BELIEFS, Sums
from actors.lessons import Lessons
from actors.model import VERSIONS_KEPT, Merger, Model, Taken, Versions
from actors.store import ProfileStore
from actors.treatment import belief
from actors.treatment.features import NO_FEATURES, Arm, arms_of
from actors.treatment.policy import default_policy
from actors.treatment.treatment import Treatment
from cluster.errors import RequestError, Unavailable

ITEMS = 30
POLICY = default_policy("p", "ui")


class Shard:
    """One life after another of an engine and its people; its log is the list of what it saw."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.log: list[tuple[int, int, int]] = []
        self.lives = 0
        self.dead = False
        self.lost_replies = 0
        self.start()

    def start(self) -> None:
        self.lives += 1
        self.dead = False
        self.store = ProfileStore(profiles_max=2048, profile_bytes_max=1 << 22)
        self.catalogue = Catalogue(ITEMS)
        self.catalogue.register([f"i{i}" for i in range(ITEMS)])
        self.engine = NextAction(self.store, self.catalogue, ITEMS, 2048)
        self.context = ContextCounts()
        self.treatment = Treatment()
        # All of a tenant that learns, and of a shard.
        shard: Any = SimpleNamespace(store=self, tenants={"t": self})
        self.lessons = Lessons(shard, f"life {self.lives}")
        replayed, self.log = self.log, []
        for event in replayed:
            self.see(*event)

    def see(self, person: int, item: int, time_s: int) -> None:
        self.log.append((person, item, time_s))
        key = bytes([self.number]) + person.to_bytes(15, "big")
        row = self.store.ensure(key, time_s)
        self.engine.learn(row, item, 1, 0.0, time_s)
        self.store.enter_ring(row, item, 1, 0.0, time_s)
        codes = codes_of({"device": f"d{person % 2}"})
        self.context.learn(codes, item, self.catalogue.attribute_ids[item])
        arms, rng = arms_of([Arm("a"), Arm("b")]), np.random.default_rng(item)
        choice = self.treatment.choose(POLICY, NO_FEATURES, arms, rng)
        self.treatment.learn(POLICY, choice.trace, 0, float(item % 2))

    @property
    def events_total(self) -> int:
        return len(self.log)

    async def take_deltas(self, known_life: str, had: int) -> Taken:
        if self.dead:
            raise Unavailable("dead")
        taken = self.lessons.take(known_life, had)
        if self.lost_replies:
            self.lost_replies -= 1
            raise Unavailable("the reply was lost")
        return taken

    async def install(self, tenant: str, published: Any, name: str, included: int) -> None:
        if self.dead:
            raise Unavailable("dead")
        base, sums, context, treated = published
        self.engine.install(base, sums, name, included)
        self.context.install(context)
        self.treatment.install(treated, name)


def new_merger(shards: list[Shard], folder: Path) -> Merger:
    return Merger({f"s{s.number}": s for s in shards}, folder, tuple, 1.0)


def events_of(shards: list[Shard]) -> int:
    return sum(len(shard.log) for shard in shards)


def visit(shard: Shard, generator: random.Random, n: int) -> None:
    for _ in range(n):
        shard.see(generator.randrange(20), generator.randrange(ITEMS), 1000 + len(shard.log))


def learned(merger: Merger) -> list[int]:
    return sorted(merger._models["t"].history.items.tolist())


def trials(merger: Merger) -> int:
    """Outcomes of the treatment that are in the model."""
    return int(merger._models["t"].treatment[belief.trials_of(POLICY.salt)])


def seen(shards: list[Shard]) -> list[int]:
    return sorted(item for shard in shards for _, item, _ in shard.log)


def test_every_event_of_every_shard_is_in_the_model_once(tmp_path: Path) -> None:
    async def act() -> None:
        generator = random.Random(1)
        shards = [Shard(n) for n in range(3)]
        merger = new_merger(shards, tmp_path)
        for _ in range(10):
            for shard in shards:
                visit(shard, generator, generator.randrange(200))
            await merger.merge()
            assert learned(merger) == seen(shards)
            assert trials(merger) == len(seen(shards))
        counts = np.bincount(seen(shards), minlength=ITEMS)
        for shard in shards:
            assert shard.engine._live.counts[:ITEMS].tolist() == counts.tolist()
            assert np.array_equal(shard.context._table, merger._models["t"].context)
            assert shard.engine.version == f"{merger._models['t'].name}+0"

    asyncio.run(act())


def test_a_restarted_shard_is_not_counted_twice_and_gets_the_model_back(tmp_path: Path) -> None:
    async def act() -> None:
        generator = random.Random(2)
        shards = [Shard(n) for n in range(2)]
        merger = new_merger(shards, tmp_path)
        for shard in shards:
            visit(shard, generator, 300)
        await merger.merge()
        before = seen(shards)
        shards[0].dead = True
        await merger.merge()
        shards[0].start()
        await merger.merge()
        assert learned(merger) == before
        assert trials(merger) == len(before)
        assert shards[0].treatment._sums == pytest.approx(merger._models["t"].treatment)
        assert shards[0].engine._live.counts[:ITEMS].sum() == len(before)
        visit(shards[0], generator, 50)
        visit(shards[1], generator, 50)
        await merger.merge()
        assert learned(merger) == seen(shards)

    asyncio.run(act())


def test_a_lost_reply_costs_nothing_and_is_not_counted_twice(tmp_path: Path) -> None:
    async def act() -> None:
        generator = random.Random(4)
        shards = [Shard(n) for n in range(2)]
        merger = new_merger(shards, tmp_path)
        for lost in (0, 1, 3, 0):
            for shard in shards:
                visit(shard, generator, 100)
            shards[0].lost_replies = lost
            for _ in range(lost):
                await merger.merge()
                visit(shards[0], generator, 10)
            # The answer that was lost, and then what came after it.
            await merger.merge()
            await merger.merge()
            assert learned(merger) == seen(shards)
            assert trials(merger) == len(seen(shards))
            counts = np.bincount(seen(shards), minlength=ITEMS)
            for shard in shards:
                assert shard.engine._live.counts[:ITEMS].tolist() == counts.tolist()
                assert shard.treatment._sums == pytest.approx(merger._models["t"].treatment)

    asyncio.run(act())


def test_a_new_merger_goes_on_from_the_saved_model(tmp_path: Path) -> None:
    async def act() -> None:
        generator = random.Random(3)
        shards = [Shard(n) for n in range(2)]
        merger = new_merger(shards, tmp_path)
        for shard in shards:
            visit(shard, generator, 200)
        await merger.merge()
        merger.save()
        number = merger._models["t"].number
        for shard in shards:
            shard.start()
        merger = new_merger(shards, tmp_path)
        await merger.merge()
        assert learned(merger) == seen(shards)
        for shard in shards:
            visit(shard, generator, 20)
        await merger.merge()
        assert learned(merger) == seen(shards)
        assert merger._models["t"].number > number

    asyncio.run(act())


def test_rollback_serves_a_saved_version_under_a_new_name(tmp_path: Path) -> None:
    async def act() -> None:
        generator = random.Random(4)
        shards = [Shard(n) for n in range(2)]
        merger = new_merger(shards, tmp_path)
        visit(shards[0], generator, 100)
        await merger.merge()
        merger.save()
        good, name = learned(merger), merger._models["t"].name
        visit(shards[1], generator, 100)
        await merger.merge()
        assert learned(merger) != good
        serving = await merger.rollback("t", name)
        assert (learned(merger), serving) == (good, "m3")
        assert {shard.engine.version for shard in shards} == {"m3+0"}
        with pytest.raises(RequestError, match="m1"):
            await merger.rollback("t", "m99")
        visit(shards[0], generator, 10)
        await merger.merge()
        assert len(learned(merger)) == len(good) + 10

    asyncio.run(act())


def test_versions_are_bounded_and_an_unreadable_one_is_passed_over(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    model = Model()
    for number in range(1, 10):
        model.number = number
        versions.save(model)
    assert versions.names() == [f"m{n}" for n in range(10 - VERSIONS_KEPT, 10)]
    whole = (tmp_path / "m9.npz").read_bytes()
    for torn in (b"torn", b"", whole[: len(whole) // 2], whole[:-30], b"PK" + whole[5:]):
        (tmp_path / "m9.npz").write_bytes(torn)
        newest = versions.newest()
        assert newest is not None
        assert newest.name == "m8"


def test_a_model_survives_its_file() -> None:
    shard = Shard(0)
    visit(shard, random.Random(5), 100)
    model = Model()
    counts = shard.context.take()
    assert counts is not None
    model.add([shard.engine.take_delta()], [counts])
    again = Model.from_bytes(model.to_bytes())
    assert again.number == model.number
    assert np.array_equal(again.context, model.context)
    for field in ("history", "sums"):
        for ours, theirs in zip(getattr(model, field), getattr(again, field), strict=True):
            assert np.array_equal(ours, theirs)


def test_a_model_of_the_first_release_is_read_and_served(tmp_path: Path) -> None:
    """model_1.npz.gz was written by the code of that release: 50 people, 300 events, 25 lessons."""
    written = gzip.decompress((Path(__file__).parent / "model_1.npz.gz").read_bytes())
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "m41.npz").write_bytes(written)
    with np.load(io.BytesIO(written)) as arrays:
        weights = np.linalg.solve(arrays["precision"], arrays["information"])
        missed = arrays["missed"][3, 1] / arrays["missed"][3, 0]
        items, context = arrays["items"], arrays["context"]

    async def act() -> None:
        shards = [Shard(0)]
        merger = new_merger(shards, tmp_path)
        await merger.merge()
        engine = shards[0].engine
        assert engine.version == "m41+0"
        assert engine._live.counts[:ITEMS].tolist() == np.bincount(items, None, ITEMS).tolist()
        assert np.array_equal(shards[0].context._table, context)
        for surface in range(BELIEFS):
            assert engine.stacker.weights[surface] == pytest.approx(weights, abs=1e-5)
            assert engine.stacker.missed_share(3, surface) == pytest.approx(missed)
            assert engine.stacker.sharpness(3, surface) == 1.0
        visit(shards[0], random.Random(9), 100)
        await merger.merge()
        merger.save()
        newest = Versions(tmp_path / "t").newest()
        assert newest is not None
        assert newest.sums.precision.ndim == 3
        assert len(newest.history.items) == 400

    asyncio.run(act())


@pytest.mark.parametrize("name", ["information", "ages"])
def test_a_model_with_sums_of_a_shape_that_no_release_wrote_is_refused(name: str) -> None:
    model = Model()
    model.sums = model.sums._replace(**{name: np.zeros(7)})
    with pytest.raises(ValueError, match=rf"{name} has shape \(7,\)"):
        Model.from_bytes(model.to_bytes())


def test_one_shards_failure_costs_nothing_that_the_others_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> None:
        generator = random.Random(6)
        shards = [Shard(n) for n in range(3)]
        merger = new_merger(shards, tmp_path)
        for shard in shards:
            visit(shard, generator, 100)

        async def refuse(*_: object) -> Any:
            raise KeyError("injected")

        with monkeypatch.context() as patched:
            patched.setattr(shards[0], "take_deltas", refuse)
            patched.setattr(shards[1], "install", refuse)
            await merger.merge()
            assert learned(merger) == seen(shards[1:])
        await merger.merge()
        assert learned(merger) == seen(shards)
        counts = np.bincount(seen(shards), minlength=ITEMS)
        for shard in shards:
            assert shard.engine._live.counts[:ITEMS].tolist() == counts.tolist()

    asyncio.run(act())


def test_a_shard_that_is_waited_for_does_not_put_off_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [Shard(n) for n in range(2)]
    merger = new_merger(shards, tmp_path)
    sleep, pauses = asyncio.sleep, []

    async def restarts(*_: object) -> Any:
        await sleep(0.5)
        raise Unavailable("it starts")

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr(shards[0], "take_deltas", restarts)
    monkeypatch.setattr(asyncio, "sleep", pause)
    # Kernels may be loaded in this round: not what is asked here.
    monkeypatch.setattr("actors.model.time.process_time", lambda: 0.0)
    visit(shards[1], random.Random(9), 10)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(merger.run())
    assert learned(merger) == seen(shards[1:])
    assert pauses == [1.0]


def test_what_could_not_be_merged_is_merged_in_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> None:
        generator = random.Random(7)
        shards = [Shard(n) for n in range(2)]
        merger = new_merger(shards, tmp_path)
        visit(shards[0], generator, 100)
        await merger.merge()

        def refuse(*_: object) -> Any:
            raise MemoryError("injected")

        visit(shards[0], generator, 30)
        with monkeypatch.context() as patched:
            patched.setattr(Sums, "plus", refuse)
            visit(shards[1], generator, 20)
            with pytest.raises(MemoryError):
                await merger.merge()
        await merger.merge()
        assert learned(merger) == seen(shards)

    asyncio.run(act())


def test_closing_waits_for_the_round_and_saves_it(tmp_path: Path) -> None:
    async def act() -> None:
        shards = [Shard(0)]
        merger = new_merger(shards, tmp_path)
        visit(shards[0], random.Random(8), 50)
        running = asyncio.create_task(merger.merge())
        await asyncio.sleep(0)
        await merger.close()
        assert running.done()
        saved = Versions(tmp_path / "t").newest()
        assert saved is not None
        assert sorted(saved.history.items.tolist()) == seen(shards)

    asyncio.run(act())
