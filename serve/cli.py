"""The `onehop` command. Exit code 0: done; 1: it failed; 2: asked wrongly; 130: interrupted.

Only `up` needs Ray and pyarrow, and imports them itself: the others talk HTTP and start at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.config import Config, load
from cluster.errors import ConfigError, OnehopError, Unavailable
from serve.auth import KEYS_ENV
from serve.remote import (
    ReplayOptions,
    Where,
    import_files,
    replay_file,
    show_plan,
    show_status,
    where_is,
)
from serve.shards_command import DRAIN_S, abort, drain, list_fleet, reshape, undrain

if TYPE_CHECKING:
    from serve.launch import Cluster

DEFAULT_URL = f"http://{Config().host}:{Config().port}"

WATCH_S = 0.5
# Ray broke sooner than this: starting anew would not help.
SERVED_S_MIN = 5.0

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Command = Callable[..., Any]


def main() -> None:
    """The console script: errors of ours become one line, never a traceback."""
    try:
        code = commands.main(prog_name="onehop", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        code = 130
    except ConfigError as error:
        click.echo(f"onehop: {error}", err=True)
        code = 2
    except OnehopError as error:
        click.echo(f"onehop: {error}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="onehop", message="onehop %(version)s")
def commands() -> None:
    """onehop: an event goes in, and the same call answers with a decision that knows it."""


@commands.command()
@click.option("--host", help="Address to listen on; any but loopback needs keys.")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.")
@click.option("--shards", type=int, help="Owners of key ranges.")
@click.option("--gateways", type=int, help="HTTP processes.")
@click.option("--data-dir", help="Keys and everything else that is kept.")
@click.option("--address", help="Ray cluster to join; without it one is started here.")
@click.option("--config", "file", envvar="ONEHOP_CONFIG", help="Settings file (TOML).")
@click.option("--demo/--no-demo", default=None, help="Warm up with a made-up shop.")
def up(file: str | None, **flags: Any) -> None:
    """Start onehop and stay in the foreground; Ctrl-C ends it."""
    environment = dict(os.environ)
    config = load(file, environment, flags)
    # Ray takes seconds to import: only here, and only after the settings turned out right.
    from serve.launch import launch

    click.echo("onehop is starting", err=True)
    with stoppable() as stop, launch(config) as cluster:
        stop.listen()  # once more, since Ray takes SIGTERM for itself when it starts
        if config.demo:
            _warm_up(config, cluster)
        click.echo(_welcome(config, cluster))
        began_s, lost = time.monotonic(), ""
        while not lost and not stop.wait(WATCH_S):
            lost = cluster.lost()
        click.echo(f"onehop is stopping{lost and f', since {lost} has died'}", err=True)
    click.echo("onehop has stopped", err=True)
    if lost:
        _again(time.monotonic() - began_s, environment)


def _again(served_s: float, environment: dict[str, str]) -> None:
    """Start anew in place of a onehop whose Ray is broken, unless that never works for long."""
    if served_s < SERVED_S_MIN:
        raise Unavailable(f"Ray broke after {served_s:.0f} s; not started again")
    # Ray and Serve keep what they know of a cluster in globals: only a new program is free of it.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


class Stop(threading.Event):
    """An event that Ctrl-C and SIGTERM set.

    Before anybody waits for it, they interrupt what runs, so that a slow start can be ended.
    Once set, further signals are ignored: ending takes seconds and must not be cut short.
    """

    def __init__(self) -> None:
        super().__init__()
        self._awaited = False

    def listen(self) -> None:
        """Take both signals, whoever had them."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def wait(self, timeout: float | None = None) -> bool:
        self._awaited = True
        return super().wait(timeout)

    def _on_signal(self, number: int, frame: object) -> None:
        if not self.is_set():
            self.set()
            if not self._awaited:
                raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A `Stop` that listens; the handlers from before are back at the end."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop = Stop()
    stop.listen()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warm_up(config: Config, cluster: Cluster) -> None:
    """Make the demo shop and load it the way any other history is loaded."""
    from serve.demo import ensure_demo

    files = ensure_demo(config.data_path / "demo", int(time.time()))
    where = Where(cluster.address, cluster.keys.sk if cluster.keys else "")
    paths: dict[str, str | None] = {"events": str(files.events), "items": str(files.items)}
    asyncio.run(import_files(where, paths, dry_run=False))


def _welcome(config: Config, cluster: Cluster) -> str:
    """What `up` says once everything answers: address, keys, a call to try."""
    lines = [f"onehop is up at {cluster.address} with {cluster.shards} shards; Ctrl-C ends it."]
    header = ""
    if cluster.keys is None:
        lines.append(f"Keys are those of {config.keys_path}.")
    else:
        path = config.data_path / KEYS_ENV
        lines += [f"Keys are in {path}. Try:", "", f"  . {path}"]
        header = '-H "X-API-Key: $ONEHOP_API_KEY" '
    events = (
        '[{"event":"Item Viewed","properties":{"itemId":"phone-007"}}]' if config.demo else "[]"
    )
    body = f'{{"userId":"ada","events":{events},"decisions":[{{"surface":"product"}}]}}'
    lines.append(f"  curl -s {cluster.address}/v1/decide {header}-d '{body}'")
    return "\n".join(["", *lines, ""])


def remote(command: Command) -> Command:
    """Options of every command that talks to a running onehop."""
    for option in (
        click.option(
            "--data-dir", default=Config().data_dir, show_default=True, help="Has keys.env."
        ),
        click.option("--api-key", envvar="ONEHOP_API_KEY", help="Default: the one in keys.env."),
        click.option(
            "--url", envvar="ONEHOP_URL", default=DEFAULT_URL, show_default=True, help="Of onehop."
        ),
    ):
        command = option(command)
    return command


