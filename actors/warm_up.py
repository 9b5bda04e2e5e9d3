"""Compiles every kernel before the first request needs it. Ends as it began: nothing is kept.

`python -m actors.warm_up` fills numba's cache, so that no shard's first start has to.
"""

from __future__ import annotations

import sys
from multiprocessing import get_context
from time import perf_counter_ns
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors import disk_thread
from actors.extraction import take_range
from actors.id_numbers import SLOTS_MIN
from actors.messages import Item
from actors.people import Caller
from actors.records import pack_columns, unpack_columns
from actors.shard import Shard
from actors.treatment.features import Arm, arms_of, features_of
from actors.treatment.policy import PolicySpec, policy_of
from actors.treatment.treatment import Treatment
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange

SMALL = {
    "profiles_max": 2048,
    "profile_bytes_max": 1 << 22,
    "items_max": 4096,
}


def warm_up(config: Config) -> None:
    """All kernels of this process."""
    warm_up_shard(config)
    warm_up_treatment()


def warm_up_shard(config: Config) -> None:
    """Send every kind of request through a scratch shard."""
    shard = Shard("warm-up", KeyRange(0, HASH_SPACE), msgspec.structs.replace(config, **SMALL))
    caller = Caller("s", "warm-up")
    catalogue = shard.tenant("warm-up").catalogue
    # So many that the table of ids grows once.
    for i in range(SLOTS_MIN):
        catalogue.put(Item(f"i{i}", {"category": "c"}, [0.0, 1.0]))
    event = {"event": "Item Viewed", "properties": {"itemId": "i1"}}
    decisions = [
        {"surface": "product", "policy": policy, **actions}
        for policy in ("default", "vector")
        for actions in ({}, {"actions": ["i0", "i1"]})
    ]
    bought = {"event": "Item Purchased", "properties": {"itemId": "i2"}}
    context = {"device": "d"}
    person = {"userId": "u"}
    requests = [
        (Op.IDENTIFY, person | {"traits": {"a": 1}}),
        (Op.DECIDE, person | {"events": [event, bought], "decisions": decisions}),
        (Op.DECIDE, person | {"events": [event], "context": context, "decisions": decisions}),
        (Op.TRACK, person | event),
        (Op.PROFILE_GET, person),
        (Op.PROFILE_DELETE, person),
    ]
    for op, request in requests:
        status, answer = shard.handle(op, caller, msgspec.json.encode(request), perf_counter_ns())
        assert status == 200, answer
    chunk: dict[str, NDArray[Any]] = {
        "key_hi": np.zeros(2, np.int64),
        "key_lo": np.zeros(2, np.int64),
        "item": np.zeros(2, np.int32),
        "type": np.ones(2, np.uint8),
        "value": np.zeros(2, np.float32),
        "time": np.full(2, 1_700_000_000, np.uint32),
    }
    shard.loads.events("chunk", "warm-up", chunk)
    # Columns from the object store and from the log are read-only: another type to numba.
    shard.loads.events("read-only chunk", "warm-up", unpack_columns(pack_columns(chunk)))
    take_range(Shard("heir", shard.key_range, shard.config), shard, heir=True)
    engine = shard.tenant("warm-up").engine
    engine.consolidate()
    engine.tune()
    shard.sweep()
    disk_thread.warm_up()


def warm_up_treatment() -> None:
    """Choose, watch, and learn from both kinds of outcome."""
    treatment = Treatment()
    arms = arms_of([Arm("a", {"price": 1.0}), Arm("b", {"price": 2.0}, 2.0)])
    context, rng = features_of({"device": "d"}), np.random.default_rng(1)
    for spec in (PolicySpec("ui"), PolicySpec("ui", outcome="choice")):
        policy = policy_of("p", spec)
        choice = treatment.choose(policy, context, arms, rng, 2)
        remembered = treatment.remember(policy, b"", choice.trace, 0, 1.0)
        treatment.choose(policy, context, arms, rng, 2, remembered=remembered)
        treatment.learn_choice(policy, choice.trace, 0)
        treatment.learn(policy, choice.trace, 0, 1.0)
        treatment.retold(policy, choice.trace, 0)
        treatment.predict(policy, context, arms, remembered)
        treatment.probabilities(policy, context, arms)
        treatment.explain(policy, context, arms, 0)
    watching = policy_of("p", PolicySpec("ui", mode="apprentice"))
    allowed = np.ones((2, 2), np.bool_)
    for policy in (watching, policy_of("p", PolicySpec("ui"))):
        choice = treatment.choose(policy, context, arms, rng, 2, allowed=allowed)
        treatment.learn(policy, choice.trace, 0, 1.0)


def main() -> None:
    """Compile on two cores: what the surfaces learn with needs nothing of the rest."""
    treatment = get_context("spawn").Process(target=warm_up_treatment)
    treatment.start()
    warm_up_shard(Config())
    treatment.join()
    # Loaded from the cache, to see that all of it is there.
    warm_up(Config())
    sys.exit(treatment.exitcode)


if __name__ == "__main__":
    main()
