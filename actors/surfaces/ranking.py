"""Content and product: rankings of items by what comes next.

Changes nothing but what the engine remembers to have shown to whom.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.checked import refusal
from actors.context import Codes
from actors.decisions import (
    Action,
    Actions,
    Contribution,
    Decision,
    Explanation,
    FilledSlot,
    Ranked,
    RankingSpec,
    Rejected,
)
from actors.engine.features import FEATURE_NAMES
from actors.engine.interface import Ranking
from actors.engine.sums import SURFACES
from actors.rules import Filling, Rules, check_rules
from actors.store import StoredEvent
from actors.surfaces.choosing import Choosing, plan_choice
from actors.surfaces.experiments import arrange, rotas
from actors.surfaces.interface import Plan, Who
from actors.tenant import Tenant
from actors.treatment.features import Arm, Arms, arms_of
from cluster.errors import RequestError

LOG = logging.getLogger("onehop.actors")

POPULAR = "popular"
_NO_ITEMS: NDArray[np.int32] = np.zeros(0, np.int32)
_decode_actions = msgspec.json.Decoder(Actions).decode

KEPT_MAX = 256
KEPT_BYTES_MAX = 8192
"""Lists of actions whose arms are remembered: how many, and how long as JSON."""

CONTEXT_CANDIDATES = 100
"""With a context at least so many are ranked, since it may lift one that stood further down."""


class Planned(NamedTuple):
    """One decision, checked and ready to be made.

    candidates  int32 [n] item numbers, or None for the whole catalogue
    excluded    int32 [n] item numbers that must not be chosen
    """

    spec: RankingSpec
    candidates: NDArray[np.int32] | None
    excluded: NDArray[np.int32]
    rejected: list[Rejected]
    rules: Rules | None

    def decide(self, tenant: Tenant, decision_id: str, who: Who, explain: bool) -> Decision:
        return decide(tenant, decision_id, self, who, explain)

    def cheap(self, tenant: Tenant, decision_id: str, who: Who) -> Decision:
        return popular(tenant, decision_id, self)


class Arrangeable(NamedTuple):
    """A ranking in which experiments, holdouts and slots have a say."""

    inner: Plan
    spec: RankingSpec
    field: str

    def decide(self, tenant: Tenant, decision_id: str, who: Who, explain: bool) -> Decision:
        spec = self.spec
        arranged = arrange(tenant, spec.surface, "", who)
        if arranged.holdout is not None:
            made = self.cheap(tenant, decision_id, who)
        elif arranged.policy is not None and spec.actions:
            arms = _arms(spec.actions, self.field)
            chosen = plan_choice(tenant, spec, arms, arranged.policy, self.field)
            made = in_slots(chosen.decide(tenant, decision_id, who, explain), spec)
        else:
            made = in_slots(self.inner.decide(tenant, decision_id, who, explain), spec)
        made.holdout, made.experiment = arranged.holdout, arranged.assignment
        if arranged.arm is not None:
            _lift(made, arranged.arm, spec, "experiment")
            for slot, entry in zip(spec.slots, made.ranking, strict=False):
                if entry.id in slot.excluded_actions:
                    made = self.cheap(tenant, decision_id, who)
                    made.reasons.append(f"experiment: {arranged.arm} is excluded from a slot")
                    break
            made.experiment = arranged.assignment
        return made

    def cheap(self, tenant: Tenant, decision_id: str, who: Who) -> Decision:
        made = self.inner.cheap(tenant, decision_id, who)
        if isinstance(self.inner, Choosing) and self.inner.allowed is not None:
            return in_slots(made, self.spec)  # What slots name is there, as far as they allow it.
        return in_baseline(made, self.spec)


def in_slots(made: Decision, spec: RankingSpec) -> Decision:
    """Name the slots that the results fill, in order."""
    if spec.slots:
        pairs = zip(spec.slots, made.ranking, strict=False)
        made.slots = [FilledSlot(slot.id, one.id, one.probability) for slot, one in pairs]
    return made


def in_baseline(made: Decision, spec: RankingSpec) -> Decision:
    """Put the baseline actions where the caller wants them; the rest keeps its order."""
    wanted = [slot.baseline_action for slot in spec.slots] or [spec.baseline_action]
    for place in range(len(wanted) - 1, -1, -1):
        baseline = wanted[place]
        if baseline is not None and baseline not in spec.excluded_actions:
            _lift(made, baseline, spec, "baseline", place)
    return in_slots(made, spec)


def _lift(made: Decision, action: str, spec: RankingSpec, reason: str, place: int = 0) -> None:
    """Let an action stand at a place, whether it was ranked or not."""
    rest = [one for one in made.ranking if one.id != action]
    rest.insert(place, Ranked(action, 0.0, 1.0, reason))
    made.ranking = rest[: max(len(made.ranking), place + 1)]
    in_slots(made, spec)


def plan(tenant: Tenant, spec: RankingSpec, field: str) -> Plan:
    """Check a ranking. Raises RequestError naming the field; `field` is where the spec stands."""
    if spec.slots:
        ids = [slot.id for slot in spec.slots]
        if len(set(ids)) < len(ids):
            # A reward names its slot.
            raise RequestError(422, "slots must differ", f"{field}slots", repr(ids))
        spec.num_results = len(ids)
    inner: Plan
    if spec.policy in ("default", "vector"):
        for i, slot in enumerate(spec.slots):
            if slot.excluded_actions:
                where = f"{field}slots[{i}].excludedActions"
                raise RequestError(422, "only policies of documents have this", where)
        inner = plan_ranking(tenant, spec, field)
        if not (spec.slots or spec.baseline_action or spec.surface in rotas(tenant)):
            return inner
    else:
        named = bytes(spec.actions) not in (b"", b"null")
        inner = plan_choice(
            tenant, spec, _arms(spec.actions, field) if named else None, None, field
        )
    return Arrangeable(inner, spec, field)


def _arms(raw: msgspec.Raw, field: str) -> Arms:
    """The actions of a request as arms. Raises RequestError naming the field."""
    content = bytes(raw)
    try:
        return (
            _arms_of(content) if len(content) <= KEPT_BYTES_MAX else _arms_of.__wrapped__(content)
        )
    except msgspec.DecodeError:
        _actions(raw, f"{field}actions")
        raise
    except ValueError as error:
        raise RequestError(
            422, "the actions can't be told apart", f"{field}actions", str(error)
        ) from None


# A page asks for the same few actions with every call, and making arms takes longer than a choice.
@lru_cache(maxsize=KEPT_MAX)
def _arms_of(raw: bytes) -> Arms:
    actions = _decode_actions(raw)
    return arms_of([Arm(a) if isinstance(a, str) else Arm(a.id, a.features) for a in actions])


def plan_ranking(tenant: Tenant, spec: RankingSpec, field: str) -> Planned:
    """Numbers for the ids of a decision; an unknown candidate is rejected by rule.

    Raises RequestError if a rule can't be read; `field` is where the spec stands.
    """
    rules = check_rules(tenant, spec, field)
    numbers = tenant.catalogue.numbers
    excluded = _NO_ITEMS
    if spec.excluded_actions:
        known = [numbers[i] for i in spec.excluded_actions if i in numbers]
        excluded = np.array(known, np.int32)
    if not spec.actions:
        return Planned(spec, None, excluded, [], rules)
    candidates = tenant.catalogue.id_numbers.of(spec.actions)
    if candidates is not None or bytes(spec.actions) == b"null":
        return Planned(spec, candidates, excluded, [], rules)
    ids = [a if isinstance(a, str) else a.id for a in _actions(spec.actions, f"{field}actions")]
    found = [numbers[item_id] for item_id in ids if item_id in numbers]
    rejected = [Rejected(item_id, "unknown item") for item_id in ids if item_id not in numbers]
    return Planned(spec, np.array(found, np.int32), excluded, rejected, rules)


def _actions(raw: msgspec.Raw, field: str) -> list[str | Action]:
    """Decode candidates that are not plain known ids. Raises RequestError naming the field."""
    try:
        return _decode_actions(raw)
    except msgspec.DecodeError as error:
        refused = refusal(error, bytes(raw))
        raise RequestError(
            422, refused.title, field + refused.field, refused.seen, refused.wanted
        ) from None


def decide(
    tenant: Tenant,
    decision_id: str,
    planned: Planned,
    who: Who,
    explain: bool,
) -> Decision:
    """Make one planned decision."""
    spec = planned.spec
    if who.row >= 0 and spec.exclude_bought:
        bought = who.store.bought(who.row)
        if len(bought):
            planned = planned._replace(excluded=np.concatenate([planned.excluded, bought]))
    rejected = planned.rejected
    ids = tenant.catalogue.ids
    if planned.rules is None:
        ranking, items = _rank_once(tenant, planned, who)
        no_action = ranking.no_action
        ranked = _ranked(ids, items, ranking)
    else:

        def rank(candidates: NDArray[np.int32] | None, k: int) -> Ranking:
            return _rank(tenant, planned, candidates, k, who)

        candidates = (
            planned.candidates if planned.candidates is None else np.unique(planned.candidates)
        )
        filling = Filling(tenant, spec, planned.rules, candidates, rank, who.rng)
        no_action = filling.no_action
        places = filling.fill()
        rejected = rejected + filling.rejected
        items = [place.item for place in places]
        ranked = [Ranked(ids[p.item], p.score, p.probability, p.reason) for p in places]
    if spec.policy != "vector" and who.key:
        tenant.engine.showed(who.key, SURFACES[spec.surface], np.array(items, np.int32))
    if explain:
        _explain(tenant, spec, who, items, ranked)
    policy = tenant.vector if spec.policy == "vector" else tenant.engine
    return Decision(
        decision_id,
        spec.surface,
        policy.policy_id,
        policy.version,
        ranked,
        rejected,
        no_action if policy is tenant.engine else None,
    )


def _rank_once(tenant: Tenant, planned: Planned, who: Who) -> tuple[Ranking, list[int]]:
    """The best of the candidates, each named once; and their item numbers as a list."""
    k = planned.spec.num_results
    ranking = _rank(tenant, planned, planned.candidates, k, who)
    items = ranking.items.tolist()
    if planned.candidates is not None and len(set(items)) < len(items):
        # Only a repeat among the best shows in the answer, so only then it is worth a second look.
        ranking = _rank(tenant, planned, np.unique(planned.candidates), k, who)
        items = ranking.items.tolist()
    return ranking, items


def _ranked(ids: list[str], items: list[int], ranking: Ranking) -> list[Ranked]:
    scores = ranking.scores.tolist()
    if not len(ranking.probabilities):
        return [Ranked(ids[item], score) for item, score in zip(items, scores, strict=True)]
    entries = zip(items, scores, ranking.probabilities.tolist(), strict=True)
    return [Ranked(ids[item], score, chance) for item, score, chance in entries]


def _explain(
    tenant: Tenant, spec: RankingSpec, who: Who, items: list[int], ranked: list[Ranked]
) -> None:
    """Tell of every result what its score is made of; the parts add up to it."""
    if spec.policy == "vector":
        for entry in ranked:
            entry.explanation = Explanation({"vector": entry.score})
        return
    if not items:
        return
    numbers = np.array(items, np.int32)
    parts = tenant.engine.explain(who.row, numbers, SURFACES[spec.surface])
    lift = tenant.context.lift(who.context, numbers, tenant.catalogue.attribute_ids)
    changes = tenant.engine.explain_events(who.row, numbers, SURFACES[spec.surface])
    rest = parts.sum(axis=1) - changes.sum(axis=1) + lift
    told = _events(tenant, who, changes.shape[1])
    for i, entry in enumerate(ranked):
        named = zip((*FEATURE_NAMES, "context"), (*parts[i].tolist(), float(lift[i])), strict=True)
        events = [
            Contribution(tenant.catalogue.ids[event.item], name, event.time_s, change)
            for (event, name), change in zip(told, changes[i].tolist(), strict=True)
        ]
        components = {name: value for name, value in named if value != 0.0}
        entry.explanation = Explanation(components, events, float(rest[i]))


def _events(tenant: Tenant, who: Who, count: int) -> list[tuple[StoredEvent, str]]:
    """The person's last events on items, newest first, and what they are called."""
    if who.row < 0:
        return []
    names = tenant.event_types.names
    acted = [event for event in who.store.events(who.row) if event.item >= 0]
    return [(event, names[event.event_type]) for event in acted[:count]]


