"""Two nodes and two shards for the edge: reshapes are only remembered, and refused as really."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.errors import RequestError

FIRST, SECOND = "a1" * 28, "b2" * 28


class FakeFleet:
    def __init__(self) -> None:
        self.wishes: list[dict[str, Any]] = []
        self.begun: list[dict[str, Any]] = []
        self.nodes = [
            {
                "nodeId": node_id,
                "address": f"10.0.0.{number}",
                "cpus": 4.0,
                "memoryBytes": 8 << 30,
                "shards": [str(number)],
                "copies": [],
                "draining": False,
                "shardsLeft": 0,
                "copiesLeft": 0,
            }
            for number, node_id in enumerate((FIRST, SECOND))
        ]

    def reshape(self, wish: dict[str, Any]) -> bytes:
        for shard in wish["shards"]:
            if shard not in ("0", "1"):
                raise RequestError(404, "there is no such shard", "id", shard)
        if wish["kind"] == "merge" and wish["shards"] == ["1", "0"]:
            raise RequestError(409, "the shards do not lie side by side", "shards")
        self.wishes.append(wish)
        nodes = wish.get("nodeIds") or [SECOND] * (2 if wish["kind"] == "split" else 1)
        targets = [
            {"shardId": f"{2 + at}", "start": "0", "stop": "8", "nodeId": node}
            for at, node in enumerate(nodes)
        ]
        state = {
            "id": f"r{len(self.begun)}",
            "kind": wish["kind"],
            "sources": wish["shards"],
            "targets": targets,
            "step": "copy",
            "reason": "",
            "startedAt": 1_790_000_000.0,
            "seconds": 0.0,
            "frozenSeconds": 0.0,
        }
        self.begun.append(state)
        return msgspec.json.encode(state)

    def abort(self, reshape_id: str) -> bytes | None:
        for state in self.begun:
            if state["id"] == reshape_id:
                if state["step"] in ("swap", "forward", "done"):
                    raise RequestError(409, "it is decided already", "id", reshape_id)
                state["step"] = "abort"
                return msgspec.json.encode(state)
        return None

    def drain(self, node_id: str) -> bytes:
        self.set_draining(node_id, True)
        return b"[%b]" % self.reshape({"kind": "move", "shards": ["0"]})

    def set_draining(self, node_id: str, draining: bool) -> None:
        (node,) = [one for one in self.nodes if one["nodeId"] == node_id]
        node["draining"] = draining
