"""An owner in a network namespace of its own: the kernel loses its packets, one way or both.

A proxy can hold or cut what it has read; here nothing is read at all, acknowledgements of TCP
included, and neither side is told. Only root may make namespaces: elsewhere tests skip.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.endpoint import Endpoint
from tests.faults.owned import Owner

CLONE_NEWNET = 0x40000000


class Namespace:
    """A namespace with one link to ours; no packet of either leaves this machine."""

    def __init__(self) -> None:
        number = os.getpid() % 250
        self.name = f"onehop-test-{os.getpid()}"
        self._link = f"oh{os.getpid()}"
        self.ours, self.theirs = f"10.213.{number}.1", f"10.213.{number}.2"
        ip("netns", "add", self.name)
        try:
            ip(*f"link add {self._link} type veth peer name eth0 netns {self.name}".split())
            ip(*f"addr add {self.ours}/30 dev {self._link}".split())
            ip(*f"link set {self._link} up".split())
            self._inside(f"addr add {self.theirs}/30 dev eth0")
            self._inside("link set eth0 up")
            self._inside("link set lo up")
        except BaseException:
            self.close()
            raise

    def enter(self) -> None:
        """Let the calling thread, and no other, open its sockets there."""
        descriptor = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(descriptor)

    def cut(self, way: str) -> None:
        """Lose what is sent "there", "back", or "both" ways, in silence."""
        if way == "both":
            self._inside("link set eth0 down")
        elif way == "there":
            ip("route", "replace", "blackhole", f"{self.theirs}/32")
        else:
            self._inside(f"route replace blackhole {self.ours}/32")

    def heal(self, way: str) -> None:
        if way == "both":
            self._inside("link set eth0 up")
        elif way == "there":
            ip("route", "del", "blackhole", f"{self.theirs}/32")
        else:
            self._inside(f"route del blackhole {self.ours}/32")

    def close(self) -> None:
        """The link first: the kernel takes its time with a namespace."""
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", self._link)
        ip("netns", "del", self.name)

    def _inside(self, command: str) -> None:
        ip("-n", self.name, *command.split())


def ip(*arguments: str) -> None:
    """Raises subprocess.CalledProcessError if it may not be done, OSError without iproute2."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class FarOwner(Owner):
    """An owner that listens in a namespace, without a proxy."""

    def __init__(self, folder: Path, namespace: Namespace) -> None:
        self._namespace = namespace
        super().__init__(folder)

    def _run(self) -> None:
        self._namespace.enter()
        super()._run()

    async def _listen(self, endpoint: Endpoint, port: int) -> Any:
        return (await endpoint.start(self._namespace.theirs, port))[1]

    @property
    def address(self) -> tuple[str, int]:
        return self._namespace.theirs, self._listener

    async def _unlisten(self) -> None:
        """Its endpoint is all that listens."""
