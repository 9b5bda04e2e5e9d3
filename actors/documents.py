"""Versioned documents of one tenant: policies, guardrails, offers, flags, triggers and the like.

The coordinator orders changes and every shard holds all documents, so a decision reads them
without asking anybody. A document's version grows by one with every change, also when it is
deleted, so of two states of one document the later is known by its version alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from actors.checked import refusal
from cluster.errors import RequestError

DOCUMENT_BYTES_MAX = 64 << 10
DOCUMENTS_MAX = 1000
"""Documents of one kind that a tenant may have, deleted ones included."""
VERSIONS_MAX = 5
"""Versions of a document that are kept, the newest among them."""
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

DocumentId = Annotated[str, Meta(pattern=ID_PATTERN)]
"""Ids appear in paths, ledgers and records: short, and no character needs escaping."""

HIDDEN = "(not shown)"

T = TypeVar("T")


class Stored(msgspec.Struct, array_like=True, frozen=True):
    """One version of a document. content is its JSON, b"" if it was deleted by that version."""

    kind: str
    document_id: str
    version: int
    time_s: int
    content: bytes


class Kind(NamedTuple):
    """A kind of document: its name, as in /v1/{name}; its type; and what the type can't say.

    check  called with the document, its id and the other documents; raises RequestError naming
           the field if it can't be used as it is
    secrets  fields that nobody is shown
    """

    name: str
    type: type[msgspec.Struct]
    check: Callable[[Any, str, Documents], None] | None = None
    secrets: tuple[str, ...] = ()


class Change(msgspec.Struct, rename="camel", omit_defaults=True):
    """One field that a put would change, as a path, with both values."""

    field: str
    before: Any = None
    after: Any = None


class Documents:
    """All documents of one tenant. Changed by `apply` only, which takes what was checked."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self.kinds = {kind.name: kind for kind in kinds}
        self.generation = 0
        """Counts changes; whoever derives something from documents derives it anew after one."""
        self._versions: dict[tuple[str, str], list[Stored]] = {}
        self._decoded: dict[str, dict[str, Any]] = {name: {} for name in self.kinds}
        self._derived: dict[Callable[[Documents], Any], tuple[int, Any]] = {}
        self._decoders = {
            name: msgspec.json.Decoder(kind.type) for name, kind in self.kinds.items()
        }

    def of(self, kind: str) -> dict[str, Any]:
        """All living documents of a kind by id, decoded. Not to be changed."""
        return self._decoded[kind]

    def get(self, kind: str, document_id: str) -> Any | None:
        """A living document, decoded; None if there is none."""
        return self._decoded[kind].get(document_id)

    def derived(self, build: Callable[[Documents], T]) -> T:
        """What `build` makes of all documents, made again only after a document has changed."""
        kept = self._derived.get(build)
        if kept is not None and kept[0] == self.generation:
            made: T = kept[1]
            return made
        made = build(self)
        self._derived[build] = (self.generation, made)
        return made

    def version(self, kind: str, document_id: str) -> int:
        """The present version, 0 if there is no living document."""
        kept = self._versions.get((kind, document_id))
        return kept[-1].version if kept and kept[-1].content else 0

    def stored(self, kind: str, document_id: str, version: int | None = None) -> Stored | None:
        """A version of a document, None = the newest; None if it is deleted or not kept."""
        kept = self._versions.get((kind, document_id), [])
        found = [one for one in kept if version in (None, one.version)]
        return found[-1] if found and found[-1].content else None

    def newest(self, kind: str) -> list[Stored]:
        """The newest versions of all living documents of a kind, by id."""
        versions = (self._versions[kind, document_id][-1] for document_id in self._decoded[kind])
        return sorted(versions, key=lambda stored: stored.document_id)

    def checked(self, kind: str, document_id: str, content: bytes, now_s: float) -> Stored:
        """The next version of a document, checked and in its shortest form; nothing changes.

        content  JSON; `id` inside must be the document's, if it is there
        Raises RequestError naming the field.
        """
        if len(content) > DOCUMENT_BYTES_MAX:
            seen, wanted = f"{len(content)} bytes", f"at most {DOCUMENT_BYTES_MAX} bytes"
            raise RequestError(413, "the document is too large", "", seen, wanted)
        try:
            content.decode()
            document = self._decoders[kind].decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise refusal(error, content) from None
        _check_id(document_id, getattr(document, "id", None))
        check = self.kinds[kind].check
        if check is not None:
            check(document, document_id, self)
        kept = self._versions.get((kind, document_id))
        if kept is None and self._count(kind) >= DOCUMENTS_MAX:
            raise RequestError(
                409, "there are too many documents", "id", kind, f"at most {DOCUMENTS_MAX}"
            )
        version = kept[-1].version + 1 if kept else 1
        return Stored(kind, document_id, version, int(now_s), msgspec.json.encode(document))

    def deleted(self, kind: str, document_id: str, now_s: float) -> Stored:
        """The version by which a document is deleted; nothing changes.

        Raises RequestError: 404 if there is none, 409 if another document needs it.
        """
        version = self.version(kind, document_id)
        if not version:
            raise RequestError(404, f"there is no such document in {kind}", "id", document_id)
        gone = self._decoded[kind].pop(document_id)
        try:
            self._check_all()
        except RequestError as error:
            raise RequestError(
                409, f"another document needs it: {error}", "id", document_id
            ) from None
        finally:
            self._decoded[kind][document_id] = gone
        return Stored(kind, document_id, version + 1, int(now_s), b"")

    def apply(self, stored: Stored) -> bool:
        """Take over a version, unless a later one is here already. Returns whether it was new."""
        if stored.kind not in self.kinds:
            return False  # Written by a later release, which will know it again.
        kept = self._versions.setdefault((stored.kind, stored.document_id), [])
        if kept and kept[-1].version >= stored.version:
            return False
        kept.append(stored)
        del kept[:-VERSIONS_MAX]
        if stored.content:
            document = self._decoders[stored.kind].decode(stored.content)
            self._decoded[stored.kind][stored.document_id] = document
        else:
            self._decoded[stored.kind].pop(stored.document_id, None)
        self.generation += 1
        return True

    def changes(self, stored: Stored) -> list[Change]:
        """What a version would change in the newest one, field by field."""
        before = self.stored(stored.kind, stored.document_id)
        old = msgspec.json.decode(before.content) if before else {}
        secrets = self.kinds[stored.kind].secrets
        return [
            Change(one.field, HIDDEN, HIDDEN) if one.field in secrets else one
            for one in _differences("", old, msgspec.json.decode(stored.content))
        ]

    def shown(self, stored: Stored) -> bytes:
        """A version's content as JSON, without what nobody is shown."""
        secrets = self.kinds[stored.kind].secrets
        if not secrets:
            return stored.content
        content = msgspec.json.decode(stored.content)
        hidden = {name: HIDDEN for name in secrets if name in content}
        return msgspec.json.encode(content | hidden)

    def dump(self) -> list[Stored]:
        """All kept versions, for `apply` one by one; oldest of each document first."""
        return [stored for kept in self._versions.values() for stored in kept]

    def check(self) -> None:
        """Prove the structure whole; O(n). Raises AssertionError: only a bug can break it."""
        for (kind, document_id), kept in self._versions.items():
            versions = [stored.version for stored in kept]
            assert versions == sorted(set(versions)), (kind, document_id, versions)
            assert (document_id in self._decoded[kind]) == bool(kept[-1].content)
        living = sum(len(documents) for documents in self._decoded.values())
        assert living == sum(bool(kept[-1].content) for kept in self._versions.values())

    def _count(self, kind: str) -> int:
        return sum(name == kind for name, _ in self._versions)

    def _check_all(self) -> None:
        for name, documents in self._decoded.items():
            check = self.kinds[name].check
            for document_id, document in documents.items() if check else ():
                assert check is not None
                try:
                    check(document, document_id, self)
                except RequestError as error:
                    error.field = f"{name}/{document_id} {error.field}"
                    raise


def must_exist(documents: Documents, kind: str, document_id: str | None, field: str) -> None:
    """For checks: raises RequestError unless the document that a field names is there."""
    if document_id is not None and documents.get(kind, document_id) is None:
        raise RequestError(
            422, f"there is no such document in {kind}", field, repr(document_id), "one put before"
        )


def _check_id(document_id: str, inside: str | None) -> None:
    try:
        msgspec.convert(document_id, DocumentId)
    except msgspec.ValidationError:
        wanted = "1 to 64 of A-Z a-z 0-9 . _ -, the first no sign"
        raise RequestError(422, "the id is not usable", "id", document_id, wanted) from None
    if inside is not None and inside != document_id:
        raise RequestError(422, "the id differs from the path's", "id", inside, document_id)


def _differences(field: str, before: Any, after: Any) -> Iterable[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            path = f"{field}.{name}" if field else name
            yield from _differences(path, before.get(name), after.get(name))
    elif before != after:
        yield Change(field, before, after)
