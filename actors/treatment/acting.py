"""One whole choice of a policy that acts, in one call: what the hot path runs."""

from __future__ import annotations

from typing import Any

from numba import njit

from actors.treatment import choosing
from actors.treatment.memory import recall_into
from actors.treatment.traces import candidates


@njit(cache=True)
def act(
    sums: Any,
    salt: Any,
    surface: Any,
    ch: Any,
    cx: Any,
    arms: Any,
    starts: Any,
    fh: Any,
    fx: Any,
    worth: Any,
    words: Any,
    rows: Any,
    free: Any,
    rule: Any,
    alpha: Any,
    floor: Any,
    pins: Any,
    allowed: Any,
    uniforms: Any,
    choice: Any,
    order: Any,
    shown: Any,
    propensities: Any,
    chances: Any,
    scores: Any,
    own: Any,
) -> Any:
    """`recall`, then `believe`, `draw` and `chances` of `choosing`, then a trace's `candidates`.

    ch to fx  the context, and all n arms, as `believe` takes them
    worth     float32 [n], what a success with an arm is worth
    words     the person's memory, as `recall_into` takes it
    rows      int32 [m], arms that are looked at, of which the first `free` may be drawn
    filled by slot: order int32, rows of rows; shown int32, arms; propensities float64;
    chances and scores float32. own float32 [n, MEMORY] is filled with what is recalled
    Returns what `draw` does, and what `candidates` does
    """
    recall_into(words, arms, own)
    memory = own
    beliefs = choosing.believe(sums, salt, surface, ch, cx, arms, starts, fh, fx, memory, rows)
    values = worth[rows[:free]]
    filled, explored = choosing.draw(
        beliefs, values, rule, alpha, floor, pins, allowed, uniforms, order, propensities
    )
    choosing.chances(sums, salt, beliefs, order[:filled], choice, chances[:filled])
    for place in range(filled):
        shown[place] = rows[order[place]]
        scores[place] = chances[place] * worth[shown[place]]
    return filled, explored, candidates(arms, worth, starts, fh, fx, rows)
