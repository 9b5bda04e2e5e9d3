"""A ledger comes back as it was, stays small, and gives up first what matters least."""

from __future__ import annotations

import msgspec
import pytest

from actors.ledger import (
    LEDGER_BYTES_MAX,
    Consent,
    Contact,
    Count,
    Exposure,
    Ledger,
    OpenLedger,
    Quote,
    Sticky,
    expire,
    pack,
    shown,
    unpack,
)
from actors.store import ProfileStore
from cluster.errors import RequestError


def test_nothing_takes_no_bytes_and_comes_back():
    assert pack(Ledger(), 0) == b""
    assert unpack(b"") == Ledger()


def test_a_ledger_comes_back_as_it_was():
    ledger = Ledger(
        quotes=[Quote("q", "offer", "high", "p1", 9_990_000, 50)],
        caps={"offers/a": Count(0, 60, 2)},
        sticky={"flags/f": Sticky("blue")},
        consents={"ads": Consent(False, 7)},
        contacts=[Contact(1, "push", "cart")],
    )
    assert unpack(pack(ledger, 0)) == ledger
    assert shown(ledger)["sticky"] == {"flags/f": {"variant": "blue", "until_s": 0, "session": 0}}
    assert "timers" not in shown(ledger)


def test_a_ledger_of_a_release_that_knew_less_is_read():
    older = msgspec.msgpack.encode([[], {"offers/a": [5, 60, 1]}])
    assert unpack(older) == Ledger(caps={"offers/a": Count(5, 60, 1)})


def test_what_has_run_out_leaves():
    ledger = Ledger(
        quotes=[Quote("q", "o", "l", "", 1, 50), Quote("r", "o", "l", "", 1, 51)],
        caps={"a": Count(0, 50, 9), "b": Count(0, 51, 9)},
        sticky={"a": Sticky("x", 50), "b": Sticky("x", 51), "c": Sticky("x")},
    )
    expire(ledger, 50)
    assert [quote.quote_id for quote in ledger.quotes] == ["r"]
    assert list(ledger.caps) == ["b"]
    assert list(ledger.sticky) == ["b", "c"]


def test_to_make_room_exposures_leave_before_assignments_and_consents_never():
    ledger = Ledger(
        caps={"cap": Count(0, 1000, 1)},
        sticky={f"flags/{i}": Sticky("v" * 20) for i in range(40)},
        exposures={f"experiment-{i}": Exposure(1, "v" * 30) for i in range(100)},
        consents={"ads": Consent(False, 7)},
    )
    packed = pack(ledger, 10)
    assert len(packed) <= LEDGER_BYTES_MAX
    left = unpack(packed)
    assert left.caps == {"cap": Count(0, 1000, 1)}
    assert left.consents == {"ads": Consent(False, 7)}
    assert len(left.sticky) == 40
    assert "experiment-99" in left.exposures
    assert "experiment-0" not in left.exposures


def test_what_must_be_kept_and_does_not_fit_is_refused():
    ledger = Ledger(consents={f"purpose-{i}" * 5: Consent(True, 1) for i in range(200)})
    with pytest.raises(RequestError, match="ledger is full"):
        pack(ledger, 0)


def test_only_a_change_is_stored():
    store = ProfileStore(profiles_max=16, profile_bytes_max=1 << 18)
    row = store.ensure(b"k" * 16, 1)
    opened = OpenLedger(store, row)
    assert opened.read() == Ledger()
    assert opened.packed(1) is None
    opened.change().sticky["flags/f"] = Sticky("blue")
    packed = opened.packed(1)
    assert packed
    store.set_ledger(row, packed)
    assert OpenLedger(store, row).read().sticky == {"flags/f": Sticky("blue")}
    store.check()
