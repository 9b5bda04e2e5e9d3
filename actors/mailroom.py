"""What leaves the outbox of one shard: to the sender of webhooks, and to open pages.

Nothing leaves before the record of what caused it is durable, and what became of it is a record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from actors.inbox import Inbox
from actors.outbox import Contacted, Message, Step
from actors.records import Outboxed
from actors.state import ShardState
from actors.webhook_rules import Webhook
from actors.webhooks import Sender

LOG = logging.getLogger("onehop.actors")

RESTART_S = 1.0


class Mailroom:
    """The shard's side of a `Sender`, and of the pages that listen. All in the shard's loop."""

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self.inbox = Inbox(state.outbox)
        self.sender: Sender | None = None
        """Once `run` has begun."""

    async def run(self) -> None:
        """Send what is due, until cancelled."""
        while True:
            # What a sender that failed had taken is due as it was.
            self._state.outbox.wake_all()
            self.sender = Sender(self, self._state.config.webhooks_private)
            try:
                await self.sender.run()
            except Exception:
                # Whatever it was, the outbox has it all: begin anew.
                LOG.exception("shard %s: the sender of webhooks failed", self._state.shard_id)
                await asyncio.sleep(RESTART_S)

    def posted(self, contacted: Iterable[Contacted]) -> None:
        """Contacts were taken into the state and logged: send them as soon as that is durable."""
        for one in contacted:
            if not one.message.webhook:
                self.inbox.push(one.message.key, self._state.now())
        self.wake()

    def wake(self) -> None:
        """There may be something to send."""
        if self.sender is not None:
            self.sender.wake()

    # For the sender.

    def now(self) -> float:
        return self._state.now()

    def webhook(self, tenant: str, webhook_id: str) -> Webhook | None:
        known = self._state.tenants.get(tenant)
        found: Webhook | None = known.documents.get("webhooks", webhook_id) if known else None
        return found

    def take_message(self) -> Message | None:
        """The next message to a webhook that is due. On the way there: what expired is settled, and
        what is for pages is pushed to those that listen."""
        outbox, now_s = self._state.outbox, self._state.now()
        while (message := outbox.take_due(now_s)) is not None:
            if message.expires_s <= now_s:
                self.settle([Step(message.message_id, "expired")])
            elif message.webhook:
                return message
            else:
                outbox.wake(message.message_id, message.expires_s)
                self.inbox.push(message.key, now_s)
        return None

    def put_off(self, message_id: str, at_s: float) -> None:
        self._state.outbox.wake(message_id, at_s)

    def settle(self, steps: list[Step]) -> None:
        """Apply and log what became of messages. Raises IllegalStep at the first that can't be;
        those before it stay, here and in the log."""
        state = self._state
        for step in steps:
            record = Outboxed(state.now(), [step])
            state.settle(record)
            state.log(record)

    async def durable(self) -> None:
        if self._state.journal is not None:
            await self._state.journal.sync()

    def counters(self) -> dict[str, Any]:
        """For `Op.STATS`."""
        outbox = self._state.outbox
        return {
            "outboxPending": outbox.pending,
            "outboxDead": outbox.dead,
            "outboxBytes": outbox.bytes_used,
            "pagesSubscribed": len(self.inbox),
            "messagesPushed": self.inbox.pushed,
            "webhookAttempts": self.sender.attempts if self.sender else 0,
            "webhookFailures": self.sender.failures if self.sender else 0,
            "webhooksOpen": self.sender.open_breakers if self.sender else 0,
            "messages": dict(outbox.counts),
        }
