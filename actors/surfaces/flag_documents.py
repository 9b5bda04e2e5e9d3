"""Flags as documents: variants of a page, layouts over several slots, and who sees which."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from actors.documents import DocumentId, Documents, must_exist
from actors.filters import FILTER_CHARS_MAX, Filter, parse
from actors.messages import Name, Strict
from actors.surfaces.common import Text
from actors.treatment.features import Arm, Arms, arms_of
from actors.treatment.policy import Policy, policies
from cluster.errors import RequestError

Key = Annotated[str, Meta(min_length=1, max_length=64)]
Feature = str | float | bool


class FlagRule(Strict):
    """People of whom `when` is true, by traits and context, see `variant`."""

    when: Annotated[str, Meta(min_length=1, max_length=FILTER_CHARS_MAX)]
    variant: Key


class Flag(Strict):
    """One thing about the page that differs. The first that applies says which variant is shown:
    not enabled: the default; a rule; a policy, which learns; weights; the default.

    variants  what each stands for, any JSON
    weights   shares of people, by hash
    slots     several: a layout, in which every variant stands at most once
    features  of variants, so that alike ones learn from each other
    sticky    how long a policy's choice stays: none, the session, or for good
    """

    variants: Annotated[dict[Key, Any], Meta(min_length=1, max_length=64)]
    default: Key
    id: DocumentId | None = None
    description: Text = ""
    enabled: bool = True
    rules: Annotated[tuple[FlagRule, ...], Meta(max_length=32)] = ()
    policy: DocumentId | None = None
    weights: dict[Key, Annotated[float, Meta(ge=0, le=1e6)]] = {}
    slots: Annotated[tuple[Key, ...], Meta(max_length=32)] = ()
    features: dict[Key, dict[Name, Feature]] = {}
    sticky: Literal["none", "session", "person"] = "none"


def check_flag(flag: Flag, document_id: str, documents: Documents) -> None:
    """Raises RequestError if a flag contradicts itself."""
    must_exist(documents, "policies", flag.policy, "policy")
    named = [("default", flag.default)]
    named += [(f"rules[{i}].variant", rule.variant) for i, rule in enumerate(flag.rules)]
    named += [(f"weights.{key}", key) for key in flag.weights]
    named += [(f"features.{key}", key) for key in flag.features]
    for field, key in named:
        if key not in flag.variants:
            raise RequestError(422, "no such variant", field, key, ", ".join(flag.variants))
    for i, rule in enumerate(flag.rules):
        parse(rule.when, {}, f"rules[{i}].when")
    if flag.weights and not any(flag.weights.values()):
        raise RequestError(422, "some weight must be above 0", "weights", str(flag.weights))
    if len(set(flag.slots)) < len(flag.slots):
        raise RequestError(422, "slots must differ", "slots", str(flag.slots))


class Compiled:
    """A flag, ready to be evaluated. order: all variants, the default first."""

    def __init__(self, key: str, flag: Flag, documents: Documents) -> None:
        self.key = key
        self.flag = flag
        self.order = [flag.default, *(name for name in flag.variants if name != flag.default)]
        self.slots = list(flag.slots) or [""]
        self.rules: list[tuple[Filter, str]] = [
            (parse(rule.when, {}, "when"), rule.variant) for rule in flag.rules
        ]
        self.policy: Policy | None = None
        self.arms: Arms = arms_of([Arm(name, flag.features.get(name, {})) for name in self.order])
        if flag.policy is not None:
            self.policy = documents.derived(policies).get(flag.policy)

    def weighted(self, share: float) -> str:
        """The variant of a person with this share of the hash."""
        total = sum(self.flag.weights.values())
        reached = 0.0
        for name, weight in self.flag.weights.items():
            reached += weight / total
            if weight > 0 and share < reached:
                return name
        return max(self.flag.weights, key=lambda name: self.flag.weights[name])


def compile_flags(documents: Documents) -> dict[str, Compiled]:
    """All flags, ready to be evaluated."""
    return {key: Compiled(key, flag, documents) for key, flag in documents.of("flags").items()}
