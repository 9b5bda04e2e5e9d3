"""A network that misbehaves: a TCP proxy whose directions can stand still, lag, or be cut.

TCP repairs lost packets by itself, so a lossy network shows as answers that come late or never:
a direction that is held keeps its bytes, as an unanswered sender does, until it is let go or cut.
"""

from __future__ import annotations

import asyncio


class Direction:
    """One way of the traffic. `flows` is cleared while nothing passes; a piece takes `delay_s`."""

    def __init__(self) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self.delay_s = 0.0


class TcpProxy:
    """Listens on a port of loopback and passes everything on to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.there = Direction()
        self.back = Direction()
        self.port = 0
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> TcpProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections; what was held is lost."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        for source, sink, direction in (
            (reader, there_writer, self.there),
            (there_reader, writer, self.back),
        ):
            self._writers.add(sink)
            pump = asyncio.create_task(self._pump(source, sink, direction))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction
    ) -> None:
        try:
            while data := await source.read(1 << 16):
                if direction.delay_s:
                    await asyncio.sleep(direction.delay_s)
                await direction.flows.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(sink)
            sink.transport.abort()
