"""A policy: how arms of one surface are chosen and learned from. A document, and its numbers."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal, NamedTuple
from zlib import crc32

from msgspec import Meta

from actors.documents import DocumentId, Documents
from actors.messages import Name, Strict
from cluster.errors import RequestError

THOMPSON, LINUCB, GREEDY, FIXED, UNIFORM = range(5)
RULES = {
    "thompson": THOMPSON,
    "linucb": LINUCB,
    "epsilon-greedy": GREEDY,
    "fixed": FIXED,
    "uniform": UNIFORM,
}
FLOORS = {"thompson": 0.01, "linucb": 0.02, "epsilon-greedy": 0.1, "fixed": 0.02, "uniform": 0.0}
ALPHAS = {"thompson": 0.5}
"""Half as wide as the posterior: three fifths instead of half of what the best arm would gain, in
10,000 impressions of a headline test (tests.bench.treatments)."""

PERSONALIZER = "personalizer"
"""The policy of Azure's API, which serves also where no document says how."""

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=-1e9, le=1e9)]


class PolicySpec(Strict):
    """The document of a policy.

    rule          thompson: by the probability of being best (Chapelle and Li 2011); linucb: the
                  highest upper confidence bound (Li et al. 2010, on this model's log-odds);
                  epsilon-greedy, fixed (the best on average, whoever asks) and uniform: baselines
    mode          online: acts and learns; shadow: the baseline acts, the policy learns from that
                  and says what it would have done; apprentice: the same, but it learns to do as the
                  baseline does, rewarded only where it would have shown the same; frozen: acts by
                  what it knows, learns nothing; off: the baseline acts, nothing is learned
    baseline      ids in the order in which they fill slots; without, the arms' own order. What a
                  call names as a slot's `baselineAction` comes before
    floor         share of draws that is uniform over what is eligible
    alpha         how much doubt counts, in standard deviations: linucb, how far above the mean the
                  bound lies; thompson, how wide draws are, below 1 explores less
    reward_window_s, default_reward
                  how long a reward is waited for, and what it is without one
    reward_aggregation
                  earliest: the first reward of a slot counts; sum: they add up
    reward_min, reward_max
                  rewards are scaled from here to 0..1
    learn_on      window-close: what comes too late or never is known, so nothing is biased;
                  reward: at once, for callers that report every outcome, the zeros too
    outcome       reward: each arm shown succeeds or not; choice: at most one of those shown
    """

    surface: Name
    id: DocumentId | None = None
    description: Annotated[str, Meta(max_length=1024)] = ""
    rule: Literal["thompson", "linucb", "epsilon-greedy", "fixed", "uniform"] = "thompson"
    mode: Literal["online", "apprentice", "shadow", "frozen", "off"] = "online"
    baseline: Annotated[tuple[Name, ...], Meta(max_length=1000)] = ()
    floor: Share | None = None
    alpha: Annotated[float, Meta(ge=0.0, le=10.0)] | None = None
    reward_window_s: Annotated[int, Meta(ge=1, le=2_592_000)] = 600
    default_reward: Amount = 0.0
    reward_aggregation: Literal["earliest", "sum"] = "earliest"
    reward_min: Amount = 0.0
    reward_max: Amount = 1.0
    learn_on: Literal["window-close", "reward"] = "window-close"
    outcome: Literal["reward", "choice"] = "reward"


class Policy(NamedTuple):
    """A policy as kernels take it. salt and surface_salt tell its weights from others'.

    version  of its document; 0 without one
    """

    id: str
    spec: PolicySpec
    salt: int
    surface_salt: int
    rule: int
    floor: float
    alpha: float
    version: int = 0

    @property
    def learns(self) -> bool:
        return self.spec.mode in ("online", "shadow", "apprentice")

    @property
    def acts(self) -> bool:
        return self.spec.mode in ("online", "frozen")

    def scaled(self, reward: float) -> float:
        """A reward between 0 and 1.

        >>> policy_of("p", PolicySpec("offer", reward_max=50.0)).scaled(20.0)
        0.4
        """
        low, high = self.spec.reward_min, self.spec.reward_max
        return min(max((reward - low) / (high - low), 0.0), 1.0)


def policy_of(policy_id: str, spec: PolicySpec) -> Policy:
    """The numbers of a document. Raises RequestError (422) if it contradicts itself."""
    check_policy(spec)
    floor = FLOORS[spec.rule] if spec.floor is None else spec.floor
    rule = GREEDY if spec.mode == "frozen" and spec.rule == "thompson" else RULES[spec.rule]
    return Policy(
        policy_id,
        spec,
        crc32(f"policy {policy_id}".encode()),
        crc32(f"surface {spec.surface}".encode()),
        rule,
        floor,
        ALPHAS.get(spec.rule, 1.0) if spec.alpha is None else spec.alpha,
    )


@lru_cache(maxsize=1024)
def default_policy(policy_id: str, surface: str) -> Policy:
    """What serves where no document says otherwise."""
    return policy_of(policy_id, PolicySpec(surface))


def policies(documents: Documents) -> dict[str, Policy]:
    """All policies of a tenant by id; for `Documents.derived`."""
    return {
        name: policy_of(name, spec)._replace(version=documents.version("policies", name))
        for name, spec in documents.of("policies").items()
    }


def check_policy(
    spec: PolicySpec, document_id: str = "", documents: Documents | None = None
) -> None:
    """Raises RequestError (422) if a document contradicts itself."""
    if spec.reward_min >= spec.reward_max:
        raise RequestError(
            422,
            "rewards have no range",
            "rewardMax",
            str(spec.reward_max),
            f"> rewardMin = {spec.reward_min}",
        )
    if not spec.reward_min <= spec.default_reward <= spec.reward_max:
        raise RequestError(
            422,
            "the default reward is out of range",
            "defaultReward",
            str(spec.default_reward),
            f"{spec.reward_min} to {spec.reward_max}",
        )
    if spec.mode == "apprentice" and spec.outcome == "choice":
        raise RequestError(
            422, "an apprentice learns from rewards", "mode", "apprentice", "shadow, for choices"
        )
    if len(set(spec.baseline)) < len(spec.baseline):
        raise RequestError(
            422, "a baseline names an arm once", "baseline", repr(spec.baseline), "different ids"
        )
