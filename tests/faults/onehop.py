"""A whole onehop in processes of its own, and its processes by what they are.

Everything is signalled by process id, and only what was started here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serve.auth import KEYS_ENV, read_environment
from serve.ports import free_ports
from serve.processes import Process, alive, descendants, end

START_S = 240.0
START_ATTEMPTS = 5
STOP_S = 120.0
"""Long, for a machine that starts three others meanwhile: who is cut off leaves things behind."""
PROCESSES_S = 60.0
POLL_S = 0.05

# Words in the command lines of the processes that faults hit.
SHARD = "ray::ShardActor"
GATEWAY = "ray::ServeReplica"
PROXY = "haproxy.cfg"
CONTROLLER = "ray::ServeController"
COORDINATOR = "ray::CoordinatorActor"
MODEL = "ray::ModelActor"
GCS = "gcs_server"
RAYLET = "raylet/raylet"


class Onehop:
    """`onehop up` on a data folder; started by `start`, again after `kill`.

    environment  settings (ONEHOP_...) and more
    """

    def __init__(self, folder: Path, **environment: str | int | float) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "up.log"
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {name: str(value) for name, value in environment.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and wait until it serves. Raises RuntimeError with its output if it can't.

        On a machine so busy that Ray gives up, which is no fault of ours, it is tried again.
        """
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                return self._start()
            except RuntimeError as error:
                if "timed out during startup" not in str(error) or attempt == START_ATTEMPTS:
                    raise
        return self

    def _start(self) -> Self:
        command = [sys.executable, "-c", "from serve.cli import main; main()"]
        command += ["up", "--port", str(self.port), "--data-dir", str(self.data)]
        at = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while True:
            printed = self.log.read_text(errors="replace")[at:]
            if "is up at" in printed:
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"onehop did not start:\n{_essence(printed)}")
            time.sleep(POLL_S)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_served(self, starts: int) -> None:
        """Wait until it said for the `starts`th time that it is up. Raises TimeoutError."""
        began_s = time.monotonic()
        while self.starts() < starts:
            if (
                self._process is None
                or self._process.poll() is not None
                or time.monotonic() > began_s + START_S
            ):
                raise TimeoutError(
                    f"onehop is not up again: {self.starts()} of {starts} starts after"
                    f" {time.monotonic() - began_s:.0f} s\n{_essence(_text(self.log))}"
                )
            time.sleep(POLL_S)

    def starts(self) -> int:
        """How often it said that it is up."""
        return _text(self.log).count("is up at")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def key(self) -> str:
        keys = read_environment(self.data / KEYS_ENV)
        assert keys is not None
        return keys.sk

    def processes(self) -> list[Process]:
        """All of it, the command itself first."""
        assert self._process is not None
        pid = self._process.pid
        own = [p for p in descendants(os.getpid()) if p.pid == pid]
        return [*own, *descendants(pid)]

    def named(self, word: str) -> list[Process]:
        """Its processes with `word` in their command line, in order of their start."""
        found = []
        for process in self.processes():
            if word in _text(Path(f"/proc/{process.pid}/cmdline")):
                found.append(process)
        return sorted(found, key=lambda process: process.started)

    def wait_named(self, word: str, count: int) -> list[Process]:
        """Its processes with `word`, once there are `count`. Raises TimeoutError."""
        return self._wait(lambda: self.named(word), word, count)

    def shards(self) -> list[Process]:
        """Its processes that are shards: those that have a file of one open."""
        return [process for process in self.named(SHARD) if _has_open(process, "/data/shards/")]

    def spares(self) -> list[Process]:
        """Its processes that may become shards."""
        shards = self.shards()
        return [process for process in self.named(SHARD) if process not in shards]

    def wait_shards(self, count: int) -> list[Process]:
        """Its shards, once there are `count`. Raises TimeoutError."""
        return self._wait(self.shards, "shards", count)

    def _wait(self, find: Callable[[], list[Process]], what: str, count: int) -> list[Process]:
        deadline = time.monotonic() + PROCESSES_S
        while len(found := find()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} {what} after {PROCESSES_S} s")
            time.sleep(POLL_S)
        return found

    def kill(self) -> None:
        """SIGKILL to every process at once, as if the power went."""
        if self._process is None:
            return
        everything = self.processes()
        run_dirs = self._find_run_dirs()
        # Nobody may see another die and start a successor meanwhile.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in everything:
                if alive(process):
                    os.kill(process.pid, number)
        self._process.wait(STOP_S)
        deadline = time.monotonic() + STOP_S
        while any(alive(process) for process in everything) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._process = None
        # What a killed launch can't remove itself: its folder for Ray and for sockets.
        for run_dir in run_dirs:
            shutil.rmtree(run_dir, ignore_errors=True)

    def _find_run_dirs(self) -> set[str]:
        lines = (Path(f"/proc/{p.pid}/cmdline") for p in self.named(GCS))
        return {found for line in lines for found in re.findall(r"/tmp/oh-[^/\0]+", _text(line))}

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self._process is None:
            return
        everything = self.processes()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        end(everything, 1.0)
        self._process.wait(STOP_S)
        self._process = None

    def call(self, method: str, path: str, body: Any = None, timeout_s: float = 30.0) -> Any:
        """One request; its JSON. Raises RuntimeError unless the status is 200."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("X-API-Key", self.key)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read()!r}") from None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _essence(printed: str) -> str:
    """The end of what was printed, without the pages that Ray adds when a process of its dies."""
    lines = [line for line in printed.splitlines() if not re.search(r"\(raylet\)|\[state-", line)]
    return "\n".join(lines)[-3000:]


def _has_open(process: Process, part: str) -> bool:
    """Whether it has a file open whose path has this part."""
    folder = Path(f"/proc/{process.pid}/fd")
    try:
        for descriptor in folder.iterdir():
            with suppress(FileNotFoundError):
                if part in os.readlink(descriptor):
                    return True
    except (FileNotFoundError, ProcessLookupError):
        return False  # It has ended.
    return False


def _text(path: Path) -> str:
    """What a file says; "" if it is gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
