"""All settings: frozen, complete, read once. Defaults < file < environment < flags.

The file is TOML with the names below; the environment has them as ONEHOP_NAME. An unknown
name raises ConfigError, so that a misspelt setting can't be ignored in silence.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cluster.errors import ConfigError
from cluster.levels import Level

ENV_PREFIX = "ONEHOP_"
# Names in the environment that are not settings of the cluster: what the command line and the
# SDK read, what keys.env sets, and where tests find real data.
ENV_RESERVED = frozenset(
    f"{ENV_PREFIX}{name}" for name in ("CONFIG", "URL", "API_KEY", "BROWSER_KEY", "DATA")
)

Positive = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting of onehop. Sizes are bytes, times seconds, unless the name says otherwise."""

    # Where it listens.
    host: str = "127.0.0.1"
    """Address to listen on for HTTP; any but loopback needs keys."""
    port: Port = 8000
    """Port to listen on for HTTP; 0 takes a free one."""
    shard_host: str = "127.0.0.1"
    """Address that shards bind and publish; "node" is the address that Ray has for the node."""
    address: str = ""
    """Ray cluster to join; empty starts one on this machine."""
    data_dir: str = "~/.onehop"
    """Keys, logs and all else that is kept; made with access for its owner only."""
    keys_file: str = ""
    """Keys of all tenants; empty means `data_dir`/keys.json."""
    secret_file: str = ""
    """The secret that gateways and shards share; empty means `data_dir`/cluster.secret."""

    # Size.
    shards: Annotated[int, Meta(ge=1, le=1024)] = 2
    """Actors that own a key range each, in a new `data_dir`; later ones are split and merged, and
    the plan leaves no fewer."""
    gateways: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that take HTTP."""
    gateways_max: Annotated[int, Meta(ge=0, le=256)] = 0
    """Up to so many gateways if those are busy; not above `gateways`: their number is fixed."""
    shard_cpus: Annotated[float, Meta(gt=0)] = 0.5
    """CPU that a shard claims from Ray; above 0, or the autoscaler takes its node for idle."""
    spares: bool = True
    """Whether every node with shards keeps a process ready, of some 280 MiB, in which a shard that
    died or is to be starts at once."""
    reshape: Literal["auto", "always", "advise"] = "auto"
    """Whether shards are split, merged and moved as `onehop plan` says. "auto" does so from two
    nodes on: on one, more shards take more of the same memory and disk, so it only advises."""
    nodes_min: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Nodes with shards that are kept whatever the load is; at "replica" no fewer than two."""
    nodes_max: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Up to so many nodes with shards are asked of Ray's autoscaler, and given back, by load; 0:
    their number is the operator's affair."""
    shrink_after_s: Seconds = 600.0
    """How long fewer gateways or nodes must do until one is given back."""
    node_roles: bool = False
    """Shards only on nodes with the Ray resource "shards", gateways on those with "gateways"."""
    profiles_max: Annotated[int, Meta(ge=1024, le=1 << 30)] = 16_000_000
    """Profiles that one shard may hold."""
    profile_bytes_max: Annotated[int, Meta(ge=1 << 20)] = 8 << 30
    """Memory that one shard's variable-size profile parts may take."""
    memory_max: Annotated[int, Meta(ge=0)] = 0
    """Memory that one shard's profiles may take in all; 0: what the two above allow."""
    evict_from: Annotated[float, Meta(gt=0.1, le=1.0)] = 0.95
    """Share of that memory from which on profiles leave, least recently seen first."""
    evict_protects: Annotated[
        str, Meta(pattern=r"^((traits|purchases|ledger)(,(traits|purchases|ledger))*)?$")
    ] = "purchases,ledger"
    """Who never leaves for want of memory: who has traits, purchases, a ledger (consents, holds,
    caps, timers); with commas between."""
    ring_events_max: Annotated[int, Meta(ge=1, le=200)] = 50
    """Last events kept per person; can't be changed for a `data_dir` that is in use."""
    import_dirs: str = ""
    """Folders that imports may read, with colons between; empty: all that the server can read
    while `host` is loopback, else `data_dir`/imports."""
    items_max: Annotated[int, Meta(ge=1, le=(1 << 24) - 1)] = 4_000_000
    """Items of one tenant's catalogue."""
    tenants_max: Positive = 64
    """Tenants that one shard serves."""

    durability: Literal["auto", "memory", "disk", "replica"] = "auto"
    """What an acknowledgement means if neither message nor key says: applied in memory, on this
    node's disk, or also on another node's. "auto" is replica from two nodes on, else disk; once a
    `data_dir` was replica it stays so. With "memory" nothing is logged, and no message can ask
    for more."""
    wal_segment_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 30)] = 64 << 20
    """A log's segment; a full one is compacted into the snapshot. Room for two is always kept."""

    archive_uri: str = ""
    """Where what is on disk is copied to, for `onehop restore`: file:, s3:, gs:, abfs: or hdfs:."""
    archive_s: Annotated[float, Meta(gt=0, le=3600)] = 20.0
    """How often; so much may be missing there."""

    epoch_store: Literal["file", "lease"] = "file"
    """Who owns what is kept in a file of the coordinator's node, or in a Kubernetes Lease."""

    # What is remembered for how long.
    profile_ttl_s: Positive = 400 * 86400
    """A profile not seen for this long is forgotten."""
    session_gap_s: Positive = 1800
    """A pause this long ends a session."""
    fast_half_life_s: Seconds = 3600.0
    """Half-life of the counters that tell what somebody is doing."""
    slow_half_life_s: Seconds = 14 * 86400.0
    """Half-life of the counters that tell what somebody is like."""
    dedupe_window_s: Positive = 86400
    """How long a messageId is remembered."""
    dedupe_bytes_max: Annotated[int, Meta(ge=1 << 16)] = 256 << 20
    """Memory of one shard for remembered messageIds and answers; the oldest leave first."""
    decisions_bytes_max: Annotated[int, Meta(ge=1 << 16)] = 128 << 20
    """Memory of one shard for decision records; the oldest leave first."""
    open_decisions_bytes_max: Annotated[int, Meta(ge=1 << 16)] = 64 << 20
    """Memory of one shard for treatment decisions that wait for rewards, and again for those that
    no longer do. While it is full, the first to close closes early."""
    outbox_bytes_max: Annotated[int, Meta(ge=1 << 18)] = 256 << 20
    """Memory of one shard for messages to be sent; while it is full nobody is contacted."""
    timers_max: Positive = 1_000_000
    """Inactivity timers that one shard runs at once, about 300 bytes each."""
    webhooks_private: bool = False
    """Whether webhooks may lead to loopback and private addresses."""
    erase_within_s: Annotated[int, Meta(ge=2, le=30 * 86400)] = 7 * 86400
    """A person who is erased is gone from every file of a shard within this time."""
    erasures_max: Positive = 1_000_000
    """Persons that one shard may erase in 30 days; each is remembered that long."""
    event_future_s: Positive = 3600
    """How far in the future an event's timestamp may lie."""

    model_merge_s: Seconds = 1.0
    """How often what the shards learned is merged and given to all of them."""

    # Bounds of waiting.
    request_timeout_s: Seconds = 5.0
    """How long one attempt at an owner may take."""
    inflight_max: Positive = 4096
    """Requests that a router holds open per shard; more answers 429."""
    queue_target_s: Seconds = 0.05
    """A wait in a shard's queue that is fine; if even the shortest one is longer, ..."""
    queue_interval_s: Seconds = 0.1
    """... for this long, requests that waited longer get 429 until the queue is short again."""
    map_wait_s: Seconds = 10.0
    """How long a request waits for a dead shard's successor."""

    # Who may call.
    loopback_without_key: bool = True
    """Serve requests without a key if, and only if, the host is loopback."""

    demo: bool = False
    """Warm up with a made-up shop at the start."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """What is logged."""

    @property
    def level(self) -> Level:
        """The level that `durability` names; "auto" that nobody has decided upon yet is disk."""
        return "disk" if self.durability == "auto" else self.durability

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser()

    @property
    def keys_path(self) -> Path:
        return Path(self.keys_file).expanduser() if self.keys_file else self.data_path / "keys.json"

    @property
    def secret_path(self) -> Path:
        if self.secret_file:
            return Path(self.secret_file).expanduser()
        return self.data_path / "cluster.secret"

    @property
    def import_paths(self) -> tuple[Path, ...]:
        """Folders that imports may read; with the root folder, everything."""
        if self.import_dirs:
            return tuple(Path(one).expanduser() for one in self.import_dirs.split(":") if one)
        return (Path("/"),) if self.loopback else (self.data_path / "imports",)

    @property
    def loopback(self) -> bool:
        """Whether `host` can only be reached from this machine."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


