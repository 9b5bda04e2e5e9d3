"""Serves one arm of `tests.bench.hop` until its standard input is closed.

    python -m tests.bench.hop_server ARM --port P --folder F --seed N

Prints one JSON line when it serves. ARM is a name in ARMS.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cluster.config import Config
from serve.launch import launch, serve_environment
from tests.bench.harness import Redis, adopt_orphans, end, tree, wait_for_close

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


def wait_until_it_answers(port: int, timeout_s: float = 60.0) -> None:
    """Return as soon as any HTTP answer comes from the port. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing answered on port {port} in {timeout_s} s")


def ready(**values: object) -> None:
    print(json.dumps(values), flush=True)


def serve_redis(port: int, seed: int, factory: str, workers: int, unix: bool = False) -> None:
    """A hand-built peer: redis-server, filled, and uvicorn with `workers` processes."""
    from tests.bench import hop_peers_redis

    with Redis() as server:
        hop_peers_redis.fill(server, seed, packed=factory == "strong")
        os.environ |= {
            hop_peers_redis.PORT: str(server.port),
            hop_peers_redis.SOCKET: server.socket if unix else "",
            hop_peers_redis.SEED: str(seed),
        }
        command = [sys.executable, "-m", "uvicorn", "--factory"]
        command += [f"tests.bench.hop_peers_redis:{factory}", "--workers", str(workers)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--lifespan", "off"]
        command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
        web = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        try:
            wait_until_it_answers(port)
            ready(port=port)
            wait_for_close()
        finally:
            end(tree(web.pid))
            web.wait()


def serve_ray(port: int, seed: int, folder: Path, name: str) -> None:
    """A peer on Ray Serve. "flags" and "noop" get the very settings that onehop gives Serve."""
    # Read when Ray is imported, and inherited by every process of its cluster.
    os.environ |= {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    if name != "textbook":
        os.environ |= serve_environment(Config(port=port), folder)
        del os.environ[CALLBACK]
    if name == "noop":
        os.environ[CALLBACK] = "tests.bench.hop_peers_serve:noop_middlewares"
    import ray
    from ray import serve

    from tests.bench import hop_peers_serve

    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    application = hop_peers_serve.noop() if name == "noop" else hop_peers_serve.textbook(seed)
    serve.run(application)
    wait_until_it_answers(port)
    ready(port=port)
    wait_for_close()
    ray.shutdown()


def serve_onehop(port: int, seed: int, folder: Path, durability: Literal["disk", "memory"]) -> None:
    """onehop itself, with its defaults but for what is named; filled through its own API."""
    with launch(Config(port=port, data_dir=str(folder), durability=durability)):
        command = [sys.executable, "-m", "tests.bench.hop_client", "fill"]
        command += ["--port", str(port), "--seed", str(seed)]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True)
        ready(port=port)
        wait_for_close()


ARMS: dict[str, Callable[[int, int, Path], None]] = {
    "onehop": lambda port, seed, folder: serve_onehop(port, seed, folder, "memory"),
    "onehop_disk": lambda port, seed, folder: serve_onehop(port, seed, folder, "disk"),
    "noop": lambda port, seed, folder: serve_ray(port, seed, folder, "noop"),
    "textbook": lambda port, seed, folder: serve_ray(port, seed, folder, "textbook"),
    "flags": lambda port, seed, folder: serve_ray(port, seed, folder, "flags"),
    "diy_weak": lambda port, seed, folder: serve_redis(port, seed, "weak", 1),
    "diy_strong": lambda port, seed, folder: serve_redis(port, seed, "strong", 1),
    "diy_strong_unix": lambda port, seed, folder: serve_redis(port, seed, "strong", 1, unix=True),
    "diy_strong_2": lambda port, seed, folder: serve_redis(port, seed, "strong", 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=sorted(ARMS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    adopt_orphans()
    ARMS[flags.arm](flags.port, flags.seed, flags.folder)


if __name__ == "__main__":
    main()
