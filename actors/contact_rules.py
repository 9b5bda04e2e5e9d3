"""When a person may be contacted: consent, suppression, frequency caps and quiet hours. Pure.

The rules are asked before anything is chosen, so what a policy learns to choose from is always
allowed, and the propensities are exact over what was allowed.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta

from actors.ledger import Contact, Ledger
from actors.messages import Name, Strict
from actors.schedule import Duration, QuietHours, allowed_s, check_quiet, duration_s
from actors.treatment.features import Arm, Arms, arms_of
from cluster.errors import RequestError

CHANNELS_MAX = 8
TEMPLATES_MAX = 16
DELAYS_MAX = 8
OPTIONS_MAX = 64
READY_MAX = 256
"""Combinations of channels, templates and delays whose options are remembered."""
CAPS_MAX = 8
CONTACTS_MAX = 24
"""Contacts a ledger remembers, and the most that a cap may allow."""
HOLD_BACK = "none"
"""The arm of a policy that sends nothing."""
IN_APP = "inApp"
"""The channel that ends at the page: pushed over its open stream."""

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Channel = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]


class Threshold(Strict):
    """Reached when a probability is above or below; both: between them."""

    above: Probability = 0.0
    below: Probability = 1.0

    def holds(self, probability: float) -> bool:
        return self.above <= probability <= self.below


class FrequencyCap(Strict):
    """At most `max` contacts within any `per`.

    scope    "all" contacts of the person, or those of the same "trigger"
    channel  None = over all channels together
    """

    max: Annotated[int, Meta(ge=1, le=CONTACTS_MAX)]
    per: Duration
    scope: Literal["all", "trigger"] = "all"
    channel: Channel | None = None


class ContactRules(Strict, kw_only=True):
    """Which contacts are possible, and what forbids them. Triggers and decisions share it.

    templates       what may be sent; without, the receiver knows
    delays          how much later it may be sent, for a policy to choose from
    policy          id of the policy that chooses channel, template and delay; without, the first
    hold_back       the policy may also choose to send nothing
    expires         how long after its time a message is still worth sending
    requires_consent  purpose the person must have agreed to
    """

    channels: Annotated[tuple[Channel, ...], Meta(max_length=CHANNELS_MAX)] = ()
    templates: Annotated[tuple[Name, ...], Meta(max_length=TEMPLATES_MAX)] = ()
    delays: Annotated[tuple[Duration, ...], Meta(max_length=DELAYS_MAX)] = ()
    policy: Name | None = None
    hold_back: bool = False
    expires: Duration = "P1D"
    requires_consent: Name | None = None
    frequency_cap: (
        FrequencyCap | Annotated[tuple[FrequencyCap, ...], Meta(max_length=CAPS_MAX)]
    ) = ()
    quiet_hours: QuietHours | None = None

    @property
    def caps(self) -> tuple[FrequencyCap, ...]:
        cap = self.frequency_cap
        return (cap,) if isinstance(cap, FrequencyCap) else cap


class Option(NamedTuple):
    """One possible contact. send_at_s is never in a quiet hour."""

    channel: str
    template: str
    delay_s: int
    send_at_s: int

    @property
    def id(self) -> str:
        """As arms are called: channel, template and delay, as far as they say something."""
        return _option_id(self.channel, self.template, self.delay_s)


@lru_cache(maxsize=4096)
def _option_id(channel: str, template: str, delay_s: int) -> str:
    delay = f"+{delay_s}s" if delay_s else ""
    return "/".join(part for part in (channel, template, delay) if part)


class Prepared(NamedTuple):
    """Rules made ready, once per document or request. arms: the options, and HOLD_BACK if it may
    be chosen; None: there is no policy."""

    rules: ContactRules
    options: tuple[Option, ...]
    arms: Arms | None


class Rejected(NamedTuple):
    """One contact that is not possible, and the rule that forbids it. Its send_at_s is 0."""

    option: Option
    rule: str


def check_contact_rules(rules: ContactRules, field: str) -> None:
    """What the types can't say. Raises RequestError naming the field; `field` ends with a dot."""
    if not rules.channels:
        raise RequestError(422, "there is no channel", f"{field}channels", "[]", "at least one")
    for i, cap in enumerate(rules.caps):
        index = f"[{i}]" if isinstance(rules.frequency_cap, tuple) else ""
        duration_s(cap.per, f"{field}frequencyCap{index}.per")
    for i, delay in enumerate(rules.delays):
        duration_s(delay, f"{field}delays[{i}]", 0)
    duration_s(rules.expires, f"{field}expires")
    if rules.quiet_hours is not None:
        check_quiet(rules.quiet_hours, f"{field}quietHours")
    for name in ("channels", "templates", "delays"):
        values = getattr(rules, name)
        if len(set(values)) < len(values):
            raise RequestError(
                422, "a value stands there twice", f"{field}{name}", str(values), "each value once"
            )
    count = len(rules.channels) * len(rules.templates or ("",)) * len(rules.delays or ("",))
    if count > OPTIONS_MAX:
        wanted = f"at most {OPTIONS_MAX} combinations of channels, templates and delays"
        raise RequestError(
            422, "there is too much to choose from", f"{field}delays", str(count), wanted
        )
    if rules.policy is None and (len(rules.delays) > 1 or rules.hold_back):
        wanted = "a policy, without which the first is always chosen"
        raise RequestError(422, "nothing chooses here", f"{field}policy", "nothing", wanted)