@commands.command("warm-start")
@click.argument("events")
@click.option("--items", help="Parquet of the catalogue.")
@click.option("--profiles", help="Parquet of traits.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, load nothing.")
@remote
def warm_start(
    events: str, items: str | None, profiles: str | None, dry_run: bool, **where: Any
) -> None:
    """Load EVENTS, a Parquet file or folder that the server can read."""
    paths = {"events": events, "items": items, "profiles": profiles}
    asyncio.run(import_files(where_is(**where), paths, dry_run))


@commands.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@remote
def export_outcomes(file: Path, **where: Any) -> None:
    """Write treatment decisions and their rewards to FILE, as Parquet."""
    from serve.evaluate import export

    click.echo(f"{asyncio.run(export(where_is(**where), file))} decisions")


@commands.command("evaluate")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--policy",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Document of the candidate, JSON or YAML.",
)
@click.option("--logged", help="Only decisions of the policy with this id.")
@click.option("--worth", is_flag=True, help="Count a reward times what its arm is worth.")
def evaluate_policy(files: tuple[Path, ...], policy: Path, logged: str | None, worth: bool) -> None:
    """What another policy would have earned, from exported FILES."""
    from serve.evaluate import evaluate

    click.echo(evaluate(files, policy, logged, worth))


@commands.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rate", type=click.FloatRange(min=0), default=0.0, help="Events a second; 0: fast.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many events.")
@click.option("--decide", is_flag=True, help="Ask for a decision with each event.")
@click.option("--create-items", is_flag=True, help="First add the items that events name.")
@click.option("--direct", is_flag=True, help="Straight to the owners, not through HTTP.")
@remote
def replay_command(
    file: Path, url: str, api_key: str | None, data_dir: str, **options: Any
) -> None:
    """Send the events of FILE (TSV or JSON lines, also gzip'd) through the API."""
    where = where_is(url, api_key, data_dir)
    asyncio.run(replay_file(where, file, ReplayOptions(**options)))


@commands.command("restore")
@click.option("--from", "uri", required=True, help="The archive_uri of the lost cluster.")
@click.option("--data-dir", required=True, help="An empty folder, for `onehop up`.")
def restore_command(uri: str, data_dir: str) -> None:
    """Write what an archive holds to a data folder. Keys are not in it: `up` makes new ones."""
    # Both take their time to import.
    from actors.restore import restore

    for one in restore(uri, Path(data_dir).expanduser()):
        click.echo(
            f"{one.scope}: {one.size:,} bytes, as of {one.age_s:.0f} s ago"
            + (f", up to record {one.next_seq - 1}" if one.next_seq else "")
        )


@commands.command("status")
@remote
def status_command(**where: Any) -> None:
    """Shards, what they hold, and how fast they answer."""
    asyncio.run(show_status(where_is(**where)))


@commands.command("plan")
@remote
def plan_command(**where: Any) -> None:
    """Loads of the shards, and what to split, merge or move for them."""
    asyncio.run(show_plan(where_is(**where)))


@commands.group("shards")
def shards_commands() -> None:
    """Split, move and merge shards while they serve; empty nodes."""


@shards_commands.command("list")
@remote
def shards_list(**where: Any) -> None:
    """Nodes with what is on them, and reshapes under way and before."""
    asyncio.run(list_fleet(where_is(**where)))


@shards_commands.command("split")
@click.argument("shard")
@click.option("--at", multiple=True, help="Where to cut, hexadecimal. Default: half of the load.")
@click.option("--node", multiple=True, help="Where a part goes, one per part, in order.")
@remote
def shards_split(shard: str, at: tuple[str, ...], node: tuple[str, ...], **where: Any) -> None:
    """Divide SHARD."""
    wish = {"at": list(at), "nodeIds": list(node)}
    asyncio.run(reshape(where_is(**where), f"/v1/shards/{shard}:split", wish))


@shards_commands.command("move")
@click.argument("shard")
@click.option("--node", help="Where to. Default: the node with the least load.")
@remote
def shards_move(shard: str, node: str | None, **where: Any) -> None:
    """Move SHARD to another node."""
    asyncio.run(reshape(where_is(**where), f"/v1/shards/{shard}:move", {"nodeId": node}))


@shards_commands.command("merge")
@click.argument("shards", nargs=-1, required=True)
@click.option("--node", help="Where to. Default: the node with the least load.")
@remote
def shards_merge(shards: tuple[str, ...], node: str | None, **where: Any) -> None:
    """Make one of SHARDS, which lie side by side."""
    wish = {"shards": list(shards), "nodeId": node}
    asyncio.run(reshape(where_is(**where), "/v1/shards:merge", wish))


@shards_commands.command("abort")
@click.argument("reshape_id", metavar="RESHAPE")
@remote
def shards_abort(reshape_id: str, **where: Any) -> None:
    """Undo RESHAPE, unless it is decided already."""
    asyncio.run(abort(where_is(**where), reshape_id))


@shards_commands.command("drain")
@click.argument("node")
@click.option("--timeout", type=click.FloatRange(min=0), default=DRAIN_S, show_default=True)
@remote
def shards_drain(node: str, timeout: float, **where: Any) -> None:
    """Move everything off NODE, named by its id, the beginning of that, or its address."""
    asyncio.run(drain(where_is(**where), node, timeout))


@shards_commands.command("undrain")
@click.argument("node")
@remote
def shards_undrain(node: str, **where: Any) -> None:
    """Let NODE have shards again."""
    asyncio.run(undrain(where_is(**where), node))
