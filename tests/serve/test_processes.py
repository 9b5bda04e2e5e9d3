from __future__ import annotations

import os
import subprocess
import sys
import time

from serve.processes import alive, descendants, end

STUBBORN = (
    "import signal,subprocess,sys,time;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "subprocess.Popen(['sleep','60']);print('up',flush=True);time.sleep(60)"
)


def test_children_and_grandchildren_are_found_and_ended_by_force_if_they_must():
    before = descendants(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    started = descendants(os.getpid()) - before
    assert child.pid in {process.pid for process in started}
    assert len(started) == 2
    end(started, 0.2)
    child.wait()
    assert not any(alive(process) for process in started)


def test_what_ended_by_itself_is_left_alone():
    child = subprocess.Popen(["sleep", "0.1"])
    (process,) = (p for p in descendants(os.getpid()) if p.pid == child.pid)
    began = time.monotonic()
    child.wait()
    end([process], 5.0)
    assert time.monotonic() - began < 4
    assert child.returncode == 0


def test_a_reused_process_id_is_another_process():
    (own,) = (p for p in descendants(os.getppid()) if p.pid == os.getpid())
    assert alive(own)
    assert not alive(own._replace(started=own.started - 1))