def prepare(rules: ContactRules) -> Prepared:
    """Make checked rules ready."""
    options = _options(rules.channels, rules.templates, rules.delays)
    arms = None if rules.policy is None else _arms(options, rules.hold_back)
    return Prepared(rules, options, arms)


# A caller sends the same few rules with every call, and making arms takes longer than a choice.
@lru_cache(maxsize=READY_MAX)
def _options(
    channels: tuple[str, ...], templates: tuple[str, ...], delays: tuple[str, ...]
) -> tuple[Option, ...]:
    """Every combination of channel, template and delay; send_at_s is 0."""
    return tuple(
        Option(channel, template, duration_s(delay, "delays", 0), 0)
        for channel in channels
        for template in templates or ("",)
        for delay in delays or ("PT0S",)
    )


@lru_cache(maxsize=READY_MAX)
def _arms(options: tuple[Option, ...], hold_back: bool) -> Arms:
    arms = [
        Arm(option.id, {"channel": option.channel, "template": option.template or None})
        for option in options
    ]
    held = [Arm(HOLD_BACK, {"channel": HOLD_BACK})] if hold_back else []
    return arms_of(arms + held)


def possible(
    prepared: Prepared, trigger: str, ledger: Ledger, zone: str, now_s: int
) -> tuple[list[tuple[int, Option]], list[Rejected]]:
    """Which options are allowed now, with their index, and why others are not.

    trigger  id of the trigger that asks, "" = a decision
    zone     the person's time zone, "" = unknown
    """
    allowed: list[tuple[int, Option]] = []
    rejected: list[Rejected] = []
    times: dict[int, int] = {}
    found: dict[tuple[str, int], str] = {}
    rules = prepared.rules
    for index, option in enumerate(prepared.options):
        channel, template, delay_s, _ = option
        at_s = times.get(delay_s)
        if at_s is None:
            at_s = times[delay_s] = _send_at_s(rules, zone, now_s + delay_s)
        # A template is never what is forbidden.
        rule = found.get((channel, at_s))
        if rule is None:
            at_once = Option(channel, template, delay_s, at_s)
            rule = found[channel, at_s] = _forbidden(rules, at_once, trigger, ledger)
        if rule:
            rejected.append(Rejected(option, rule))
        else:
            allowed.append((index, Option(channel, template, delay_s, at_s)))
    return allowed, rejected


def _send_at_s(rules: ContactRules, zone: str, at_s: int) -> int:
    """The first whole second from `at_s` on that is in no quiet hour."""
    return at_s if rules.quiet_hours is None else ceil(allowed_s(rules.quiet_hours, zone, at_s))


def _forbidden(rules: ContactRules, option: Option, trigger: str, ledger: Ledger) -> str:
    """The rule that forbids a contact, "" if none does."""
    for channel in ("", option.channel):
        until_s = ledger.suppressed.get(channel)
        if until_s is not None and (until_s == 0 or option.send_at_s < until_s):
            return "suppressed"
    purpose = rules.requires_consent
    if purpose is not None:
        consent = ledger.consents.get(purpose)
        if consent is None or not consent.granted:
            return f"no consent: {purpose}"
    for cap in rules.caps:
        if _reached(cap, option, trigger, ledger):
            scope = f" by {cap.channel}" if cap.channel else ""
            return f"frequency cap: {cap.max} per {cap.per}{scope}"
    return ""


def _reached(cap: FrequencyCap, option: Option, trigger: str, ledger: Ledger) -> bool:
    """Whether one more contact would be too many in some window of the cap's length."""
    if cap.channel is not None and cap.channel != option.channel:
        return False
    window_s, at_s = duration_s(cap.per, "per"), option.send_at_s
    if not ledger.contacts and not ledger.contacts_from_s:
        return False
    if ledger.contacts_from_s > at_s - window_s:
        return True  # Contacts within the window were forgotten, and might have counted.
    times = [
        contact.time_s
        for contact in ledger.contacts
        if abs(contact.time_s - at_s) < window_s
        and (cap.channel is None or contact.channel == cap.channel)
        and (cap.scope == "all" or contact.trigger == trigger)
    ]
    if len(times) < cap.max:
        return False
    # Contacts may lie ahead (quiet hours, delays): every window that holds the new one counts.
    times = sorted([*times, at_s])
    return any(
        last - first < window_s for first, last in zip(times, times[cap.max :], strict=False)
    )


def book(ledger: Ledger, contact: Contact) -> None:
    """Remember a contact. The oldest leaves when there are more than CONTACTS_MAX."""
    ledger.contacts.append(contact)
    ledger.contacts.sort(key=lambda one: one.time_s)
    for forgotten in ledger.contacts[:-CONTACTS_MAX]:
        ledger.contacts_from_s = max(ledger.contacts_from_s, forgotten.time_s)
    del ledger.contacts[:-CONTACTS_MAX]
