"""What each component of a decision costs: its kernels, as `Candidates` runs them, one by one.

Every component is timed on its own over the same decisions, in the order in which a decision runs
them, so each finds the candidates of those before it. From each time that of the same call with
nothing to do is taken: what Python needs to call a kernel, once per decision and not per component.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.engine import candidates, features, kernels, scoring
from actors.engine.engine import NextAction
from tests.bench.harness import Row

EMPTY_CALLS = 200
RESULTS = 100
Call = Callable[[NDArray[np.int32], int], Any]


def components(name: str, engine: NextAction, histories: list[list[int]]) -> list[Row]:
    """One row per component: p50 and p99 of its microseconds per decision over `histories`."""
    calls = _calls(engine)
    recents = [_recent(history) for history in histories]
    count = engine._candidates._n
    took: dict[str, list[int]] = {part: [] for part in calls}
    for recent in (*recents[:EMPTY_CALLS], *recents):
        count[0] = 0
        for part, call in calls.items():
            started = perf_counter_ns()
            call(recent, len(recent))
            took[part].append(perf_counter_ns() - started)
    rows: list[Row] = []
    for part, call in calls.items():
        # The first calls compile, or bring what is read into the caches.
        us = np.array(took[part][min(EMPTY_CALLS, len(recents)) :]) / 1e3 - _empty_us(call, count)
        rows.append(
            {
                "set": name,
                "arm": f"component {part}",
                "p50_us": max(float(np.percentile(us, 50)), 0.0),
                "p99_us": max(float(np.percentile(us, 99)), 0.0),
                "cases": len(recents),
            }
        )
    return rows


def _recent(history: list[int]) -> NDArray[np.int32]:
    return np.array(history[: -kernels.RECENT_MAX - 1 : -1], np.int32)


def _empty_us(call: Call, count: NDArray[np.int64]) -> float:
    """The median time of a call for a person of whom nothing is known, among no candidates."""
    nobody = np.zeros(kernels.RECENT_MAX, np.int32)
    took = []
    for _ in range(EMPTY_CALLS):
        count[0] = 0
        started = perf_counter_ns()
        call(nobody, 0)
        took.append(perf_counter_ns() - started)
    return float(np.median(took)) / 1e3


def _calls(engine: NextAction) -> dict[str, Call]:
    """The parts of a decision in their order."""
    found, base, live, items = engine._candidates, engine._base, engine._live, engine._items
    stacker, out = engine.stacker, engine._out
    space = (found.of, found.items, found.features, found._n)
    sequences = (base.history.starts, base.history.items, base.postings_at, base.postings)
    links = (*base.after, *base.before, live.log, live.state, live.newest)
    walked = (found._walked, found._walked_weights)
    near = (found._similarity, found._common, found._near)
    nothing = np.zeros(0, np.int32)

    def anyones(_: NDArray[np.int32], length: int) -> None:
        some = length > 0
        candidates.add_anyones(engine._popular if some else nothing, items.n if some else 0, *space)

    def choose(_: NDArray[np.int32], length: int) -> None:
        n = int(found._n[0])
        scoring.select(
            *(found.features, found.items, found.of, n, n, nothing, True),
            *(stacker.weights_of[0], engine._logits, items.alive, engine._blocked),
            *(nothing, nothing, RESULTS, stacker.sharpness(length), stacker.missed_share(length)),
            *(live.counts, live.sums[0] + scoring.SMOOTHING * items.n),
            *(out.items, out.scores, out.probabilities),
        )

    return {
        "own history": lambda recent, n: kernels.add_own(recent, n, *space),
        "transitions": lambda recent, n: candidates.add_transitions(
            recent, n, -1, *links, *walked, *space
        ),
        "neighbours": lambda recent, n: kernels.add_neighbours(
            recent, n, *sequences, *near, *space
        ),
        "last two": lambda recent, n: kernels.add_pair(recent, n, *sequences, *space),
        "popular and new": anyones,
        "attributes": lambda recent, n: kernels.add_liked(
            recent, n, items.attribute_ids, *space[1:]
        ),
        "features": lambda _, __: features.to_features(
            found.features, found.items, int(found._n[0]), live.counts, live.recent, live.sums
        ),
        "weigh and choose": choose,
    }