def _rank(
    tenant: Tenant, planned: Planned, candidates: NDArray[np.int32] | None, k: int, who: Who
) -> Ranking:
    spec = planned.spec
    if spec.policy == "vector":
        return tenant.vector.rank(who.row, candidates, k, planned.excluded)
    exclude_seen = spec.exclude_seen
    if exclude_seen is None:
        # Content is read once; a product seen lately may be what the person comes back for.
        exclude_seen = spec.surface == "content"
    wanted = k if not len(who.context) else max(4 * k, CONTEXT_CANDIDATES)
    ranking = tenant.engine.rank(
        who.row,
        candidates,
        wanted,
        who.now_s,
        planned.excluded,
        exclude_seen,
        SURFACES[spec.surface],
    )
    return ranking if not len(who.context) else _in_context(tenant, ranking, k, who.context)


def _in_context(tenant: Tenant, ranking: Ranking, k: int, context: Codes) -> Ranking:
    """The k best once the context is counted in; the probabilities keep their sum."""
    lift = tenant.context.lift(context, ranking.items, tenant.catalogue.attribute_ids)
    scores = ranking.scores + lift
    order = np.argsort(-scores, kind="stable")[:k]
    likelier = ranking.probabilities * np.exp(lift)
    total = float(likelier.sum())
    if total > 0.0:
        likelier *= float(ranking.probabilities.sum()) / total
    return Ranking(ranking.items[order], scores[order], likelier[order], ranking.no_action)


