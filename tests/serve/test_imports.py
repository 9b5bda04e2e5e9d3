"""A gateway starts as soon as Serve lets it: what it never needs is not imported."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from ray import cloudpickle

from actors.coordinator_actor import CoordinatorActor

CODE = """
import pickle, sys
import serve.app
pickle.load(sys.stdin.buffer)
print(*sorted({"numba", "aiohttp"} & sys.modules.keys()))
"""


def test_a_gateway_imports_neither_kernels_nor_a_client() -> None:
    """Of the 1.2 s of CPU that importing a gateway's own modules took, 1.0 were for these. Who asks
    Ray for an actor, as a gateway does for the coordinator, loads what was pickled of its class."""
    actor: Any = CoordinatorActor
    shipped = cloudpickle.dumps(actor.__ray_metadata__.modified_class)
    command = [sys.executable, "-c", CODE]
    found = subprocess.run(command, input=shipped, capture_output=True, check=True)
    assert found.stdout.split() == []
