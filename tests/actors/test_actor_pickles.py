"""What Ray ships of an actor's class to the process that it starts for it."""

from __future__ import annotations

import asyncio
import inspect
import pickletools
import sys
from typing import Any

import pytest
import ray.serve  # noqa: F401  # as in the process that starts onehop
from ray import cloudpickle

from actors.backup_actor import BackupActor
from actors.coordination import Coordination
from actors.coordinator_actor import CoordinatorActor
from actors.model_actor import ModelActor
from actors.shard_actor import ShardActor


@pytest.mark.parametrize("actor", [ShardActor, CoordinatorActor, ModelActor, BackupActor])
def test_no_process_imports_serve_for_a_method_of_that_name(actor: Any) -> None:
    """Where a method has an attribute called like a submodule of Ray, cloudpickle imports that
    module in the new process: `serve` costs every shard two thirds of a second."""
    assert "ray.serve" in sys.modules
    shipped = cloudpickle.dumps(actor.__ray_metadata__.modified_class)
    named = {argument for _, argument, _ in pickletools.genops(shipped)}
    assert "ray" in named
    assert "ray.serve" not in named


def test_every_call_to_the_coordinator_is_passed_to_the_method_of_its_name() -> None:
    class Telling:
        def __getattr__(self, name: str) -> Any:
            async def method(*arguments: Any) -> Any:
                return name, arguments

            return method

    def methods(of: type) -> set[str]:
        found = inspect.getmembers(of, inspect.iscoroutinefunction)
        return {name for name, _ in found if not name.startswith("_")}

    actor: Any = CoordinatorActor
    shell = object.__new__(actor.__ray_metadata__.modified_class)
    shell.coordination = Telling()
    assert methods(type(shell)) == methods(Coordination)
    for name in methods(Coordination):
        assert asyncio.run(getattr(shell, name)(1, 2)) == (name, (1, 2))
