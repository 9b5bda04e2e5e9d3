"""Where documents are changed: checked, put in order, and answered when every shard has them.

A part of the coordinator, which lends it the lock that orders all updates and the way to shards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from actors.documents import Change, Documents, Stored
from actors.kinds import KINDS
from cluster.errors import RequestError


class DocumentAnswer(msgspec.Struct, rename="camel", omit_defaults=True):
    """One version of a document, or what a put made or would make of it.

    changes  the fields that differ from the version before; only a put and a dry run tell
    """

    id: str
    kind: str
    version: int
    changed_at: int
    document: msgspec.Raw
    changes: list[Change] | None = None
    dry_run: bool = False


class DocumentsAnswer(msgspec.Struct):
    """All documents of a kind, by id."""

    documents: list[DocumentAnswer]


class DocumentDeleted(msgspec.Struct):
    """A document is gone from every shard."""

    id: str
    kind: str
    version: int
    deleted: bool = True


class DocumentDesk:
    """Documents of all tenants, as the coordinator knows them.

    updates  held while a change is checked and spread, so that shards see one order
    spread   gives a version to every shard; returns when all have it durably
    now      the clock, seconds since 1970
    ready    raises ReadOnly while shards can't take a change
    """

    def __init__(
        self,
        updates: asyncio.Lock,
        spread: Callable[[str, list[Stored]], Awaitable[None]],
        now: Callable[[], float],
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._updates = updates
        self._spread = spread
        self._now = now
        self._ready = ready
        self.tenants: dict[str, Documents] = {}

    def of(self, tenant: str) -> Documents:
        """The documents of a tenant, made when it is first named."""
        if tenant not in self.tenants:
            self.tenants[tenant] = Documents(KINDS)
        return self.tenants[tenant]

    def adopt(self, tenant: str, dump: list[Stored]) -> None:
        """Learn what a shard has that outlived us: of each document the latest version."""
        documents = self.of(tenant)
        for stored in sorted(dump, key=lambda one: one.version):
            documents.apply(stored)

    def missing(self, tenant: str, has: list[Stored]) -> list[Stored]:
        """The versions that a shard with `has` does not have yet."""
        known = set(has)
        return [stored for stored in self.of(tenant).dump() if stored not in known]

    async def put(
        self,
        tenant: str,
        kind: str,
        document_id: str,
        content: bytes,
        expected: int | None,
        dry_run: bool,
    ) -> DocumentAnswer:
        """Put a document; what is there already in the same words stays the version it is.

        expected  the version that must be there now (0 = none), None = any
        Raises RequestError if it can't be used, and 412 if another version is there.
        """
        async with self._updates:
            documents = self.of(tenant)
            _match(documents.version(kind, document_id), expected)
            stored = documents.checked(kind, document_id, content, self._now())
            changes = documents.changes(stored)
            before = documents.stored(kind, document_id)
            if before is not None and not changes:
                stored = before
            elif not dry_run:
                await self._check_ready()
                documents.apply(stored)
                await self._spread(tenant, [stored])
        return _answer(documents, stored, changes, dry_run)

    async def delete(
        self, tenant: str, kind: str, document_id: str, expected: int | None
    ) -> DocumentDeleted:
        """Delete a document. Raises RequestError: 404, 409 if another needs it, 412 as `put`."""
        async with self._updates:
            documents = self.of(tenant)
            stored = documents.deleted(kind, document_id, self._now())
            _match(documents.version(kind, document_id), expected)
            await self._check_ready()
            documents.apply(stored)
            await self._spread(tenant, [stored])
        return DocumentDeleted(document_id, kind, stored.version)

    def get(self, tenant: str, kind: str, document_id: str, version: int | None) -> DocumentAnswer:
        """A version of a document, None = the newest. Raises RequestError 404."""
        stored = self.of(tenant).stored(kind, document_id, version)
        if stored is None:
            raise RequestError(404, f"there is no such document in {kind}", "id", document_id)
        return _answer(self.of(tenant), stored, None, False)

    def all_of(self, tenant: str, kind: str) -> DocumentsAnswer:
        """All documents of a kind."""
        documents = self.of(tenant)
        found = [_answer(documents, one, None, False) for one in documents.newest(kind)]
        return DocumentsAnswer(found)

    async def _check_ready(self) -> None:
        if self._ready is not None:
            await self._ready()


def _answer(documents: Documents, stored: Stored, changes: Any, dry_run: bool) -> DocumentAnswer:
    return DocumentAnswer(
        stored.document_id,
        stored.kind,
        stored.version,
        stored.time_s,
        msgspec.Raw(documents.shown(stored)),
        changes,
        dry_run,
    )


def _match(version: int, expected: int | None) -> None:
    if expected is not None and version != expected:
        raise RequestError(
            412, "the document has another version", "If-Match", str(expected), str(version)
        )
