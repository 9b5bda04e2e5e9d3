"""Which ports are picked, and that no two processes pick the same."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from cluster.errors import Unavailable
from serve import ports
from serve.ports import ROWS, SINGLES, free_ports, free_row, taken

PICK = "from serve.ports import *; print(*free_ports(1), free_row(2).start); input()"


@pytest.fixture(autouse=True)
def _released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_claims", [])


def test_linux_gives_none_of_them_to_connections() -> None:
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first = int(file.read().split()[0])
    assert max(ROWS.stop, SINGLES.stop) <= first


def test_each_is_picked_once_and_nobody_listens_there() -> None:
    found = [*free_ports(20), *free_ports(20)]
    rows = [free_row(64), free_row(64)]
    assert len(set(found)) == 40
    assert set(found) <= set(SINGLES)
    assert not set(rows[0]) & set(rows[1])
    assert not any(taken("127.0.0.1", port) for port in [*found, *rows[0], *rows[1]])


def test_one_that_somebody_listens_on_is_not_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = free_ports(1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", first))
        listener.listen()
        monkeypatch.setattr(ports, "SINGLES", range(first, first + 1))
        monkeypatch.setattr(ports, "ROWS", range(first, first + 1))
        with pytest.raises(Unavailable, match=f"no 1 free ports in {first}"):
            free_ports(1)
        with pytest.raises(Unavailable, match="in a row"):
            free_row(1)


def test_another_process_picks_others_for_as_long_as_this_one_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", PICK], stdin=pipe, stdout=pipe, text=True
    ) as other:
        assert other.stdout is not None
        single, first = map(int, other.stdout.readline().split())
        monkeypatch.setattr(ports, "SINGLES", range(single, single + 1))
        monkeypatch.setattr(ports, "ROWS", range(first, first + 2))
        with pytest.raises(Unavailable):
            free_ports(1)
        with pytest.raises(Unavailable):
            free_row(2)
        other.communicate("\n")
    assert free_ports(1) == [single]
    assert free_row(2).start == first
