"""`onehop shards`: split, move and merge ranges, empty nodes, and wait until that is done.

What is begun goes on in onehop whether anybody waits or not: Ctrl-C only ends the waiting.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any
from urllib.parse import quote

import click

from cluster.errors import Unavailable
from serve.client_http import Http
from serve.remote import POLL_S, Where, call, connected
from serve.status import nodes_text, reshape_text

ENDED = ("done", "aborted")
DRAIN_S = 3600.0


async def list_fleet(where: Where) -> None:
    """Print the nodes with what is on them, and the reshapes under way and before."""
    async with connected(where) as http:
        nodes = (await call(http, "GET", "/v1/nodes"))["nodes"]
        reshapes = (await call(http, "GET", "/v1/reshapes"))["reshapes"]
    click.echo(nodes_text(nodes))
    for reshape in reshapes:
        click.echo(reshape_text(reshape))


async def reshape(where: Where, path: str, wish: dict[str, Any]) -> None:
    """Begin a reshape and wait for its end. Raises OnehopError if it was aborted or refused."""
    async with connected(where) as http:
        begun = await call(http, "POST", path, wish)
        ended = await _ended(http, begun)
    click.echo(reshape_text(ended))
    if ended["step"] != "done":
        raise Unavailable(f"reshape {ended['id']} was aborted: {ended['reason']}")


async def abort(where: Where, reshape_id: str) -> None:
    """Ask for a reshape to be undone, and wait until it is."""
    async with connected(where) as http:
        asked = await call(http, "DELETE", f"/v1/reshapes/{quote(reshape_id, safe='')}")
        click.echo(reshape_text(await _ended(http, asked)))


async def drain(where: Where, node: str, timeout_s: float) -> None:
    """Empty a node and wait until nothing is left there. Raises Unavailable after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    async with connected(where) as http:
        await call(http, "POST", f"/v1/nodes/{quote(node, safe='')}:drain")
        shown = ""
        while True:
            left = await _draining(http, node)
            if left is None:
                click.echo(f"node {node} is empty, and has gone")
                return
            text = f"{left['shardsLeft']} shards and {left['copiesLeft']} copies are left"
            if not left["shardsLeft"] and not left["copiesLeft"]:
                break
            shown = _progress(text, shown)
            if time.monotonic() > deadline_s:
                raise Unavailable(f"after {timeout_s:.0f} s {text} on node {node}")
            await asyncio.sleep(POLL_S)
    click.echo(f"node {left['nodeId']} is empty: it may go")


async def undrain(where: Where, node: str) -> None:
    async with connected(where) as http:
        answer = await call(http, "POST", f"/v1/nodes/{quote(node, safe='')}:undrain")
    click.echo(f"node {answer['nodeId']} may have shards again")


async def _ended(http: Http, state: dict[str, Any]) -> dict[str, Any]:
    """The reshape once it has ended, with its steps on stderr meanwhile."""
    shown = ""
    while state["step"] not in ENDED:
        shown = _progress(f"{state['kind']} {state['id']}: {state['step']}", shown)
        await asyncio.sleep(POLL_S)
        state = await call(http, "GET", f"/v1/reshapes/{state['id']}")
    return state


async def _draining(http: Http, node: str) -> dict[str, Any] | None:
    """The node as it is listed; None if the autoscaler has taken it."""
    nodes: list[dict[str, Any]] = (await call(http, "GET", "/v1/nodes"))["nodes"]
    for one in nodes:
        if node == one["address"] or one["nodeId"].startswith(node):
            return one
    return None


def _progress(text: str, shown: str) -> str:
    """Say what is new, once."""
    if text != shown:
        click.echo(text, err=True, nl=not sys.stderr.isatty())
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", err=True, nl=False)
    return text
