"""The gateway as a Ray Serve deployment. It and launch are all of the edge that knows Ray."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
import ray
from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import Application

from actors.quiet import come_first
from cluster.access import read_secret
from cluster.config import Config
from cluster.errors import OnehopError, Unavailable
from cluster.partition_map import PartitionMap, decode_map
from cluster.placement import GATEWAY_CPUS
from serve.auth import Keys
from serve.fast_lane import install
from serve.gateway import Gateway
from serve.router import Router
from serve.routes import build_app
from serve.scaling import METRIC, BusyMeter, autoscaling

APP_NAME = "onehop"
NAMESPACE = "onehop"
COORDINATOR = "onehop-coordinator"
PRINCIPAL = "gateway"
SURGE_PERCENT = 1
"""So many gateways, rounded up, may be there beyond their number while the application is deployed
anew: a new one serves before an old one goes. For more there may be no room."""
ONGOING_MAX = 2048
"""Requests beside the fast lane, streams without it included, that one gateway takes at once."""
HEALTH_S = 0.5
"""Serve notices a dead gateway by its next health check only; its default is ten seconds."""

T = TypeVar("T")


class CoordinatorControl:
    """What the gateway asks of the coordinator, as Ray calls."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    async def wait_map(self, epoch: int, timeout_s: float) -> PartitionMap:
        return decode_map(await _asked(self._coordinator.wait_map.remote(epoch, timeout_s)))

    async def put_items(self, tenant: str, items_json: bytes) -> bytes:
        results: bytes = await _asked(self._coordinator.put_items.remote(tenant, items_json))
        return results

    async def delete_items(self, tenant: str, ids: list[str]) -> list[bool]:
        deleted: list[bool] = await _asked(self._coordinator.delete_items.remote(tenant, ids))
        return deleted

    async def put_document(
        self,
        tenant: str,
        kind: str,
        document_id: str,
        content: bytes,
        expected: int | None,
        dry_run: bool,
    ) -> bytes:
        put: bytes = await _asked(
            self._coordinator.put_document.remote(
                tenant, kind, document_id, content, expected, dry_run
            )
        )
        return put

    async def get_document(
        self, tenant: str, kind: str, document_id: str, version: int | None
    ) -> bytes:
        found: bytes = await _asked(
            self._coordinator.get_document.remote(tenant, kind, document_id, version)
        )
        return found

    async def delete_document(
        self, tenant: str, kind: str, document_id: str, expected: int | None
    ) -> bytes:
        deleted: bytes = await _asked(
            self._coordinator.delete_document.remote(tenant, kind, document_id, expected)
        )
        return deleted

    async def list_documents(self, tenant: str, kind: str) -> bytes:
        listed: bytes = await _asked(self._coordinator.list_documents.remote(tenant, kind))
        return listed

    async def start_import(self, tenant: str, spec_json: bytes) -> bytes:
        started: bytes = await _asked(self._coordinator.start_import.remote(tenant, spec_json))
        return started

    async def import_status(self, tenant: str, import_id: str) -> bytes | None:
        status: bytes | None = await _asked(
            self._coordinator.import_status.remote(tenant, import_id)
        )
        return status

    async def plan(self) -> bytes:
        advice: bytes = await _asked(self._coordinator.plan.remote())
        return advice

    async def reshape(self, request_json: bytes) -> bytes:
        begun: bytes = await _asked(self._coordinator.reshape.remote(request_json))
        return begun

    async def reshapes(self) -> bytes:
        listed: bytes = await _asked(self._coordinator.reshapes.remote())
        return listed

    async def abort_reshape(self, reshape_id: str) -> bytes | None:
        aborted: bytes | None = await _asked(self._coordinator.abort_reshape.remote(reshape_id))
        return aborted

    async def nodes(self) -> bytes:
        listed: bytes = await _asked(self._coordinator.nodes_with_shards.remote())
        return listed

    async def drain(self, node_id: str) -> bytes:
        begun: bytes = await _asked(self._coordinator.drain.remote(node_id))
        return begun

    async def undrain(self, node_id: str) -> None:
        await _asked(self._coordinator.undrain.remote(node_id))

    async def model_versions(self, tenant: str) -> bytes:
        versions: bytes = await _asked(self._coordinator.model_versions.remote(tenant))
        return versions

    async def roll_back_model(self, tenant: str, name: str) -> str | None:
        serving: str | None = await _asked(self._coordinator.roll_back_model.remote(tenant, name))
        return serving


async def _asked(call: Awaitable[T]) -> T:
    """What the coordinator answers. Raises its OnehopErrors as they are, Unavailable if it died."""
    try:
        return await call
    except RayTaskError as error:
        # Ray's wrapper has the type of what it wraps, but its text is a traceback.
        if isinstance(error.cause, OnehopError):
            raise error.cause from None
        raise
    except RayActorError:
        raise Unavailable("the coordinator is being restarted") from None


@ray_serve.deployment(name="gateway", max_ongoing_requests=ONGOING_MAX)
@ray_serve.ingress(build_app)
class GatewayDeployment:
    """One replica: one process, one event loop, one `Gateway`."""

    # Serve awaits it, so the router starts in the event loop that will serve.
    async def __init__(self, config_json: bytes) -> None:  # type: ignore[misc]
        config = msgspec.json.decode(config_json, type=Config)
        control = CoordinatorControl(ray.get_actor(COORDINATOR, namespace=NAMESPACE))

        async def fetch_map(epoch: int) -> PartitionMap:
            return await control.wait_map(epoch, config.request_timeout_s)

        router = Router(
            fetch_map,
            PRINCIPAL,
            read_secret(config),
            inflight_max=config.inflight_max,
            request_timeout_s=config.request_timeout_s,
            map_wait_s=config.map_wait_s,
        )
        await router.start()
        router.watch()
        keys = Keys(config.keys_path, keyless=config.loopback and config.loopback_without_key)
        replica = ray_serve.get_replica_context().replica_id.unique_id
        install(Gateway(keys, router, control, replica, config.request_timeout_s))
        self.busy = BusyMeter()
        come_first()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's autoscaler is told of this gateway."""
        return {METRIC: self.busy.read()}


def app(config: Config) -> Application:
    """The Serve application for `config`."""
    deployment: Any = GatewayDeployment
    roles = {"resources": {"gateways": 1}} if config.node_roles else {}
    scaled = autoscaling(config)
    count = {"autoscaling_config": scaled} if scaled else {"num_replicas": config.gateways}
    application: Application = deployment.options(
        **count,
        ray_actor_options={"num_cpus": GATEWAY_CPUS, **roles},
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=5.0,
        max_surge_percent=SURGE_PERCENT,
    ).bind(msgspec.json.encode(config))
    return application
