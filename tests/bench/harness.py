"""What all benchmark programs share: processes and what they cost, peers, and the report.

A report is {"name", "date", "machine", "versions", "seed", "rows": [flat], "ratios": {}}.
Everything that is started here is ended by its own process id, and listens on loopback only.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from serve.ports import free_ports

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PR_SET_CHILD_SUBREAPER = 36

Row = dict[str, Any]


# --- processes ----------------------------------------------------------------------------------


class Process(NamedTuple):
    """One process; the start time tells a reused id from the process that was meant."""

    pid: int
    started: int


class Stat(NamedTuple):
    """What /proc/<pid>/stat says. CPU seconds are of all threads; RSS counts shared pages."""

    parent: int
    started: int
    cpu_s: float
    rss_bytes: int


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose parent dies, so that `tree` finds them."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def stat(pid: int) -> Stat | None:
    """The process's parent, start, CPU time and memory; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command stands in parentheses and may itself hold spaces and parentheses.
    field = text[text.rindex(")") + 2 :].split()
    cpu_s = (int(field[11]) + int(field[12])) * TICK_S
    return Stat(int(field[1]), int(field[19]), cpu_s, int(field[21]) * PAGE_BYTES)


def tree(*roots: int) -> list[Process]:
    """The processes `roots` and all their descendants."""
    stats = {int(p): s for p in os.listdir("/proc") if p.isdigit() and (s := stat(int(p)))}
    children: dict[int, list[int]] = {}
    for pid, found in stats.items():
        children.setdefault(found.parent, []).append(pid)
    todo, seen = [pid for pid in roots if pid in stats], []
    while todo:
        pid = todo.pop()
        seen.append(Process(pid, stats[pid].started))
        todo.extend(children.get(pid, ()))
    return seen


def cpu_s(processes: Iterable[Process]) -> float:
    """CPU seconds that the processes have used so far; one that is gone counts as 0."""
    return sum(s.cpu_s for p in processes if (s := stat(p.pid)) and s.started == p.started)


def rss_bytes(processes: Iterable[Process]) -> int:
    """Resident memory of the processes; pages that they share count more than once."""
    return sum(s.rss_bytes for p in processes if (s := stat(p.pid)) and s.started == p.started)


def send_signal(processes: Iterable[Process], number: signal.Signals) -> None:
    """Signal exactly these processes; one that is gone is passed over."""
    for process in processes:
        found = stat(process.pid)
        if found and found.started == process.started:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue


def end(processes: Sequence[Process], patience_s: float = 5.0) -> None:
    """Terminate these processes, and kill what has not gone after `patience_s`."""
    send_signal(processes, signal.SIGCONT)
    send_signal(processes, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and any(_alive(p) for p in processes):
        time.sleep(0.05)
    send_signal(processes, signal.SIGKILL)


def _alive(process: Process) -> bool:
    try:
        os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        pass
    found = stat(process.pid)
    return found is not None and found.started == process.started


class Server:
    """A program in its own process tree that prints one JSON line when it serves.

    It is ended by closing its standard input; what is left of its tree after that is ended by
    process id. `ready` is what it printed. Its output goes to `log`.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 180.0,
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        try:
            self.ready: Row = self._read_ready(timeout_s)
        except BaseException:
            self.stop()
            raise

    def _read_ready(self, timeout_s: float) -> Row:
        output = self._popen.stdout
        assert output is not None
        os.set_blocking(output.fileno(), False)
        deadline, text = time.monotonic() + timeout_s, b""
        while time.monotonic() < deadline:
            text += output.read() or b""
            for line in text.splitlines(keepends=True):
                if line.startswith(b"{") and line.endswith(b"\n"):
                    found: Row = json.loads(line)
                    return found
            if self._popen.poll() is not None:
                break
            time.sleep(0.05)
        tail = self.log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{self._popen.args!r} did not become ready:\n{tail}")

    @property
    def pid(self) -> int:
        return self._popen.pid

    def processes(self) -> list[Process]:
        return tree(self.pid)

    def pause(self) -> None:
        """Stop the whole tree, so that an idle cluster does not disturb who is measured."""
        send_signal(self.processes(), signal.SIGSTOP)

    def resume(self) -> None:
        send_signal(self.processes(), signal.SIGCONT)

    def stop(self, patience_s: float = 20.0) -> None:
        """End it; safe to call twice."""
        rest = self.processes()
        send_signal(rest, signal.SIGCONT)
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        try:
            self._popen.wait(patience_s)
        except subprocess.TimeoutExpired:
            pass
        end(rest)
        self._popen.wait()
        if self._popen.stdout is not None:
            self._popen.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Redis:
    """A private redis-server on a Unix socket and a loopback port, without persistence.

    folder  has a dump to load; None: a new one, empty
    """

    def __init__(self, *options: str, folder: Path | None = None) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise RuntimeError("redis-server is not installed: apt-get install redis-server")
        self.folder = Path(tempfile.mkdtemp(prefix="bench-redis-"))
        (self.port,) = free_ports(1)
        self.socket = str(self.folder / "s")
        settings = ["--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self.socket]
        where = str(folder or self.folder)
        settings += ["--save", "", "--appendonly", "no", "--dir", where]
        self._popen = subprocess.Popen(
            [binary, *settings, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not Path(self.socket).exists():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("redis-server did not start")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def processes(self) -> list[Process]:
        return tree(self.pid)

    def stop(self) -> None:
        if self._popen.poll() is None:
            end(self.processes())
            self._popen.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def wait_for_close() -> None:
    """Return when standard input is closed: how a `Server` is told to end."""
    while sys.stdin.buffer.read(4096):
        pass


# --- what is reported ---------------------------------------------------------------------------


def machine() -> Row:
    """The machine this runs on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "kernel": platform.release(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the installed packages named; of programs, what `-v` says."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = program_version(name)
    return found


def program_version(name: str) -> str:
    """The first word with a digit and a dot that `name -v` prints, or "absent"."""
    binary = shutil.which(name)
    if binary is None:
        return "absent"
    done = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10)
    words = (done.stdout + done.stderr).replace("=", " ").split()
    return next((w for w in words if "." in w and any(c.isdigit() for c in w)), "unknown")


def summary(values: Sequence[float], name: str, digits: int = 0) -> Row:
    """Median and range of repeats, as `name`, `name_min` and `name_max`."""
    return {
        name: rounded(statistics.median(values), digits),
        f"{name}_min": rounded(min(values), digits),
        f"{name}_max": rounded(max(values), digits),
    }


def rounded(value: float, digits: int) -> float:
    """`value` to `digits` decimals, an int if there are none."""
    return round(value, digits) if digits else round(value)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values in ascending order; 0.0 of none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(
    name: str,
    seed: int,
    rows: Sequence[Row],
    ratios: Mapping[str, float],
    packages: Sequence[str],
    json_path: Path | None,
) -> Row:
    """Print the table and ratios, write them to `json_path` if given, and return the document."""
    document: Row = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(*packages),
        "seed": seed,
        "rows": list(rows),
        "ratios": dict(ratios),
    }
    print(f"\n{name}  {document['date']}  seed {seed}")
    print("machine   " + "  ".join(f"{k} {v}" for k, v in document["machine"].items()))
    print("versions  " + "  ".join(f"{k} {v}" for k, v in document["versions"].items()))
    print()
    print(table(rows))
    for ratio, value in ratios.items():
        print(f"{ratio:>28}  {value:.3g}")
    if json_path is not None:
        json_path.write_text(json.dumps(document, indent=1) + "\n")
    return document


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text, one column per key in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in cells
    )


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
