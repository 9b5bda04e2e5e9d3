"""Durations, and hours in which nobody is to be disturbed. Pure: time is an argument.

Whether it is quiet is a question of the wall clock where the person is, so it is asked of the time
zone's own rules: an hour that is skipped or repeated in spring or autumn needs no special case.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import Annotated
from zoneinfo import ZoneInfo

from msgspec import Meta

from actors.messages import Strict
from cluster.errors import RequestError

DURATION_S_MAX = 182 * 86400
_DURATION = re.compile(r"P(?=.)(?:(\d+)D)?(?:T(?=.)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?")
_CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"

Duration = Annotated[str, Meta(min_length=2, max_length=24, description="ISO 8601, as PT30M")]
ClockTime = Annotated[str, Meta(pattern=_CLOCK)]


class QuietHours(Strict):
    """From `start` until before `end`, over midnight if `end` is earlier.

    timezone  of people whose trait `timezone` names none
    """

    start: ClockTime
    end: ClockTime
    timezone: Annotated[str, Meta(max_length=64)] = "UTC"


def duration_s(text: str, field: str, least_s: int = 1) -> int:
    """Seconds of an ISO 8601 duration of days, hours, minutes and seconds.

    Raises RequestError naming `field` unless it is one of `least_s` to DURATION_S_MAX seconds.

    >>> duration_s("PT30M", "onInactivity")
    1800
    """
    total_s = _seconds(text)
    if least_s <= total_s <= DURATION_S_MAX:
        return total_s
    wanted = f"an ISO 8601 duration of {least_s} s to 182 days, as PT30M or P1DT12H"
    raise RequestError(422, "the duration is not usable", field, repr(text), wanted)


@lru_cache(maxsize=1024)
def _seconds(text: str) -> int:
    """-1 if the text is no duration."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return -1
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def check_quiet(quiet: QuietHours, field: str) -> None:
    """Raises RequestError if the zone is unknown, or the hours leave no time at all."""
    if zone_of(quiet.timezone) is None:
        wanted = "a name of the IANA time zone database, as Europe/Berlin"
        raise RequestError(
            422, "the time zone is unknown", f"{field}.timezone", repr(quiet.timezone), wanted
        )
    if quiet.start == quiet.end:
        raise RequestError(
            422,
            "quiet hours must end",
            f"{field}.end",
            quiet.end,
            f"another time than {quiet.start}",
        )


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo | None:
    """The time zone of a name, None if there is none."""
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        # Names come from traits: ZoneInfo reads files, and refuses what leaves their folder.
        return None


def is_quiet(quiet: QuietHours, zone: ZoneInfo, at_s: float) -> bool:
    """Whether the wall clock of `zone` shows a quiet hour."""
    shown = datetime.fromtimestamp(at_s, zone).time()
    start, end = _clock(quiet.start), _clock(quiet.end)
    return start <= shown < end if start < end else shown >= start or shown < end


def allowed_s(quiet: QuietHours, person_zone: str, at_s: float) -> float:
    """The first time from `at_s` on, seconds since 1970, at which it is not quiet.

    person_zone  the person's own time zone; if it is not one, the document's counts
    Where the clock skips `end`, it is up to as much later as was skipped; never in a quiet hour.
    """
    # Clocks differ from UTC by whole minutes, so all of a minute has one answer.
    until_s = _quiet_until(quiet.start, quiet.end, person_zone, quiet.timezone, int(at_s // 60))
    return at_s if until_s is None else until_s


@lru_cache(maxsize=4096)
def _quiet_until(
    start: str, stop: str, person_zone: str, timezone: str, minute: int
) -> float | None:
    """When the quiet hours end in which a minute since 1970 lies; None if it lies in none."""
    quiet, at_s = QuietHours(start, stop, timezone), 60.0 * minute
    zone = zone_of(person_zone) if person_zone else None
    zone = zone or zone_of(timezone) or ZoneInfo("UTC")
    if not is_quiet(quiet, zone, at_s):
        return None
    today = datetime.fromtimestamp(at_s, zone).date()
    end = _clock(stop)
    for days in range(3):
        shown = datetime.combine(today + timedelta(days=days), end, zone)
        # A clock that was put back shows `end` twice, and may be quiet again in between.
        times = {shown.timestamp(), shown.replace(fold=1).timestamp()}
        later = [at for at in sorted(times) if at >= at_s and not is_quiet(quiet, zone, at)]
        if later:
            return later[0]
    raise AssertionError("quiet hours end every day")


def local_time(person_zone: str, at_s: float) -> datetime:
    """What the clock shows where the person is; in UTC if the zone is none."""
    zone = zone_of(person_zone) if person_zone else None
    return datetime.fromtimestamp(at_s, zone or UTC)


@lru_cache(maxsize=2048)
def _clock(text: str) -> time:
    return time(int(text[:2]), int(text[3:]))
