"""What all shards learned together: deltas go in, a base comes out. Files keep the last versions.

Plain Python without Ray; shards are reached through the `Learner` protocol. What was learned adds
up, so it does not matter in which order shards are asked or when.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from actors.context import SLOTS
from actors.engine import base as bases
from actors.engine import features, history, sums
from actors.engine.base import Base
from actors.engine.engine import EVENTS_MAX, Delta
from actors.engine.history import History
from actors.engine.stacker import Stacker
from actors.engine.sums import Sums
from actors.treatment import belief, treatment
from actors.wal import fsync_folder
from cluster.errors import RequestError, Unavailable

LOG = logging.getLogger("onehop.actors")

SAVE_S = 60.0
VERSIONS_KEPT = 5
# Merging may take this share of one core; a large model is published less often instead.
MERGE_SHARE = 0.1


class Model:
    """The learned state of one tenant. `number` names the version, "m<number>" in decisions."""

    def __init__(self, events_max: int = EVENTS_MAX) -> None:
        self._events_max = events_max
        self.history = history.empty()
        self.sums = Stacker(features.PRIOR).sums()
        self.context: NDArray[np.float32] = np.zeros(SLOTS, np.float32)
        self.treatment: NDArray[np.float64] = np.zeros(belief.SIZE)
        self.number = 0

    @property
    def name(self) -> str:
        return f"m{self.number}"

    def add(
        self,
        deltas: Sequence[Delta],
        contexts: Sequence[NDArray[np.float32]] = (),
        treatments: Sequence[treatment.Delta] = (),
    ) -> None:
        """Merge deltas, counts by context, and outcomes of treatments; each must come once."""
        merged, learned, context = self.history, self.sums, self.context
        if deltas:
            parts = [merged, *(delta.history for delta in deltas)]
            merged = history.merge(parts, self._events_max)
        treated = treatment.merged(self.treatment, treatments)
        for delta in deltas:
            learned = learned.plus(delta.sums)
        for counts in contexts:
            context = context + counts
        # All at the end, so that who fails half-way may try again.
        self.history, self.sums, self.context, self.treatment = merged, learned, context, treated
        self.number += 1

    def base(self, items_n: int) -> Base:
        """What decisions read, over items 0..items_n - 1. Takes 0.3 s per million events."""
        return bases.build(self.history, items_n, self.sums.half_life_s)

    def to_bytes(self) -> bytes:
        """The model as a NumPy archive of named arrays."""
        buffer = io.BytesIO()
        arrays = {**self.history._asdict(), **self.sums._asdict(), "context": self.context}
        known = np.flatnonzero(self.treatment).astype(np.int32)
        arrays |= {"treatment_slots": known, "treatment": self.treatment[known]}
        np.savez(buffer, number=self.number, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, events_max: int = EVENTS_MAX) -> Model:
        """The inverse of `to_bytes`; reads what the first release wrote too.

        Raises ValueError or KeyError if it is none.
        """
        model = cls(events_max)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            model.history = History(*(arrays[name] for name in History._fields))
            model.sums = sums.read(arrays, model.sums)
            model.number = int(arrays["number"])
            model.context = arrays["context"]
            # A release before treatments were learned wrote none.
            if "treatment" in arrays:
                model.treatment[arrays["treatment_slots"]] = arrays["treatment"]
        return model


def rehearse() -> None:
    """Merge and build once over next to nothing: the first real merge must not wait for code."""
    model = Model()
    nothing = model.sums.minus(model.sums)
    pair = History(
        np.ones(1, np.uint64), np.ones(1, np.uint32), np.array([0, 2]), np.zeros(2, np.int32)
    )
    model.add([Delta(1, pair, nothing)])
    model.base(1)


class Versions:
    """The saved models of one tenant: `m<number>.npz` in a folder, the last VERSIONS_KEPT."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Names of the saved versions, oldest first."""
        paths = self._folder.glob("m*.npz")
        return [p.stem for p in sorted(paths, key=lambda path: int(path.stem[1:]))]

    def save(self, model: Model) -> None:
        """Write a version, whole or not at all, and let the oldest go."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{model.name}"
        try:
            with temporary.open("wb") as file:
                file.write(model.to_bytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # Half a model must not keep the shards' logs from the last room on the disk.
            temporary.unlink(missing_ok=True)
            raise
        temporary.rename(self._folder / f"{model.name}.npz")
        fsync_folder(self._folder)
        for name in self.names()[:-VERSIONS_KEPT]:
            (self._folder / f"{name}.npz").unlink()

    def load(self, name: str) -> Model:
        """A saved version. Raises RequestError (404) if there is none of that name."""
        if name not in self.names():
            raise RequestError(
                404, "no such model version", "name", repr(name), ", ".join(self.names())
            )
        return Model.from_bytes((self._folder / f"{name}.npz").read_bytes())

    def newest(self) -> Model | None:
        """The newest version that can be read; an unreadable one is passed over and told of."""
        for name in reversed(self.names()):
            try:
                return self.load(name)
            except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
                LOG.error("model %s in %s can't be read: %s", name, self._folder, error)
        return None


class Published(NamedTuple):
    """What all shards learned together, as they take it over."""

    base: Base
    sums: Sums
    context: NDArray[np.float32]
    treatment: NDArray[np.float64]


class Taken(NamedTuple):
    """What one shard answers: which life of it this is, its items, and its deltas by tenant.

    A shard that was restarted has learned again from its log what was merged before: of such a
    delta only the number counts, and `stale` says so. `number` counts the answers of one life.
    """

    life: str
    stale: bool
    items: dict[str, int]
    deltas: dict[str, Delta]
    contexts: dict[str, NDArray[np.float32]]
    treatments: dict[str, treatment.Delta] = {}
    number: int = 0


class Fresh(NamedTuple):
    """What was taken of one tenant and is not in its model yet."""

    deltas: list[Delta]
    contexts: list[NDArray[np.float32]]
    treatments: list[treatment.Delta]


class Learner(Protocol):
    """One shard, as the model sees it. Methods raise Unavailable while it is dead."""

    async def take_deltas(self, known_life: str, had: int) -> Taken:
        """As `actors.lessons.Lessons.take`."""

    async def install(self, tenant: str, published: Any, name: str, included: int) -> None: ...


class Merger:
    """Asks all shards for what they learned, merges it, and gives the base to all of them.

    publish  makes of a `Published` what is handed to `Learner.install`, once for all shards
    """

    def __init__(
        self,
        learners: dict[str, Learner],
        folder: Path,
        publish: Callable[[Published], Any],
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._learners = learners
        self._folder = folder
        self._publish = publish
        self._interval_s = interval_s
        self._clock = clock
        self._models: dict[str, Model] = {}
        self._lives: dict[str, str] = {}
        self._had: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._included: dict[tuple[str, str], int] = {}
        # Taken from the shards and not yet in the model: each must come once, and none get lost.
        self._fresh: dict[str, Fresh] = {}
        self._bases: dict[str, tuple[History, int, Base]] = {}
        self._unsaved: set[str] = set()
        self._saved_at = clock()
        self._turn = asyncio.Lock()
        for path in sorted(folder.glob("*")):
            model = Versions(path).newest()
            if model is not None:
                self._models[path.name] = model
        # What shards replay from their logs is in the saved model already.
        if self._models:
            self._lives = dict.fromkeys(learners, "before")
        self._install_next = set(self._models)

    def set_learners(self, learners: dict[str, Learner]) -> None:
        """Ask these from now on, by the names of their shards, whatever process each has now."""
        if self._models:
            # What they learned before this process began may be in the saved model.
            self._lives = dict.fromkeys(learners, "before") | self._lives
        self._learners = learners

    async def run(self) -> None:
        """Merge for ever, every `interval_s` or less often if merging takes long. To wait for a
        shard that is restarted is no work: what the others learn is due all the same."""
        while True:
            started_s = time.process_time()
            try:
                await self.merge()
            except Exception:
                # The next round asks again; shards keep what was not taken.
                LOG.exception("merging the model failed")
            used_s = time.process_time() - started_s
            await asyncio.sleep(max(self._interval_s, used_s / MERGE_SHARE))

    async def merge(self) -> None:
        """One round: take, merge, publish; save what is due."""
        async with self._turn:
            names = list(self._learners)
            answers = await asyncio.gather(*(self._take(name) for name in names))
            for name, taken in zip(names, answers, strict=True):
                if taken is not None:
                    self._note(name, taken)
            for tenant in list(self._fresh):
                model = self._models.setdefault(tenant, Model())
                await asyncio.to_thread(model.add, *self._fresh[tenant])
                del self._fresh[tenant]
                self._unsaved.add(tenant)
                self._install_next.add(tenant)
            for tenant in list(self._install_next):
                self._install_next.discard(tenant)
                await self._install(tenant)
            if self._clock() - self._saved_at >= SAVE_S:
                await asyncio.to_thread(self.save)

    def _note(self, name: str, taken: Taken) -> None:
        self._had[name] = taken.number
        if taken.life != self._lives.get(name):
            self._lives[name] = taken.life
            self._included = {k: v for k, v in self._included.items() if k[0] != name}
            self._install_next |= set(self._models)
        for tenant, count in taken.items.items():
            self._items[tenant] = max(self._items.get(tenant, 0), count)
        for tenant, delta in taken.deltas.items():
            self._included[name, tenant] = delta.number
        if taken.stale:
            return
        for tenant in dict.fromkeys((*taken.deltas, *taken.treatments)):
            fresh = self._fresh.setdefault(tenant, Fresh([], [], []))
            if tenant in taken.deltas:
                fresh.deltas.append(taken.deltas[tenant])
            if tenant in taken.contexts:
                fresh.contexts.append(taken.contexts[tenant])
            if tenant in taken.treatments:
                fresh.treatments.append(taken.treatments[tenant])

    async def rollback(self, tenant: str, name: str) -> str:
        """Answer from a saved version again; what was learned since is dropped.

        Returns the name under which it serves: a version's number never goes back.
        """
        async with self._turn:
            model = await asyncio.to_thread(Versions(self._folder / tenant).load, name)
            current = self._models.get(tenant)
            model.number = max(model.number, current.number if current else 0) + 1
            self._models[tenant] = model
            self._unsaved.add(tenant)
            await self._install(tenant)
            return model.name

    def versions(self, tenant: str) -> dict[str, Any]:
        """The serving version and the saved ones."""
        model = self._models.get(tenant)
        return {
            "serving": model.name if model else None,
            "events": len(model.history.items) if model else 0,
            "saved": Versions(self._folder / tenant).names(),
        }

    def save(self) -> None:
        """Write every model that has changed."""
        # At first, so that a full disk is not tried again in every round.
        self._saved_at = self._clock()
        for tenant in sorted(self._unsaved):
            Versions(self._folder / tenant).save(self._models[tenant])
            self._unsaved.discard(tenant)

    async def close(self) -> None:
        """Let a round that runs end, then save; no other begins."""
        await self._turn.acquire()
        await asyncio.to_thread(self.save)

    async def _take(self, name: str) -> Taken | None:
        try:
            learner = self._learners[name]
            return await learner.take_deltas(self._lives.get(name, ""), self._had.get(name, 0))
        except (Unavailable, KeyError):
            return None  # It is being restarted; the next round finds it.
        except Exception:
            # One shard's failure must not cost what the others just gave.
            LOG.exception("%s can't give what it learned", name)
            return None

    async def _install(self, tenant: str) -> None:
        model = self._models[tenant]
        base = await self._base(tenant, model)
        published = self._publish(Published(base, model.sums, model.context, model.treatment))

        async def give(name: str, learner: Learner) -> None:
            included = self._included.get((name, tenant), 0)
            try:
                await learner.install(tenant, published, model.name, included)
            except Unavailable:
                return
            except Exception:
                # Restarted since it was asked, for one: the next round notes its new life.
                LOG.exception("%s can't take model %s of %s", name, model.name, tenant)
                self._install_next.add(tenant)

        await _all(give(name, learner) for name, learner in self._learners.items())

    async def _base(self, tenant: str, model: Model) -> Base:
        """The model's base; made anew only if there are other events or items in it."""
        items_n = self._items.get(tenant, 0)
        kept = self._bases.get(tenant)
        if kept is None or kept[0] is not model.history or kept[1] != items_n:
            base = await asyncio.to_thread(model.base, items_n)
            kept = self._bases[tenant] = (model.history, items_n, base)
        return kept[2]


async def _all(calls: Any) -> None:
    waiting: list[Awaitable[None]] = list(calls)
    await asyncio.gather(*waiting)
