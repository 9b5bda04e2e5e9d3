"""Where to cut a row of loads so that the heaviest part is as light as it can be. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def divide(weighted: Sequence[tuple[int, float]], parts: int) -> tuple[float, list[int]]:
    """Cut positions into `parts` runs whose heaviest is as light as it can be.

    weighted  (position, load), ascending by position
    Returns   the heaviest run's load, and `parts` - 1 ascending cuts; a cut is the first position
              of the next run. Fewer cuts if there are fewer distinct positions. O(n log n).

    >>> divide([(0, 1.0), (10, 1.0), (20, 2.0)], 2)
    (2.0, [15])
    """
    places: list[int] = []
    loads: list[float] = []
    for position, load in weighted:
        if places and places[-1] == position:
            loads[-1] += load
        else:
            places.append(position)
            loads.append(load)
    sums = [0.0]
    for load in loads:
        sums.append(sums[-1] + load)
    low, high = max(loads), sums[-1]
    best = _runs(sums, high)
    # Forty halvings are more than samples can tell.
    for _ in range(40):
        middle = (low + high) / 2
        runs = _runs(sums, middle)
        if len(runs) <= parts:
            best, high = runs, middle
        else:
            low = middle
    while len(best) < min(parts, len(loads)):
        _halve_heaviest(best, sums)
    cuts = [(places[start - 1] + 1 + places[start]) // 2 for start, _ in best[1:]]
    return max(sums[stop] - sums[start] for start, stop in best), cuts


def _runs(sums: Sequence[float], limit: float) -> list[tuple[int, int]]:
    """Half-open runs of at most `limit` each, as few as possible; one entry is always taken."""
    runs: list[tuple[int, int]] = []
    start, end = 0, len(sums) - 1
    while start < end:
        # A hair above, or rounding would cut a run that fits exactly.
        stop = bisect_left(sums, sums[start] + limit * (1 + 1e-9) + 1e-12) - 1
        stop = max(start + 1, min(stop, end))
        runs.append((start, stop))
        start = stop
    return runs


def _halve_heaviest(runs: list[tuple[int, int]], sums: Sequence[float]) -> None:
    """Cut the heaviest run that has more than one entry at its middle."""
    at = max(
        (i for i, (start, stop) in enumerate(runs) if stop - start > 1),
        key=lambda i: sums[runs[i][1]] - sums[runs[i][0]],
    )
    start, stop = runs[at]
    middle = (sums[start] + sums[stop]) / 2
    cut = min(max(bisect_left(sums, middle), start + 1), stop - 1)
    runs[at : at + 1] = [(start, cut), (cut, stop)]
