"""`onehop export` and `onehop evaluate`: decisions to Parquet, and what another policy is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from actors.comparison import Estimate
from actors.evaluation import judge
from actors.export_records import OutcomesFile, read_logged
from actors.reward_ops import OutcomesPage
from actors.treatment.policy import Policy, PolicySpec, policy_of
from cluster.errors import ConfigError
from serve.client_http import Http
from serve.remote import Where, call, connected
from serve.yaml_input import yaml_to_json

BASELINES = ("uniform", "fixed")


async def export(where: Where, path: Path) -> int:
    """Write all closed decisions that the shards still have, page by page; returns how many."""
    async with connected(where) as http:
        with OutcomesFile(path) as file:
            await _pages(http, file)
    return file.written


async def _pages(http: Http, file: OutcomesFile) -> None:
    shards = await call(http, "GET", "/v1/shards")
    for shard_id in [owner["shardId"] for owner in shards["owners"]]:
        after, done = 0, False
        while not done:
            at = f"/v1/outcomes?shard={quote(shard_id)}&after={after}"
            page = msgspec.convert(await call(http, "GET", at), OutcomesPage)
            file.write(page.outcomes)
            # Decisions close while we read: a page that brings none ends it.
            done = page.done or page.next == after
            after = page.next


def evaluate(
    files: Sequence[Path], document: Path, logged_policy: str | None, by_worth: bool = False
) -> str:
    """A table of estimates: what was logged, the candidate, and baselines.

    by_worth  rewards count times what a success with that arm is worth
    Raises ConfigError if the document is no policy, RequestError if a file is no export.
    """
    try:
        raw = yaml_to_json(document.read_bytes())
        spec = msgspec.json.decode(raw, type=PolicySpec)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{document} is no policy: {error}") from None
    decisions = read_logged(files, logged_policy)
    candidates: list[tuple[str, Policy | None]] = [
        ("logged", None),
        (document.stem, policy_of(document.stem, msgspec.structs.replace(spec, mode="online"))),
    ]
    for rule in BASELINES:
        baseline = msgspec.structs.replace(spec, rule=rule, mode="online", floor=0.0)
        candidates.append((rule, policy_of(rule, baseline)))
    lines = [
        f"{'policy':<20} {'estimator':<9} {'reward':>9} {'95 % interval':>21} {'effective':>11}"
    ]
    for name, candidate in candidates:
        for estimator, found in judge(decisions, candidate, by_worth).estimates().items():
            lines.append(_line(name, estimator, found))
    return "\n".join([f"{len(decisions)} decisions", *lines])


def _line(name: str, estimator: str, found: Estimate) -> str:
    interval = f"{found.low:.5f} to {found.high:.5f}"
    size = f"{found.effective:.0f}/{found.n}"
    return f"{name:<20} {estimator:<9} {found.value:>9.5f} {interval:>21} {size:>11}"
