from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.schedule import QuietHours, allowed_s, check_quiet, duration_s, is_quiet
from cluster.errors import RequestError

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "UTC")
CLOCK = st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))
# Clocks change within these: spring and autumn of 2026, Europe, America and Lord Howe Island.
YEAR = range(1_767_225_600, 1_798_761_600)
CHANGES = [1_774_746_000, 1_792_890_000, 1_772_953_200, 1_793_512_800, 1_775_314_800]


def stamp(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("at", "zone", "wanted"),
    [
        ("2026-11-23T12:00:00", "Europe/Berlin", "2026-11-23T12:00:00"),
        ("2026-11-23T22:30:00", "Europe/Berlin", "2026-11-24T07:00:00"),
        # The same moment is afternoon in New York.
        ("2026-11-23T22:30:00", "America/New_York", "2026-11-23T22:30:00"),
        # Winter became summer time in this night, so it was an hour shorter.
        ("2026-03-28T22:30:00", "Europe/Berlin", "2026-03-29T06:00:00"),
        ("2026-10-24T22:30:00", "Europe/Berlin", "2026-10-25T07:00:00"),
        # A zone that is none: the document's.
        ("2026-11-23T22:30:00", "Mars/Olympus", "2026-11-24T08:00:00"),
        ("2026-11-23T22:30:00", "../../etc/passwd", "2026-11-24T08:00:00"),
    ],
)
def test_quiet_hours_end_by_the_clock_of_the_person(at: str, zone: str, wanted: str) -> None:
    quiet = QuietHours("22:00", "08:00")
    assert allowed_s(quiet, zone, stamp(at)) == stamp(wanted)


@settings(max_examples=200, deadline=None)
@given(
    start=CLOCK,
    end=CLOCK,
    zone=st.sampled_from(ZONES),
    at=st.one_of(
        st.sampled_from(YEAR),
        st.builds(int.__add__, st.sampled_from(CHANGES), st.integers(-90_000, 90_000)),
    ),
)
@example(start="01:30", end="02:30", zone="Europe/Berlin", at=1_792_890_000 + 600)
@example(start="01:30", end="02:30", zone="Europe/Berlin", at=1_774_746_000 - 600)
def test_it_is_never_quiet_at_the_time_that_is_given(
    start: str, end: str, zone: str, at: int
) -> None:
    if start == end:
        return
    quiet, info = QuietHours(start, end), ZoneInfo(zone)
    found = allowed_s(quiet, zone, at)
    assert found >= at
    assert not is_quiet(quiet, info, found)
    # Minute by minute: nothing allowed was passed over, but for the hour that a clock may skip.
    first = next((m for m in range(at, int(found), 60) if not is_quiet(quiet, info, m)), found)
    assert found - first <= 3600


def test_durations_are_read_and_bounded() -> None:
    assert duration_s("PT30M", "f") == 1800
    assert duration_s("P1DT2H3M4S", "f") == 93_784
    assert duration_s("PT0S", "f", 0) == 0
    for bad in ("", "P", "PT", "30M", "PT0S", "P183D", "P1M", "PT1.5S", "-PT1S", "P1DT"):
        with pytest.raises(RequestError, match="f: the duration is not usable"):
            duration_s(bad, "f")


def test_quiet_hours_that_never_end_or_lie_nowhere_are_refused() -> None:
    with pytest.raises(RequestError) as refused:
        check_quiet(QuietHours("08:00", "08:00"), "quietHours")
    assert refused.value.field == "quietHours.end"
    with pytest.raises(RequestError) as refused:
        check_quiet(QuietHours("22:00", "08:00", "Berlin"), "quietHours")
    assert refused.value.field == "quietHours.timezone"
