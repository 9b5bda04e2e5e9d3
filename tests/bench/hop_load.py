"""Runs a load generator of `tests.bench.hop` as a program of its own; reads what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from threading import Timer
from types import TracebackType
from typing import Self

from tests.bench.harness import Row


class LoadGenerator:
    """A running load generator. One that `waits` says so when it is ready, and starts when told,
    so that neither its start nor what the server does meanwhile is counted."""

    def __init__(self, command: Sequence[str], waits: bool, timeout_s: float) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._alarm = Timer(timeout_s, self._process.kill)
        self._alarm.start()
        self.cpu_s = 0.0
        if waits:
            assert self._process.stdout is not None
            self._process.stdout.readline()

    def go(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.close()
        except BrokenPipeError:
            # It has failed already; `told` says how.
            return

    def told(self) -> Row:
        """What it measured. Raises RuntimeError if it failed."""
        assert self._process.stdout is not None
        text = self._process.stdout.read()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        if self._process.returncode:
            self._errors.seek(0)
            raise RuntimeError(f"{self._process.args!r} failed: {self._errors.read()!r}")
        found: Row = json.loads(text.strip().splitlines()[-1])
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._alarm.cancel()
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()
