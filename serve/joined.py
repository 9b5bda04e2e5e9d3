"""A onehop in a Ray cluster that runs already: was it there before, and how it leaves."""

from __future__ import annotations

import logging
from typing import Any

from cluster.config import Config
from cluster.errors import ConfigError
from serve.app import APP_NAME, COORDINATOR, NAMESPACE

LOG = logging.getLogger("onehop.serve")

SHUTDOWN_S = 10.0
OURS = "onehop-"
"""How names of our actors begin."""


def is_running() -> bool:
    """Whether the Ray cluster that this process has joined has a onehop."""
    import ray

    try:
        ray.get_actor(COORDINATOR, NAMESPACE)
    except ValueError:
        return False
    return True


def check_port(config: Config) -> None:
    """Raises ConfigError if Serve ran already in the cluster and listens elsewhere: it stays so."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    port = client.http_config.port
    if port != config.port:
        raise ConfigError(f"Ray Serve listens on port {port} there already, got {config.port}")


def leave(coordinator: Any) -> None:
    """Take our application and all our actors out, in whatever state their start was."""
    import ray
    from ray import serve as ray_serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        ray_serve.delete(APP_NAME)
        if not ray_serve.status().applications:
            # Its proxies would keep the port for ever.
            ray_serve.shutdown()  # type: ignore[no-untyped-call]
    except RayServeException as error:
        LOG.info("there is no application to be taken out: %s", error)
    try:
        ray.get(coordinator.shutdown.remote(), timeout=SHUTDOWN_S)
    except RayError as error:
        # It may be in the midst of its start, or dead: its actors are ended all the same.
        LOG.warning("the coordinator did not shut down: %s", error)
    # First: it would start again what is ended beside it.
    ray.kill(coordinator)
    for found in ray.util.list_named_actors(all_namespaces=True):
        name, namespace = found["name"], found["namespace"]
        if namespace == NAMESPACE and name.startswith(OURS) and name != COORDINATOR:
            try:
                ray.kill(ray.get_actor(name, NAMESPACE))
            except ValueError:
                continue  # It has ended meanwhile.
