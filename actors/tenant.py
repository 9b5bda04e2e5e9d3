"""What one tenant has on one shard: catalogue, event names and policies."""

from __future__ import annotations

from actors.catalogue import Catalogue
from actors.engine.engine import NextAction
from actors.engine.vector import VectorPolicy
from actors.events import EventTypes
from actors.store import ProfileStore
from cluster.config import Config


class Tenant:
    """State of one tenant. Profiles are in the shard's store, told apart by their key hash."""

    def __init__(self, name: str, store: ProfileStore, config: Config) -> None:
        self.name = name
        self.catalogue = Catalogue(config.items_max)
        self.event_types = EventTypes()
        self.engine = NextAction(
            store,
            self.catalogue,
            config.items_max,
            config.profiles_max,
            session_gap_s=config.session_gap_s,
        )
        self.vector = VectorPolicy(store, self.catalogue, config.items_max)
