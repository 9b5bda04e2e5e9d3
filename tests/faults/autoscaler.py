"""Ray's real autoscaler over nodes that are processes of this machine.

What `ray.cluster_utils.AutoscalingCluster` does, without its `ray stop`, which would end every Ray
cluster of the machine, and without its template, which the wheel lacks. Everything runs below this
process and is ended by process id.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serve.ports import free_ports
from serve.processes import adopt_orphans, descendants, end

HEAD_ID = "f" * 51 + "00000"
"""What Ray's fake provider calls the head."""
UNUSED = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)


class Autoscaled:
    """A head without CPUs, and workers that the autoscaler starts and ends.

    workers      node types: name -> {"resources", "min_workers", "max_workers"}
    idle_s       how long a node must be idle until it is ended
    environment  of all of Ray's processes
    """

    def __init__(
        self, workers: dict[str, Any], workers_max: int, idle_s: float, **environment: str
    ) -> None:
        self.address = ""
        self._folder = Path(tempfile.mkdtemp(prefix="oh-", dir="/tmp"))
        self._environment = environment
        self._before = descendants(os.getpid())
        for kind in workers.values():
            kind.setdefault("node_config", {})
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        self._config: dict[str, Any] = {
            "cluster_name": "fake_multinode",
            "max_workers": workers_max,
            "provider": {
                # By its module: under its own name Ray looks for a template that no wheel has.
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider"
                ".FakeMultiNodeProvider",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": True,
                "head_node_id": HEAD_ID,
            },
            "available_node_types": {**workers, "ray.head.default": head},
            "head_node_type": "ray.head.default",
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": idle_s / 60,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{name: [] for name in UNUSED},
        }

    def __enter__(self) -> Self:
        adopt_orphans()
        # As in a fleet: whoever has the token may join. Before Ray is imported here.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        from ray.util import get_node_ip_address

        (port,) = free_ports(1)
        self.address = f"{get_node_ip_address()}:{port}"
        self._config["provider"]["gcs_address"] = self.address
        file = self._folder / "autoscaling.json"
        file.write_text(json.dumps(self._config))
        script = Path(sys.executable).parent / "ray"
        command = [str(script), "start", "--head", f"--port={port}", "--num-cpus=0"]
        command += [f"--autoscaling-config={file}", f"--temp-dir={self._folder}"]
        command += ["--include-dashboard=false", "--object-store-memory=150000000"]
        environment = {
            **os.environ,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            # As onehop runs its own Ray: who answers people yields to nobody.
            "RAY_worker_niceness": "0",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            **self._environment,
        }
        log = self._folder / "start.log"
        with log.open("wb") as out:
            done = subprocess.run(command, stdout=out, stderr=out, env=environment, check=False)
        if done.returncode:
            self.stop()
            raise RuntimeError(log.read_text(errors="replace"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        end(descendants(os.getpid()) - self._before, 1.0)
        shutil.rmtree(self._folder, ignore_errors=True)
