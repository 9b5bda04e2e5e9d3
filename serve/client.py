"""The SDK: `Client` is async, `SyncClient` the same for threads.

with SyncClient("http://127.0.0.1:8000", "sk_...") as client:
    answer = client.decide(user_id="ada", decisions=[{"surface": "content"}])
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from serve.client_async import Client
from serve.client_http import ApiError

__all__ = ["ApiError", "Client", "SyncClient"]

P = ParamSpec("P")
T = TypeVar("T")


def _threaded(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncClient, P], T]:
    """The method for threads: runs in the client's loop, returns when done."""

    @wraps(method)
    def call(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._client, *args, **kwargs))

    return call


class SyncClient:
    """`Client` for threads: the same settings and methods, in an event loop of its own thread."""

    def __init__(self, url: str, api_key: str = "", **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = Client(url, api_key, **settings)
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="onehop-client", daemon=True
        )
        self._thread.start()

    start = _threaded(Client.start)
    decide = _threaded(Client.decide)
    decide_raw = _threaded(Client.decide_raw)
    track = _threaded(Client.track)
    identify = _threaded(Client.identify)
    page = _threaded(Client.page)
    batch = _threaded(Client.batch)
    profile = _threaded(Client.profile)
    delete_profile = _threaded(Client.delete_profile)
    put_items = _threaded(Client.put_items)
    put_document = _threaded(Client.put_document)
    decision = _threaded(Client.decision)

    @property
    def is_direct(self) -> bool:
        """Whether requests go straight to the owners at present."""
        return self._client.is_direct

    def close(self) -> None:
        """End all connections and the thread; open requests fail."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
