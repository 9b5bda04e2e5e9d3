"""Ports that are free until who picked them listens on them.

Not from the range from which Linux picks: there, any connection that is made meanwhile may take
one, and a client that tries again and again to reach one where nobody listens yet will in the end
be given that very port to call from, is connected to itself, and holds it.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from itertools import islice

from cluster.errors import Unavailable

ROWS = range(20_000, 30_000)
SINGLES = range(30_000, 32_768)

# Another one each time: callers of who had a port before may still try it.
RANDOM = random.SystemRandom()

_claims: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """`count` ports of loopback that nobody listens on, nor will, if it is one of us."""
    shuffled = RANDOM.sample(SINGLES, len(SINGLES))
    ports = list(islice((port for port in shuffled if _claim([port])), count))
    if len(ports) < count:
        raise Unavailable(f"no {count} free ports in {SINGLES.start}..{SINGLES.stop - 1}")
    return ports


def free_row(count: int) -> range:
    """`count` free ports of loopback in a row."""
    firsts = range(ROWS.start, ROWS.stop - count + 1, count)
    for first in RANDOM.sample(firsts, len(firsts)):
        if _claim(row := range(first, first + count)):
            return row
    raise Unavailable(f"no {count} free ports in a row in {ROWS.start}..{ROWS.stop - 1}")


def taken(host: str, port: int) -> bool:
    """Whether somebody listens there, or nobody may."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _claim(ports: Sequence[int]) -> bool:
    """Take free ports, so that no other process of ours picks them for the life of this one: under
    the first one's name, which only one socket of a network namespace can have."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0onehop-port-{ports[0]}")
    except OSError:
        claim.close()
        return False
    if any(taken("127.0.0.1", port) for port in ports):
        claim.close()
        return False
    _claims.append(claim)
    return True
