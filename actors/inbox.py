"""Messages on their way to open pages: which page of whom is reached over which connection.

A gateway subscribes on behalf of a page and renews that; a subscription that is not renewed ends.
What is pushed stays in the outbox until the page acknowledges it, so a push may be lost, or come
again after a reconnect, and the message is neither lost nor, by its id, taken for another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from actors.messages import Wire
from actors.outbox import Outbox
from cluster.errors import RequestError

LEASE_S = 30.0
PAGES_MAX = 16
"""Open pages of one person."""
SUBSCRIPTIONS_MAX = 100_000
UNACKNOWLEDGED_MAX = 100
"""Messages that a page gets before it acknowledges one."""

Push = Callable[[bytes, bytes], None]
"""Sends (token, CloudEvent) to a page."""


class Subscribe(Wire):
    """Body of `Op.SUBSCRIBE`. token: chosen by the gateway, returns with every push."""

    token: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]
    user_id: str | None = None
    anonymous_id: str | None = None


class Acknowledge(Wire):
    """Body of `Op.ACKNOWLEDGE`: ids of messages that the page has."""

    messages: Annotated[
        list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=100)
    ]
    user_id: str | None = None
    anonymous_id: str | None = None


class _Page:
    """One subscription. `line` tells the connection it came over from others."""

    def __init__(self, push: Push, line: object) -> None:
        self.push = push
        self.line = line
        self.until_s = 0.0
        self.sent: set[str] = set()


class Inbox:
    """Subscriptions of one shard, by person and token."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._people: dict[bytes, dict[str, _Page]] = {}
        self._count = 0
        self.pushed = 0

    def __len__(self) -> int:
        return self._count

    def subscribe(self, key: bytes, token: str, push: Push, line: object, now_s: float) -> None:
        """Begin or renew a subscription. Over another line than before it begins anew, for what was
        pushed over that one may be lost. Raises RequestError (429) if there are too many."""
        pages = self._people.setdefault(key, {})
        page = pages.get(token)
        if page is None or page.line is not line:
            if page is None:
                self._check_room(key, pages)
                self._count += 1
            page = pages[token] = _Page(push, line)
        page.until_s = now_s + LEASE_S
        self.push(key, now_s)

    def unsubscribe(self, key: bytes, token: str) -> None:
        pages = self._people.get(key, {})
        if pages.pop(token, None) is not None:
            self._count -= 1
        if not pages:
            self._people.pop(key, None)

    def push(self, key: bytes, now_s: float) -> None:
        """Give the pages of a person what is due and was not given to them yet."""
        pages = self._people.get(key)
        if not pages:
            return
        due = self._outbox.for_page(key, now_s)
        living = {message.message_id for message in due}
        for token, page in pages.items():
            page.sent &= living
            for message in due:
                if len(page.sent) >= UNACKNOWLEDGED_MAX:
                    break
                if message.message_id not in page.sent:
                    page.sent.add(message.message_id)
                    page.push(token.encode(), message.body)
                    self.pushed += 1

    def drop_line(self, line: object) -> None:
        """A connection ended, and with it what came over it. O(subscriptions)."""
        self._drop(lambda page: page.line is line)

    def sweep(self, now_s: float) -> None:
        """End what was not renewed. O(subscriptions)."""
        self._drop(lambda page: page.until_s <= now_s)

    def _drop(self, gone: Callable[[_Page], bool]) -> None:
        found = [
            (key, token)
            for key, pages in self._people.items()
            for token, page in pages.items()
            if gone(page)
        ]
        for key, token in found:
            self.unsubscribe(key, token)

    def _check_room(self, key: bytes, pages: dict[str, _Page]) -> None:
        if len(pages) >= PAGES_MAX or self._count >= SUBSCRIPTIONS_MAX:
            if not pages:
                del self._people[key]
            raise RequestError(
                429, "too many pages are subscribed", "", str(len(pages)), f"at most {PAGES_MAX}"
            )


decode_subscribe = msgspec.json.Decoder(Subscribe)
decode_acknowledge = msgspec.json.Decoder(Acknowledge)
