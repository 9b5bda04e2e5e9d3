"""Ray's shell around `Coordination`.

Whoever asks Ray for an actor loads the actor's class, and a gateway does for this one. So the class
knows what it passes calls to by name alone; to import that takes a second of CPU.
"""

from __future__ import annotations

from typing import Any

import ray


def _passed(name: str) -> Any:
    """A method that passes its call to the one of that name."""

    async def method(self: CoordinatorActor, *arguments: Any) -> Any:
        return await getattr(self.coordination, name)(*arguments)

    return method


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)
class CoordinatorActor:
    """One per cluster, restarted by Ray."""

    def __init__(self, config_json: bytes) -> None:
        from actors.coordination import Coordination

        self.coordination = Coordination(config_json)

    read_table = _passed("read_table")
    swap_table = _passed("swap_table")
    shard_actor = _passed("shard_actor")
    map = _passed("map")
    wait_map = _passed("wait_map")
    put_items = _passed("put_items")
    delete_items = _passed("delete_items")
    register_items = _passed("register_items")
    item_ids = _passed("item_ids")
    put_document = _passed("put_document")
    delete_document = _passed("delete_document")
    get_document = _passed("get_document")
    list_documents = _passed("list_documents")
    start_import = _passed("start_import")
    import_status = _passed("import_status")
    restarts = _passed("restarts")
    plan = _passed("plan")
    reshape = _passed("reshape")
    reshapes = _passed("reshapes")
    abort_reshape = _passed("abort_reshape")
    drain = _passed("drain")
    undrain = _passed("undrain")
    drains = _passed("drains")
    nodes_with_shards = _passed("nodes_with_shards")
    model_versions = _passed("model_versions")
    roll_back_model = _passed("roll_back_model")
    shutdown = _passed("shutdown")
