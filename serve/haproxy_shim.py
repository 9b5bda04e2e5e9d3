"""Stands in for the HAProxy binary: tightens the configuration that Ray Serve wrote, then runs it.

Ray Serve 2.60 binds HAProxy's statistics and metrics ports to every address, opens its admin
socket to every user and sends one log line per request to a syslog that nobody runs. It has no
setting for these, but one for the binary's path. Only the standard library is used, and the
process is replaced, so that HAProxy keeps the process id that Ray Serve watches.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

PR_SET_PDEATHSIG = 1
_INTERNAL_SECTIONS = ("frontend prometheus", "listen stats")
_BIND_ANYWHERE = re.compile(r"^(\s*bind\s+)\*?:(\d+)")
_ADMIN_SOCKET = re.compile(r"^(\s*stats socket \S+ mode )666\b")
_LOG_TARGET = re.compile(r"^\s*log 127\.0\.0\.1:514 ")


def tightened(text: str) -> str:
    r"""The configuration with internal ports on loopback, a private socket and no log target.

    >>> print(tightened("listen stats\n  bind *:8404\nfrontend http_frontend\n  bind *:8000"))
    listen stats
      bind 127.0.0.1:8404
    frontend http_frontend
      bind *:8000
    """
    lines = []
    section = ""
    for line in text.split("\n"):
        if line and not line[0].isspace():
            section = line.strip()
        if _LOG_TARGET.match(line):
            continue
        if section in _INTERNAL_SECTIONS:
            line = _BIND_ANYWHERE.sub(r"\g<1>127.0.0.1:\2", line)
        lines.append(_ADMIN_SOCKET.sub(r"\g<1>600", line))
    return "\n".join(lines)


def write_shim(path: Path, binary: str) -> None:
    """Write an executable that runs this module in front of `binary`."""
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" "{binary}" "$@"\n')
    path.chmod(0o700)


def main(arguments: Sequence[str]) -> None:
    """Arguments: the real binary, then what Ray Serve passes to it. Does not return."""
    binary, *rest = arguments
    for option, value in pairwise(rest):
        if option == "-f":
            config = Path(value)
            config.write_text(tightened(config.read_text()))
    # HAProxy would outlive a Ray worker that is killed, and keep the port.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
