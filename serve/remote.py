"""What the command line does with a running onehop: import, replay, ask how it is.

Its one rule: whatever goes wrong is a OnehopError whose text a person can act on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from actors.messages import BATCH_MAX
from cluster.errors import ConfigError, OnehopError, Unavailable
from serve.auth import KEYS_ENV, read_environment
from serve.client import Client
from serve.client_http import SUCCESS, Http, failure
from serve.event_files import BadLine, Message, item_ids, read_events
from serve.replay import Histogram, Tally, replay
from serve.status import plan_text, shards_table

TIMEOUT_S = 60.0
CONNECTIONS = 2
POLL_S = 0.2
REPORT_S = 1.0
BAD_LINES_SHOWN = 3


class Where(NamedTuple):
    """A running onehop: its address, and the key to send ("" on loopback, which wants none)."""

    url: str
    key: str


class ReplayOptions(NamedTuple):
    """How a file is replayed; rate in events a second, 0 for as fast as answers come.

    direct  straight to the owners, instead of through HTTP
    """

    rate: float
    limit: int | None
    decide: bool
    create_items: bool
    direct: bool


def where_is(url: str, api_key: str | None, data_dir: str) -> Where:
    """Where to send, with the key given or else the one of `data_dir`'s keys.env.

    Raises ConfigError if `url` is none.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the URL must start with http:// or https://, got {url!r}")
    if api_key:
        return Where(url, api_key)
    keys = read_environment(Path(data_dir).expanduser() / KEYS_ENV)
    return Where(url, keys.sk if keys else "")


@asynccontextmanager
async def connected(where: Where) -> AsyncIterator[Http]:
    http = Http(where.url, where.key, CONNECTIONS, TIMEOUT_S)
    try:
        yield http
    finally:
        await http.close()


async def call(http: Http, method: str, path: str, body: Any = None) -> Any:
    """The decoded answer. Raises the OnehopError that any other answer means."""
    data = b"" if body is None else msgspec.json.encode(body)
    reply = await http.request(method, path, data)
    if reply.status not in SUCCESS:
        raise failure(reply.status, reply.body)
    try:
        return msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"what answers there is no onehop: {error}") from None


async def show_status(where: Where) -> None:
    async with connected(where) as http:
        click.echo(shards_table(await call(http, "GET", "/v1/shards")))


async def show_plan(where: Where) -> None:
    async with connected(where) as http:
        click.echo(plan_text(await call(http, "GET", "/v1/plan")))


async def import_files(where: Where, paths: dict[str, str | None], dry_run: bool) -> None:
    """Import Parquet files, with a bar, and say how it went. Raises OnehopError if it failed.

    paths  of "events", "items" and "profiles", as far as they are given
    """
    # A relative path means the caller's folder, not the server's.
    spec: dict[str, Any] = {n: str(Path(p).expanduser().resolve()) for n, p in paths.items() if p}
    async with connected(where) as http:
        status = await call(http, "POST", "/v1/imports", spec | {"dryRun": dry_run})
        path = f"/v1/imports/{status['id']}"
        quiet = not sys.stderr.isatty()
        with click.progressbar(length=1, label="rows", file=sys.stderr, hidden=quiet) as bar:
            while status["state"] == "running":
                await asyncio.sleep(POLL_S)
                status = await call(http, "GET", path)
                bar.length = max(status["rowsTotal"], 1)
                bar.update(status["rowsDone"] - bar.pos)
    if status["state"] != "done":
        raise Unavailable(f"the import {status['state']}: {status['error']}")
    click.echo(import_text(status))


def import_text(status: dict[str, Any]) -> str:
    """What an import did, in one line, and one more if rows were refused."""
    verb = "checked" if status["dryRun"] else "loaded"
    text = (
        f"{verb} {status['rowsDone']:,} rows in {status['seconds']:.1f} s "
        f"({status['rowsPerS']:,.0f} rows/s), {status['itemsAdded']:,} items"
    )
    if status["resumedFrom"]:
        text += f", {status['resumedFrom']:,} rows were loaded before"
    if status["rejected"]:
        reasons = sorted(status["rejectedByReason"].items())
        shown = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
        text += f"\nrejected: {shown}; samples in {status['rejectsFile']}"
    return text


