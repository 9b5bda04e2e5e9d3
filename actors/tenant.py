"""What one tenant has on one shard: catalogue, documents, books, event names and policies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actors.books import Books
from actors.catalogue import Catalogue
from actors.context import ContextCounts
from actors.documents import Documents
from actors.engine.engine import NextAction
from actors.engine.vector import VectorPolicy
from actors.events import EventTypes
from actors.filters import Mask, Values, evaluate, parse
from actors.kinds import KINDS
from actors.store import ProfileStore
from actors.treatment.policy import Policy, policies
from actors.treatment.treatment import Treatment
from cluster.config import Config

MASKS_MAX = 128
"""Filters whose items are remembered."""


class Tenant:
    """State of one tenant. Profiles are in the shard's store, told apart by their key hash."""

    def __init__(self, name: str, store: ProfileStore, config: Config) -> None:
        self.name = name
        self.catalogue = Catalogue(config.items_max)
        self.event_types = EventTypes()
        self.documents = Documents(KINDS)
        self.books = Books()
        self.treatment = Treatment()
        self.engine = NextAction(
            store,
            self.catalogue,
            config.items_max,
            config.profiles_max,
            session_gap_s=config.session_gap_s,
        )
        self.context = ContextCounts()
        self.vector = VectorPolicy(store, self.catalogue, config.items_max)
        self.treatment = Treatment()
        self._masks: dict[tuple[str, str], tuple[int, Mask]] = {}

    def policy(self, policy_id: str) -> Policy | None:
        """The policy that a document describes; None if there is none."""
        return self.documents.derived(policies).get(policy_id)

    def passing(self, text: str, values: Values, field: str) -> Mask:
        """Which items pass a filter, bool [n]; kept until the catalogue changes.

        Raises RequestError naming `field` if the filter can't be read.
        """
        key = (text, repr(sorted(values.items())))
        kept = self._masks.get(key)
        if kept is not None and kept[0] == self.catalogue.version:
            return kept[1]
        mask = evaluate(parse(text, values, field), self.catalogue)
        if len(self._masks) >= MASKS_MAX:
            self._masks.clear()
        self._masks[key] = (self.catalogue.version, mask)
        return mask

    def popular(self, mask: Mask, count: int) -> NDArray[np.int32]:
        """The most popular items that pass a mask and are alive, at most `count`, int32."""
        n = self.catalogue.n
        found = np.flatnonzero(mask & (self.catalogue.alive[:n] != 0)).astype(np.int32)
        if len(found) > count:
            counts = self.engine.counts[found]
            found = found[np.argpartition(-counts, count)[:count]]
        return found
