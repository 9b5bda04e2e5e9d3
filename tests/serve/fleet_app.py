"""Lets Ray Serve build onehop by itself, as KubeRay's RayService asks it to: a program.

    python -m tests.serve.fleet_app FOLDER

Prints one JSON line: what /health/ready, a decide call and the plan answered.
"""

import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from cluster.config import load
from serve.launch import RUN_DIR_PREFIX, _start_ray, serve_environment
from serve.ports import free_ports
from serve.processes import Process, adopt_orphans, descendants, end

ROOT = Path(__file__).resolve().parents[2]
READY_S = 240.0


def request(url: str, key: str = "", body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"X-API-Key": key})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return 0, None


def run(folder: Path, port: int, before: set[Process]) -> dict[str, Any]:
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    (service,) = yaml.safe_load_all((ROOT / "deploy/base/rayservice.yaml").read_text())
    document = yaml.safe_load(service["spec"]["serveConfigV2"])
    document["http_options"] |= {"host": "127.0.0.1", "port": port}
    run_dir = Path(tempfile.mkdtemp(prefix=RUN_DIR_PREFIX, dir="/tmp"))
    os.environ["ONEHOP_CONFIG"] = str(folder / "onehop.toml")
    config = load(os.environ["ONEHOP_CONFIG"])
    environment = serve_environment(config, run_dir)
    os.environ.update(environment)
    _start_ray(config, run_dir, environment, before)
    ray_serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    client: Any = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate(document))
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + READY_S
    ready = 0
    while ready != 200 and time.monotonic() < deadline:
        time.sleep(0.2)
        ready, _ = request(f"{url}/health/ready")
    keys = dict(line.split("=", 1) for line in (folder / "keys.env").read_text().split())
    key = keys["ONEHOP_API_KEY"]
    message = {"messageId": "m", "userId": "ada", "decisions": [{"surface": "product"}]}
    return {
        "ready": ready,
        "decide": request(f"{url}/v1/decide", key, message)[0],
        "again": request(f"{url}/v1/decide", key, message)[1],
        "plan": request(f"{url}/v1/plan", key)[0],
        "without_key": request(f"{url}/v1/decide", "", message)[0],
        "application": str(client.get_serve_status("onehop").app_status.status.value),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    (port,) = free_ports(1)
    (folder / "onehop.toml").write_text(
        f'port = {port}\ndata_dir = "{folder}"\nshards = 2\nprofiles_max = 100000\n'
        f"loopback_without_key = false\n"
    )
    adopt_orphans()
    before = descendants(os.getpid())
    try:
        print(json.dumps(run(folder, port, before)), flush=True)
    finally:
        end(descendants(os.getpid()) - before, 1.0)


if __name__ == "__main__":
    main()
