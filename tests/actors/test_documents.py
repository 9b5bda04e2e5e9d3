"""Documents: versions, checks that name the field, and the same state on whoever applies them."""

from __future__ import annotations

import asyncio
import random
from typing import Annotated, Any

import msgspec
import pytest

from actors.document_desk import DocumentDesk
from actors.documents import DOCUMENT_BYTES_MAX, VERSIONS_MAX, Documents, Kind, Stored, must_exist
from actors.messages import Strict
from cluster.errors import RequestError


class Limit(Strict):
    top: Annotated[float, msgspec.Meta(ge=0)]
    id: str | None = None


class Offer(Strict):
    limit: str


def check_offer(offer: Offer, document_id: str, documents: Documents) -> None:
    must_exist(documents, "limits", offer.limit, "limit")


KINDS = (Kind("limits", Limit), Kind("offers", Offer, check_offer))


def put(documents: Documents, kind: str, document_id: str, content: bytes) -> Stored:
    stored = documents.checked(kind, document_id, content, 7.0)
    assert documents.apply(stored)
    documents.check()
    return stored


def refused(act: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        act()
    return caught.value


def test_a_document_is_read_back_typed_and_its_version_grows():
    documents = Documents(KINDS)
    assert put(documents, "limits", "a", b'{"top": 5}').version == 1
    assert documents.get("limits", "a") == Limit(5.0)
    assert put(documents, "limits", "a", b'{"top": 6}').version == 2
    assert documents.of("limits") == {"a": Limit(6.0)}


def test_an_error_names_the_field_the_value_and_what_is_wanted():
    documents = Documents(KINDS)
    error = refused(lambda: documents.checked("limits", "a", b'{"top": -1}', 0))
    assert (error.status, error.field, error.seen) == (422, "top", "-1")
    error = refused(lambda: documents.checked("limits", "a", b'{"top": 1, "tpo": 2}', 0))
    assert "tpo" in str(error)
    error = refused(lambda: documents.checked("offers", "o", b'{"limit": "none"}', 0))
    assert (error.field, error.seen) == ("limit", "'none'")
    error = refused(lambda: documents.checked("limits", "a b", b'{"top": 1}', 0))
    assert error.field == "id"
    error = refused(lambda: documents.checked("limits", "a", b'{"top": 1, "id": "b"}', 0))
    assert (error.field, error.seen, error.wanted) == ("id", "b", "a")
    large = b'{"top": 1' + b" " * DOCUMENT_BYTES_MAX + b"}"
    assert refused(lambda: documents.checked("limits", "a", large, 0)).status == 413
    assert refused(lambda: documents.checked("limits", "a", b'{"top": "\xff"}', 0)).status == 400


def test_a_document_that_another_needs_is_not_deleted():
    documents = Documents(KINDS)
    put(documents, "limits", "a", b'{"top": 5}')
    put(documents, "offers", "o", b'{"limit": "a"}')
    error = refused(lambda: documents.deleted("limits", "a", 0))
    assert error.status == 409
    assert "offers/o limit" in str(error)
    assert documents.get("limits", "a") == Limit(5.0)
    documents.apply(documents.deleted("offers", "o", 0))
    documents.apply(documents.deleted("limits", "a", 0))
    documents.check()
    assert documents.of("limits") == {}


def test_versions_go_on_after_a_deletion_and_only_the_last_are_kept():
    documents = Documents(KINDS)
    put(documents, "limits", "a", b'{"top": 0}')
    documents.apply(documents.deleted("limits", "a", 0))
    assert documents.stored("limits", "a") is None
    assert refused(lambda: documents.deleted("limits", "a", 0)).status == 404
    for i in range(3, 12):
        assert put(documents, "limits", "a", b'{"top": %d}' % i).version == i
    kept = [stored.version for stored in documents.dump()]
    assert kept == list(range(11, 11 - VERSIONS_MAX, -1))[::-1]
    old = documents.stored("limits", "a", 9)
    assert old is not None
    assert msgspec.json.decode(old.content) == {"top": 9.0}


def test_a_derivation_is_made_anew_only_after_a_change():
    documents = Documents(KINDS)
    made = []

    def tops(every: Documents) -> list[float]:
        made.append(1)
        return [limit.top for limit in every.of("limits").values()]

    assert documents.derived(tops) == []
    assert documents.derived(tops) == []
    put(documents, "limits", "a", b'{"top": 5}')
    assert documents.derived(tops) == [5.0]
    assert documents.derived(tops) == [5.0]
    assert len(made) == 2


def test_whoever_applies_the_same_versions_in_any_order_and_number_holds_the_same():
    generator = random.Random(3)
    first = Documents(KINDS)
    history = []
    for _ in range(60):
        name = generator.choice("abc")
        if first.version("limits", name) and generator.random() < 0.3:
            stored = first.deleted("limits", name, 1)
        else:
            content = b'{"top": %d}' % generator.randrange(5)
            stored = first.checked("limits", name, content, 1)
        first.apply(stored)
        history.append(stored)
    second = Documents(KINDS)
    for stored in generator.choices(history, k=200) + history:
        second.apply(stored)
    second.check()
    assert second.of("limits") == first.of("limits")
    third = Documents(KINDS)
    for stored in first.dump():
        third.apply(stored)
    assert third.dump() == first.dump()


def test_a_kind_of_a_later_release_does_not_stop_a_replay():
    assert not Documents(KINDS).apply(Stored("wishes", "a", 1, 0, b"{}"))


def with_desk() -> tuple[DocumentDesk, list[tuple[str, list[Stored]]]]:
    sent: list[tuple[str, list[Stored]]] = []

    async def spread(tenant: str, versions: list[Stored]) -> None:
        sent.append((tenant, versions))

    return DocumentDesk(asyncio.Lock(), spread, lambda: 9.0), sent


def test_a_dry_run_says_what_would_change_and_changes_nothing():
    async def act() -> None:
        desk, sent = with_desk()
        made = await desk.put("t", "holdouts", "h", b'{"percent": 5}', None, True)
        assert (made.version, made.dry_run, sent) == (1, True, [])
        await desk.put("t", "holdouts", "h", b'{"percent": 5}', None, False)
        dry = await desk.put("t", "holdouts", "h", b'{"percent": 6}', None, True)
        assert dry.changes is not None
        assert [(c.field, c.before, c.after) for c in dry.changes] == [("percent", 5.0, 6.0)]
        assert desk.get("t", "holdouts", "h", None).version == 1
        assert len(sent) == 1

    asyncio.run(act())


def test_the_same_words_again_are_no_new_version_and_another_version_is_not_overwritten():
    async def act() -> None:
        desk, sent = with_desk()
        await desk.put("t", "holdouts", "h", b'{"percent": 5}', 0, False)
        again = await desk.put("t", "holdouts", "h", b'{"percent": 5.0}', None, False)
        assert (again.version, len(sent)) == (1, 1)
        with pytest.raises(RequestError) as caught:
            await desk.put("t", "holdouts", "h", b'{"percent": 6}', 0, False)
        assert (caught.value.status, caught.value.seen, caught.value.wanted) == (412, "0", "1")
        with pytest.raises(RequestError):
            await desk.delete("t", "holdouts", "h", 2)
        assert (await desk.delete("t", "holdouts", "h", 1)).version == 2
        assert desk.all_of("t", "holdouts").documents == []

    asyncio.run(act())