def popular(tenant: Tenant, decision_id: str, planned: Planned) -> Decision:
    """The most popular of what may be shown: candidates, exclusions and filter hold, no other rule.

    Empty if that fails too.
    """
    spec = planned.spec
    try:
        items = _popular(tenant, planned)
        counts = tenant.engine.counts[items].tolist()
        ids = tenant.catalogue.ids
        ranking = [Ranked(ids[i], float(n)) for i, n in zip(items.tolist(), counts, strict=True)]
    except Exception:
        LOG.exception("the cheap decision of tenant %s failed too", tenant.name)
        ranking = []
    version = tenant.engine.version
    return Decision(decision_id, spec.surface, POPULAR, version, ranking, planned.rejected)


def _popular(tenant: Tenant, planned: Planned) -> NDArray[np.int32]:
    """Item numbers int32 [<= num_results], best first."""
    count = planned.spec.num_results
    allowed = planned.rules.allowed if planned.rules is not None else None
    n = tenant.catalogue.n
    if planned.candidates is None:
        mask = np.ones(n, np.bool_) if allowed is None else allowed.copy()
        mask[planned.excluded] = False
        found = tenant.popular(mask, count)
    else:
        found = np.setdiff1d(planned.candidates, planned.excluded)
        found = found[tenant.catalogue.alive[found] != 0]
        found = found if allowed is None else found[allowed[found]]
    order = np.argsort(-tenant.engine.counts[found], kind="stable")[:count]
    best: NDArray[np.int32] = found[order]
    return best
