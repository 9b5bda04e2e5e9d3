"""Stands in for the HAProxy binary: tightens the configuration that Ray Serve wrote, then runs it.

Ray Serve 2.60 binds HAProxy's statistics and metrics ports to every address, opens its admin
socket to every user, sends one log line per request to a syslog that nobody runs, waits for slow
requests without end and answers errors in plain text. It has no setting for these, but one for
the binary's path. Only the standard library is used, and the
process is replaced, so that HAProxy keeps the process id that Ray Serve watches.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

PR_SET_PDEATHSIG = 1
REQUEST_HEAD_S = 10
_INTERNAL_SECTIONS = ("frontend prometheus", "listen stats")
_BIND_ANYWHERE = re.compile(r"^(\s*bind\s+)\*?:(\d+)")
_ADMIN_SOCKET = re.compile(r"^(\s*stats socket \S+ mode )666\b")
_DROPPED = re.compile(r"^\s*(log 127\.0\.0\.1:514 |errorfile )")

# Before Serve has told HAProxy of the application, it would say 404, as if for good.
_NO_APPLICATION = re.compile(r"^(\s*http-request )return status 404 .*")

# What HAProxy itself answers, but for bytes that are no HTTP: those it refuses in words of its
# own, whatever one sets. Serve would have its 502 to 504 say 500; a caller has to know
# that trying again helps.
_OWN_ANSWERS = {
    500: (500, "Internal Server Error", "an internal error happened"),
    502: (503, "Service Unavailable", "no gateway answers, retry with the same messageId"),
    503: (503, "Service Unavailable", "no gateway answers, retry with the same messageId"),
    504: (503, "Service Unavailable", "no gateway answers, retry with the same messageId"),
}


def tightened(text: str, folder: str) -> str:
    r"""The configuration with internal ports on loopback, a private socket, no log target, a
    bound on slow requests, and the answers in `folder`.

    >>> print(tightened("listen stats\n  bind *:8404\nfrontend http_frontend\n  bind *:8000", ""))
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
        if _DROPPED.match(line):
            continue
        if section in _INTERNAL_SECTIONS:
            line = _BIND_ANYWHERE.sub(r"\g<1>127.0.0.1:\2", line)
        if section == "backend default_backend":
            line = _NO_APPLICATION.sub(r"\g<1>deny deny_status 503", line)
        lines.append(_ADMIN_SOCKET.sub(r"\g<1>600", line))
        if line == "defaults":
            lines.append(f"    timeout http-request {REQUEST_HEAD_S}s")
            lines += [f"    errorfile {code} {folder}/{code}.http" for code in _OWN_ANSWERS]
    return "\n".join(lines)


def write_answers(folder: Path) -> None:
    """The answers as problem documents, one file each."""
    for code, (status, reason, title) in _OWN_ANSWERS.items():
        body = f'{{"title":"{title}","status":{status}}}'
        later = "Retry-After: 1\r\n" if status == 503 else ""
        (folder / f"{code}.http").write_bytes(
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n{later}\r\n{body}".encode()
        )


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
            write_answers(config.parent)
            config.write_text(tightened(config.read_text(), str(config.parent)))
    # Ray starts workers at a niceness, and this is one of theirs.
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    # HAProxy would outlive a Ray worker that is killed, and keep the port.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
