"""Nodes of one process: a data folder each, real files and sockets, no Ray."""

from __future__ import annotations

from pathlib import Path

import msgspec

from actors.backup import Backups
from actors.copies import CopyFolder, CopyFound, CopyState, copies_here, remove_copy
from cluster.config import Config
from cluster.errors import Unavailable

SECRET = b"s" * 32


class LocalNodes:
    """`Nodes` over folders below `root`: "n0", "n1", ..."""

    def __init__(self, root: Path, count: int, config: Config | None = None) -> None:
        base = config or Config(profiles_max=4096, profile_bytes_max=1 << 22, items_max=64)
        self.configs = {
            f"n{number}": msgspec.structs.replace(base, data_dir=str(root / f"n{number}"))
            for number in range(count)
        }
        self.dead: set[str] = set()
        self.backups: dict[str, Backups] = {}

    def alive(self) -> list[str]:
        return [node_id for node_id in self.configs if node_id not in self.dead]

    def folder(self, node_id: str, copy_id: str, shard_id: str = "0") -> CopyFolder:
        return CopyFolder(self.configs[node_id], shard_id, copy_id)

    async def copies(self, node_id: str) -> list[CopyFound]:
        return copies_here(self._config(node_id))

    async def create(self, node_id: str, shard_id: str, copy_id: str, state: CopyState) -> None:
        CopyFolder(self._config(node_id), shard_id, copy_id).create(state)

    async def remove(self, node_id: str, shard_id: str, copy_id: str) -> None:
        if node_id in self.backups:
            self.backups[node_id].drop(shard_id, copy_id)
        remove_copy(self._config(node_id), shard_id, copy_id)

    async def follow(
        self, node_id: str, shard_id: str, copy_id: str, made_for: int | None
    ) -> tuple[str, int]:
        config = self._config(node_id)
        if node_id not in self.backups:
            self.backups[node_id] = Backups(config, SECRET)
            await self.backups[node_id].start("127.0.0.1")
        self.backups[node_id].open(shard_id, copy_id, made_for)
        return self.backups[node_id].address

    async def release(self, node_id: str, shard_id: str, copy_id: str, epoch: int) -> float:
        return await self.backups[node_id].release(shard_id, copy_id, epoch)

    async def check(self, node_id: str) -> None:
        self._config(node_id)

    async def kill(self, node_id: str, pid: int) -> None:
        raise AssertionError("nothing here may be killed")

    async def close(self) -> None:
        for backups in self.backups.values():
            await backups.close()

    def _config(self, node_id: str) -> Config:
        if node_id in self.dead:
            raise Unavailable(f"{node_id} is dead")
        return self.configs[node_id]
