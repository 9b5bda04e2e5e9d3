"""A shard with a small shop and documents, its log kept in memory, and a clock to be set."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from actors import records
from actors.messages import Item
from actors.people import Caller, person_key
from actors.shard import Shard
from cluster.config import Config
from cluster.frames import Op
from cluster.keys import HASH_SPACE, KeyRange
from tests.actors.list_journal import ListJournal

SERVER = Caller("s", "default")
START_S = 1_790_000_000
CONFIG = Config(profiles_max=4096, profile_bytes_max=1 << 24, items_max=256)


class Shop:
    """One shard of tenant "default"; with the same seed the same calls have the same answers."""

    def __init__(self, seed: int = 1) -> None:
        self.now_s = float(START_S)
        rng = np.random.default_rng(seed)
        self.shard = Shard("0", KeyRange(0, HASH_SPACE), CONFIG, now=lambda: self.now_s, rng=rng)
        self.journal = ListJournal()
        self.shard.journal = self.journal  # type: ignore[assignment]
        items = [
            Item(f"p{i}", {"price": 10.0 * (i + 1), "cost": 6.0 * (i + 1), "category": "c"})
            for i in range(8)
        ]
        self.shard.put_items("default", msgspec.json.encode(items))
        self.tenant = self.shard.tenant("default")

    def put(self, kind: str, document_id: str, **fields: Any) -> None:
        """Put a document, as the coordinator does."""
        content = msgspec.json.encode(fields)
        stored = self.tenant.documents.checked(kind, document_id, content, self.now_s)
        self.shard.put_documents("default", [stored])

    def ask(self, op: Op, **fields: Any) -> dict[str, Any]:
        """One request that must succeed."""
        status, body = self.shard.handle(op, SERVER, msgspec.json.encode(fields), 0)
        answer: dict[str, Any] = msgspec.json.decode(body)
        assert status == 200, answer
        return answer

    def decide(self, person: str, *decisions: dict[str, Any], **fields: Any) -> list[Any]:
        """The decisions for a person; none may be the baseline for want of a better."""
        answer = self.ask(Op.DECIDE, userId=person, decisions=list(decisions), **fields)
        assert answer["degraded"] is False
        made: list[Any] = answer["decisions"]
        return made

    def ledger(self, person: str) -> Any:
        """What the shard remembers of a person, as GET /v1/profiles tells it."""
        return self.ask(Op.PROFILE_GET, userId=person)["ledger"]

    def replayed(self) -> Shard:
        """A shard made from the log alone."""
        again = Shard("0", KeyRange(0, HASH_SPACE), CONFIG, now=lambda: 0.0)
        for record in self.journal.records:
            again.replay(records.decode(record))
        return again


def key_of(person: str) -> bytes:
    return person_key(SERVER, person, None)