NAMES = tuple(field.name for field in msgspec.structs.fields(Config))


def load(
    file: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration from file, environment and flags; flags that are None are not set.

    Raises ConfigError naming the source, the setting, the value seen and the value wanted.

    >>> load(environment={"ONEHOP_SHARDS": "4"}, flags={"port": 9000}).shards
    4
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            from_file = tomllib.loads(Path(file).expanduser().read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"settings file {os.fspath(file)}: {error}") from None
        values |= _checked(from_file, f"settings file {os.fspath(file)}")
    from_environment = {
        name.removeprefix(ENV_PREFIX).lower(): text
        for name, text in (environment or {}).items()
        if name.startswith(ENV_PREFIX) and name not in ENV_RESERVED
    }
    values |= _checked(from_environment, "environment")
    values |= _checked({k: v for k, v in (flags or {}).items() if v is not None}, "flags")
    return msgspec.convert(values, Config, strict=False)


def _checked(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`values`, if every name is a setting and every value fits. Raises ConfigError."""
    for name, value in values.items():
        if name not in NAMES:
            raise ConfigError(
                f"{source}: unknown setting {name!r}, wanted one of {', '.join(NAMES)}"
            )
        try:
            msgspec.convert({name: value}, Config, strict=False)
        except msgspec.ValidationError as error:
            wanted = str(error).partition(" - at")[0]
            raise ConfigError(f"{source}: {name}: {wanted}, got {value!r}") from None
    return dict(values)
