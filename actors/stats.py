"""What a shard tells of itself: `GET /v1/shards` and, in part, `/metrics`."""

from __future__ import annotations

import os
from typing import Any

from actors.admission import Admission
from actors.eviction import Evictor, alarm_of
from actors.stages import Stages
from actors.state import ShardState


def describe_shard(
    state: ShardState, stages: Stages, admission: Admission, evictor: Evictor
) -> dict[str, Any]:
    """Counters of a shard, by name."""
    store, dedupe, decisions = state.store, state.dedupe, state.decisions
    now_s = int(state.now())
    return {
        "shardId": state.shard_id,
        "pid": os.getpid(),
        "epoch": state.epoch,
        "profiles": len(store),
        "profileBytes": store.bytes_used(),
        "bytesPerProfile": store.bytes_used() / max(len(store), 1),
        "events": store.events_total,
        "modelBytes": sum(tenant.engine.bytes_used() for tenant in state.tenants.values()),
        "items": sum(tenant.catalogue.alive_count for tenant in state.tenants.values()),
        "dedupeIds": len(dedupe),
        "dedupeBytes": dedupe.bytes_used,
        "dedupeReachSeconds": now_s - dedupe.floor_s(now_s),
        "decisionRecords": len(decisions),
        "decisionBytes": decisions.bytes_used,
        "memoryFill": round(evictor.fill, 4),
        "memoryAlarm": alarm_of(evictor.fill),
        "evicted": evictor.evicted,
        "tombstones": len(state.tombstones),
        "overloaded": admission.overloaded,
        "shed": admission.shed,
        "replication": None if state.replication is None else state.replication(),
        "log": None if state.journal is None else state.journal.report(),
        **_archive(state),
        **stages.counters(),
    }


def _archive(state: ShardState) -> dict[str, Any]:
    if state.archive is None or state.journal is None:
        return {}
    return state.archive.report(state.journal.writer.durable_seq + 1)