async def replay_file(where: Where, file: Path, options: ReplayOptions) -> None:
    """Send a file's events, with a line of latencies each second and a summary at the end.

    Raises OnehopError if nothing could be sent.
    """
    tally = Tally()
    bad: list[BadLine] = []
    async with Client(where.url, where.key, direct=options.direct) as client:
        if options.create_items:
            await _create_items(client, sorted(item_ids(file)))
        send = _decide_with(client) if options.decide else _track_with(client)
        messages = islice(_good(read_events(file), bad), options.limit)
        reporter = asyncio.create_task(_report(tally))
        try:
            await replay(messages, send, options.rate, tally, (OnehopError,))
        finally:
            reporter.cancel()
        way = "straight to the owners" if client.is_direct else "through HTTP"
    click.echo(replay_text(tally, bad, way))
    if tally.sent == tally.errors:
        raise Unavailable(tally.first_error or f"{file} has no usable event")


def replay_text(tally: Tally, bad: list[BadLine], way: str) -> str:
    """The summary of a replay."""
    lines = [f"{_line(tally, tally.latencies)}, {way}"]
    if tally.first_error:
        lines.append(f"first error: {tally.first_error}")
    if bad:
        lines.append(f"{len(bad):,} lines held no event:")
        lines += [f"  line {one.line}: {one.why}" for one in bad[:BAD_LINES_SHOWN]]
    return "\n".join(lines)


def _line(tally: Tally, latencies: Histogram) -> str:
    p50, p99 = (latencies.percentile(share) / 1e3 for share in (0.5, 0.99))
    return (
        f"{tally.sent:,} sent, {tally.per_second:,.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
        f"{tally.errors:,} errors, {tally.duplicates:,} duplicates"
    )


async def _report(tally: Tally) -> None:
    """A line of the last second's latencies, written over the one before on a terminal."""
    while True:
        await asyncio.sleep(REPORT_S)
        recent, tally.recent = tally.recent, Histogram()
        click.echo(_line(tally, recent), err=True, nl=not sys.stderr.isatty())
        if sys.stderr.isatty():
            click.echo("\r", err=True, nl=False)


def _good(lines: Iterable[Message | BadLine], bad: list[BadLine]) -> Iterator[Message]:
    for line in lines:
        if isinstance(line, BadLine):
            bad.append(line)
        else:
            yield line


async def _create_items(client: Client, ids: list[str]) -> None:
    for at in range(0, len(ids), BATCH_MAX):
        results = await client.put_items([{"id": one} for one in ids[at : at + BATCH_MAX]])
        refused = next((result for result in results if result["status"] >= 400), None)
        if refused is not None:
            raise Unavailable(f"item {refused['id']!r} was refused: {refused.get('error')}")


def _track_with(client: Client) -> Callable[[Message], Awaitable[bool]]:
    async def send(message: Message) -> bool:
        answer = await client.track(
            message["event"],
            user_id=message.get("userId"),
            anonymous_id=message.get("anonymousId"),
            properties=message.get("properties"),
            session_id=message.get("sessionId"),
            timestamp=message.get("timestamp"),
            message_id=message.get("messageId"),
        )
        return answer.duplicate

    return send


def _decide_with(client: Client) -> Callable[[Message], Awaitable[bool]]:
    async def send(message: Message) -> bool:
        fields = ("event", "properties", "timestamp")
        answer = await client.decide(
            user_id=message.get("userId"),
            anonymous_id=message.get("anonymousId"),
            session_id=message.get("sessionId"),
            events=[{name: message[name] for name in fields if name in message}],
            decisions=[{"surface": "product"}],
            message_id=message.get("messageId"),
        )
        return answer.duplicate

    return send
