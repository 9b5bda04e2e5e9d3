"""Ray's shell around the merger: bases travel through the object store, one copy per node."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import ray
from ray.exceptions import RayActorError

from actors.model import Merger, Published, Taken, rehearse
from cluster.config import Config
from cluster.errors import RequestError, Unavailable

MODEL_ACTOR = "onehop-model"


class RayLearner:
    """A `Learner` over a shard's Ray actor, looked up anew after a failure."""

    def __init__(self, actor_name: str) -> None:
        self.actor_name = actor_name
        self._actor: Any = None

    async def take_deltas(self, known_life: str, had: int) -> Taken:
        return await self._call("take_deltas", known_life, had)  # type: ignore[no-any-return]

    async def install(self, tenant: str, published: Any, name: str, included: int) -> None:
        await self._call("install_model", tenant, published, name, included)

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            if self._actor is None:
                self._actor = ray.get_actor(self.actor_name)
            return await getattr(self._actor, method).remote(*args)
        except (RayActorError, ValueError) as error:
            # ValueError: no actor of that name any more.
            self._actor = None
            raise Unavailable(f"{self.actor_name}: {error}") from None


def _publish(published: Published) -> Any:
    # Shards map the arrays where they lie in the object store: no copy per shard.
    return ray.put(tuple(published))


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)
class ModelActor:
    """One per cluster. If it dies, shards go on with the base they have and what they learn."""

    def __init__(self, config_json: bytes) -> None:
        config = msgspec.json.decode(config_json, type=Config)
        logging.basicConfig(level=config.log_level)
        self.learners: dict[str, RayLearner] = {}
        self.merger = Merger({}, config.data_path / "models", _publish, config.model_merge_s)
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to merge; idempotent."""
        if self.running is None:
            self.running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await asyncio.to_thread(rehearse)
        await self.merger.run()

    async def set_shards(self, actors: dict[str, str]) -> None:
        """These are all shards from now on, with Ray's names of what they run in."""
        for shard_id, name in actors.items():
            if shard_id not in self.learners or self.learners[shard_id].actor_name != name:
                self.learners[shard_id] = RayLearner(name)
        self.learners = {shard_id: self.learners[shard_id] for shard_id in actors}
        self.merger.set_learners(dict(self.learners))

    async def merge(self) -> None:
        """One round now, for tests and after a warm start."""
        await self.merger.merge()

    async def versions(self, tenant: str) -> dict[str, Any]:
        return self.merger.versions(tenant)

    async def rollback(self, tenant: str, name: str) -> str | None:
        """The version that serves now; None if no version of that name is saved."""
        try:
            return await self.merger.rollback(tenant, name)
        except RequestError:
            return None

    async def stop(self) -> None:
        """End merging and save."""
        await self.merger.close()
