"""What an acknowledgement means: how far a change has come before its answer leaves. Pure."""

from __future__ import annotations

from typing import Literal

Level = Literal["memory", "disk", "replica"]
"""memory: applied; disk: also flushed on the owner's node; replica: also on another node's."""
LEVELS: tuple[Level, ...] = ("memory", "disk", "replica")
