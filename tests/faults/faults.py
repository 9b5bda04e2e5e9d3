"""What can be done to a running onehop, by name, and how long it takes to recover."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cluster.keys import HASH_SPACE, USER, key_hash, place
from serve.cli import SERVED_S_MIN
from tests.faults.onehop import (
    CONTROLLER,
    COORDINATOR,
    GATEWAY,
    GCS,
    MODEL,
    PROXY,
    RAYLET,
    SHARD,
    Onehop,
)

STOPPED_S = 5.0
RECOVERED_S_MAX = 120.0
PROBE_S = 1.0

Fault = Callable[[Onehop, random.Random], float]
"""Strikes, and returns when, in seconds of the monotonic clock."""


@contextmanager
def failing(pid: int, call: str) -> Iterator[None]:
    """Within it, `call` of a process and its threads fails with EIO, and is not done."""
    command = ["strace", "-f", "-qq", "-p", str(pid), "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:error=EIO", "-o", "/dev/null"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as tracer:
        try:
            yield
        finally:
            # Asked to end, it may wait for threads of a process that is dead already.
            tracer.kill()


def kill(word: str) -> Fault:
    """SIGKILL to one process of a kind."""

    def act(onehop: Onehop, generator: random.Random) -> float:
        os.kill(generator.choice(onehop.wait_named(word, 1)).pid, signal.SIGKILL)
        return time.monotonic()

    return act


def kill_shard(onehop: Onehop, generator: random.Random) -> float:
    os.kill(generator.choice(onehop.wait_shards(1)).pid, signal.SIGKILL)
    return time.monotonic()


def kill_all_shards(onehop: Onehop, generator: random.Random) -> float:
    for victim in onehop.wait_shards(1):
        os.kill(victim.pid, signal.SIGKILL)
    return time.monotonic()


def stop_shard(onehop: Onehop, generator: random.Random) -> float:
    """A shard stands still, for longer than any lease, and goes on."""
    victim = generator.choice(onehop.wait_shards(1))
    os.kill(victim.pid, signal.SIGSTOP)
    time.sleep(STOPPED_S)
    if victim in onehop.named(SHARD):
        # The coordinator may have ended it meanwhile.
        with suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGCONT)
    return time.monotonic()


def fail_disk(onehop: Onehop, generator: random.Random) -> float:
    """The next write or flush of a shard's log fails; it must end itself."""
    victim = generator.choice(onehop.wait_shards(1))
    with failing(victim.pid, generator.choice(("fdatasync", "pwrite64"))):
        deadline = time.monotonic() + RECOVERED_S_MAX
        while victim in onehop.named(SHARD):
            if time.monotonic() > deadline:
                raise TimeoutError("a shard goes on after a failed write")
            time.sleep(0.05)
        return time.monotonic()


def break_ray(word: str) -> Fault:
    """SIGKILL to a process without which onehop must start itself again."""

    def act(onehop: Onehop, generator: random.Random) -> float:
        time.sleep(SERVED_S_MIN)
        starts = onehop.starts()
        struck_s = kill(word)(onehop, generator)
        # Shards that lost their Ray serve on for a moment: that is no recovery.
        onehop.wait_served(starts + 1)
        return struck_s

    return act


def restart_all(onehop: Onehop, generator: random.Random) -> float:
    """SIGKILL to everything at once, as if the power went; then start it again."""
    struck_s = time.monotonic()
    onehop.kill()
    onehop.start()
    return struck_s


FAULTS: dict[str, Fault] = {
    "shard": kill_shard,
    "shards": kill_all_shards,
    "gateway": kill(GATEWAY),
    "haproxy": kill(PROXY),
    "controller": kill(CONTROLLER),
    "coordinator": kill(COORDINATOR),
    "model": kill(MODEL),
    "sigstop": stop_shard,
    "raylet": break_ray(RAYLET),
    "gcs": break_ray(GCS),
    "cluster": restart_all,
}
if shutil.which("strace"):
    FAULTS["eio"] = fail_disk


def probes(shards: int) -> list[str]:
    """One person in the range of each shard, of ranges of equal size."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < shards:
        person = f"probe-{number}"
        at = place(key_hash("default", USER, person)) * shards // HASH_SPACE
        found.setdefault(at, person)
        number += 1
    return [found[at] for at in range(shards)]


def wait_recovered(onehop: Onehop, shards: int) -> None:
    """Return once every shard has acknowledged a message that was sent after now."""
    began_s = time.monotonic()
    for person in probes(shards):
        message = {"userId": person, "event": "Probed"}
        while True:
            try:
                onehop.call("POST", "/v1/track", message, timeout_s=PROBE_S)
                break
            except (RuntimeError, OSError) as error:
                if time.monotonic() > began_s + RECOVERED_S_MAX:
                    raise TimeoutError(f"no shard for {person}: {error}") from None
                time.sleep(0.02)
