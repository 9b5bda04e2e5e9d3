"""From measured CPU and bytes to nodes and money: a spreadsheet as a program.

    python -m tests.bench.capacity [--people 1e6 ...] [--daily 10] [--peak 3] [--json FILE] ...

CPU per request comes from hop.json, bytes per profile from memory.json, a cluster's resting memory
from warm_start.json: what was last measured on the machine that these files name. Everything else
is an assumption, has a flag, and stands in the report. Prices are placeholders of the size that
clouds ask for; give your own with --node.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.harness import Row, report

HERE = Path(__file__).parent
HOURS_PER_MONTH = 730
DAY_S = 86_400


class NodeType(NamedTuple):
    """A machine one can rent."""

    name: str
    cpus: float
    gib: float
    usd_per_hour: float


class Measured(NamedTuple):
    """CPU microseconds per request by where they are spent, and bytes."""

    edge_us: float
    owner_us: float
    bytes_per_profile: Mapping[str, float]
    resting_bytes: float


class Need(NamedTuple):
    """What a number of people needs, before it is put on nodes."""

    peak_rps: float
    edge_cores: float
    owner_cores: float
    shards: int
    bytes: float


def measured(policy: str, durability: str) -> Measured:
    """From the last results. The edge is what HTTP costs over the SDK at 16 connections."""
    hop = {
        row["arm"]: row["cpu_us"]
        for row in json.loads((HERE / "hop.json").read_text())["rows"]
        if row["connections"] == 16
    }
    suffix = "_default" if policy == "engine" else ""
    owner_us = hop[f"sdk{suffix}"]
    if durability == "disk":
        owner_us += hop["sdk_disk"] - hop["sdk"]
    edge_us = hop[f"http{suffix}"] - hop[f"sdk{suffix}"]
    memory = json.loads((HERE / "memory.json").read_text())["rows"]
    warm = json.loads((HERE / "warm_start.json").read_text())["rows"]
    resting = next(row["before_mb"] for row in warm if row["arm"] == "onehop")
    return Measured(edge_us, owner_us, {row["set"]: row["rss"] for row in memory}, resting * 1e6)


def need(people: float, profile_set: str, found: Measured, given: argparse.Namespace) -> Need:
    """Cores at the peak, bytes, and shards: each is one core at most and one memory ceiling."""
    peak_rps = people * given.daily / DAY_S * given.peak
    edge_cores = peak_rps * found.edge_us / 1e6
    owner_cores = peak_rps * (found.owner_us + given.backup_us) / 1e6
    held = people * found.bytes_per_profile[profile_set]
    by_cpu = owner_cores / given.shard_load
    by_bytes = held / (given.shard_gib * 2**30)
    shards = max(2, math.ceil(max(by_cpu, by_bytes)))
    # What does not grow with people: remembered ids and decisions, the catalogue and the model.
    fixed = shards * given.shard_fixed_mb * 1e6
    return Need(peak_rps, edge_cores, owner_cores, shards, held + fixed)


def fleet(wanted: Need, node: NodeType, found: Measured, given: argparse.Namespace) -> Row:
    """How many nodes of one type: for CPU, for memory, and as many again as may be lost."""
    cores = wanted.edge_cores + wanted.owner_cores
    by_cpu = cores / (node.cpus * given.node_load)
    # A snapshot is made by a second process with one shard's state; one at a time on a node.
    of_one_shard = wanted.bytes / wanted.shards
    room = node.gib * 2**30 * given.node_memory - found.resting_bytes - of_one_shard
    by_bytes = wanted.bytes * given.memory_copies / room if room > 0 else math.inf
    if math.isinf(by_bytes):
        return {"nodes": math.inf, "usd_month": math.inf}
    nodes = max(given.nodes_min, math.ceil(max(by_cpu, by_bytes)) + given.spare)
    return {
        "nodes": nodes,
        "bound_by": "CPU" if by_cpu >= by_bytes else "memory",
        "usd_month": round(nodes * node.usd_per_hour * HOURS_PER_MONTH),
    }


def rows(given: argparse.Namespace) -> list[Row]:
    found = measured(given.policy, given.durability)
    out = []
    for people in given.people:
        for profile_set in found.bytes_per_profile:
            wanted = need(people, profile_set, found, given)
            fleets = [(fleet(wanted, node, found, given), node) for node in given.node]
            best, node = min(fleets, key=lambda entry: float(entry[0]["usd_month"]))
            requests = people * given.daily * 30
            out.append(
                {
                    "set": profile_set,
                    "people": int(people),
                    "peak_rps": round(wanted.peak_rps),
                    "owner_cores": round(wanted.owner_cores, 1),
                    "edge_cores": round(wanted.edge_cores, 1),
                    "gib": round(wanted.bytes / 2**30, 1),
                    "shards": wanted.shards,
                    "node": node.name,
                    **best,
                    "usd_per_1000_people": round(best["usd_month"] / people * 1000, 4),
                    "usd_per_million_requests": round(best["usd_month"] / requests * 1e6, 3),
                }
            )
    return out


def node_type(text: str) -> NodeType:
    """NAME:CPUS:GIB:USD_PER_HOUR."""
    try:
        name, cpus, gib, usd = text.split(":")
        return NodeType(name, float(cpus), float(gib), float(usd))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"wanted NAME:CPUS:GIB:USD_PER_HOUR, got {text!r}"
        ) from None


NODES = ("general-8:8:32:0.38", "general-16:16:64:0.77", "memory-16:16:128:1.00")
ASSUMPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("daily", 10.0, "requests of a person a day, on average over all who are known"),
    ("peak", 3.0, "the busiest minute over the average one"),
    ("shard_load", 0.45, "cores of a shard in use at the peak; the plan splits at 0.70"),
    ("node_load", 0.60, "CPU of a node in use at the peak"),
    ("node_memory", 0.70, "memory of a node in use; Ray kills at 0.95"),
    ("shard_gib", 8.0, "memory of a shard's profiles, the setting profile_bytes_max"),
    ("shard_fixed_mb", 800.0, "memory of a shard beside profiles: ids, decisions, items, model"),
    ("backup_us", 40.0, "CPU of a request's copy on another node, both ends; not measured yet"),
    ("memory_copies", 1.0, "profiles in memory; 2 if backups are kept warm"),
    ("spare", 1, "nodes that may be lost at the peak"),
    ("nodes_min", 3, "nodes of the smallest fleet"),
)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--people", type=float, nargs="+", default=[1e6, 1e8, 1e9])
    parser.add_argument("--policy", choices=("engine", "vector"), default="engine")
    parser.add_argument("--durability", choices=("disk", "memory"), default="disk")
    parser.add_argument("--node", type=node_type, action="append", help="NAME:CPUS:GIB:USD_HOUR")
    for name, default, text in ASSUMPTIONS:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"{text} ({default})")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, help="ignored: nothing is measured here")
    given = parser.parse_args(arguments)
    given.node = given.node or [node_type(text) for text in NODES]
    return given


def main() -> None:
    given = options()
    found = measured(given.policy, given.durability)
    print(f"measured: edge {found.edge_us} us, owner {found.owner_us} us a request,")
    print(f"          bytes a profile (resident) {dict(found.bytes_per_profile)}")
    print(f"assumed:  policy {given.policy}, durability {given.durability}, and")
    for name, _, text in ASSUMPTIONS:
        print(f"          {name} = {getattr(given, name):g}  {text}")
    for node in given.node:
        print(
            f"          {node.name}: {node.cpus:g} CPUs, {node.gib:g} GiB, ${node.usd_per_hour}/h"
        )
    assumed = {f"assumed {name}": getattr(given, name) for name, _, _ in ASSUMPTIONS}
    report("capacity", 0, rows(given), assumed, (), given.json)


if __name__ == "__main__":
    main()
