"""onehop as an application that Ray Serve builds by itself: `import_path: serve.fleet:build`.

What `onehop up` does on one machine, KubeRay's RayService and `serve deploy` ask of Serve: Serve
builds the application in a task of its own, in a Ray cluster that runs already. Settings come from
the environment and the file of ONEHOP_CONFIG, as on the command line.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
from ray.serve import Application

from cluster.config import Config, load
from cluster.placement import ON_HEAD
from serve.app import COORDINATOR, NAMESPACE, app
from serve.auth import ensure_keys, ensure_secret


def build(arguments: dict[str, Any]) -> Application:
    """The application; its coordinator runs from here on, and outlives it.

    arguments  settings that go before file and environment, the `args` of a Serve config
    Raises     ConfigError
    """
    config = load(os.environ.get("ONEHOP_CONFIG"), os.environ, arguments)
    # Whoever asks Serve to build this has a Ray cluster, and what is claimed there counts.
    config = msgspec.structs.replace(config, address=config.address or "auto")
    ensure_keys(config, time.time())
    ensure_secret(config)
    find_or_start_coordinator(config)
    return app(config)


def find_or_start_coordinator(config: Config) -> Any:
    """The handle of the one coordinator in this Ray cluster; the first call to it starts shards."""
    from actors.coordinator_actor import CoordinatorActor

    actor: Any = CoordinatorActor
    return actor.options(
        name=COORDINATOR,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        get_if_exists=True,
        # Where it can't keep a node from being given back.
        resources=ON_HEAD,
    ).remote(msgspec.json.encode(config))
