"""The gate against a plain simulation of one server: what overload does with it and without."""

from __future__ import annotations

import random
from collections import deque

import pytest

from actors.admission import Admission

MS = 1_000_000
TARGET = 50 * MS
INTERVAL = 100 * MS
SERVICE = MS // 4
REFUSAL = MS // 250


def simulate(
    load: float, gate: Admission | None, seconds: float, pause_every: int = 0, seed: int = 1
) -> tuple[list[int], int, int]:
    """Open-loop arrivals at `load` times capacity: (answer times of the admitted, shed, taken).

    pause_every  every so many requests the server is away for 80 ms
    """
    generator = random.Random(seed)
    now, arrival, served = 0, 0, 0
    queue: deque[int] = deque()
    latencies: list[int] = []
    shed = 0
    end = int(seconds * 1e9)
    while now < end:
        while arrival <= now:
            queue.append(arrival)
            arrival += int(generator.expovariate(load / SERVICE))
        if not queue:
            if gate is not None:
                gate.idle()
            now = arrival
            continue
        came = queue.popleft()
        if gate is None or gate.admits(now - came, now):
            now += SERVICE
            latencies.append(now - came)
            served += 1
            if pause_every and served % pause_every == 0:
                now += 80 * MS
        else:
            shed += 1
            now += REFUSAL
    return sorted(latencies), shed, len(latencies)


@pytest.mark.parametrize("load", [1.5, 2.0, 3.0])
def test_overload_costs_the_refused_and_not_those_who_are_taken(load: float) -> None:
    gate = Admission(TARGET, INTERVAL)
    latencies, shed, served = simulate(load, gate, 10.0)
    capacity = int(10.0 * 1e9 / SERVICE)
    assert served > 0.93 * capacity
    assert shed > 0.9 * (load - 1) * capacity
    assert latencies[len(latencies) // 2] < 1.2 * TARGET
    # The first interval lets the queue grow before it is known to be a standing one.
    assert latencies[-1] < TARGET + load * INTERVAL
    assert latencies[int(0.97 * len(latencies))] < 1.2 * TARGET
    assert gate.overloaded
    open_latencies, _, _ = simulate(load, None, 10.0)
    assert open_latencies[len(open_latencies) // 2] > 20 * TARGET


def test_below_capacity_nobody_is_refused() -> None:
    for load in (0.3, 0.7, 0.95):
        gate = Admission(TARGET, INTERVAL)
        assert simulate(load, gate, 20.0)[1] == 0
        assert not gate.overloaded


def test_a_pause_of_the_server_is_no_overload() -> None:
    gate = Admission(TARGET, INTERVAL)
    latencies, shed, _ = simulate(0.5, gate, 20.0, pause_every=4000)
    assert latencies[-1] > 1.4 * TARGET
    assert shed == 0


def test_a_burst_is_taken_whole_and_the_gate_opens_when_the_load_goes() -> None:
    gate = Admission(TARGET, INTERVAL)
    # 500 at once, as a batch brings them: the last waits 125 ms.
    now = 0
    for _ in range(500):
        assert gate.admits(now, now)
        now += SERVICE
    gate.idle()
    for step in range(1000):
        gate.admits(200 * MS, step * MS)
    assert gate.overloaded
    assert gate.shed > 800
    assert not gate.admits(51 * MS, 1001 * MS)
    assert gate.admits(49 * MS, 1001 * MS)
    for step in range(300):
        assert gate.admits(10 * MS, (1002 + step) * MS)
    assert gate.admits(51 * MS, 1400 * MS), "the gate is open again"
