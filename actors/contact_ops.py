"""What callers ask of a shard about contacts: consents, suppression, pages, dead letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from actors.checked import decode
from actors.contact import stamp
from actors.contact_messages import CHANNELS_MAX, PURPOSES_MAX, Consents, Shown, Suppress
from actors.events import to_seconds
from actors.inbox import Acknowledge, decode_acknowledge
from actors.ledger import Consent, pack, unpack
from actors.mailroom import Mailroom
from actors.outbox import DEAD, PENDING, Message, Step
from actors.people import Caller
from actors.state import ShardState
from cluster.errors import RequestError
from cluster.frames import Op

LETTERS_MAX = 100
REDRIVEN_FOR_S = 86400.0
UNTIL_S_END = 253_402_300_800
"""The year 10000, which no date in an answer can name."""

Answer = tuple[int, bytes]
_encode = msgspec.json.Encoder().encode


class Owning(Protocol):
    """The part of the shard that says whose a person is."""

    def owned(self, caller: Caller, user_id: str | None, anonymous_id: str | None) -> bytes | None:
        """The key hash of a person of this shard, None: another's."""

    def moved(self) -> Answer: ...


class ContactOps:
    """Handlers by op, for `Shard.handle`."""

    def __init__(self, state: ShardState, owning: Owning, mailroom: Mailroom) -> None:
        self._state = state
        self._owning = owning
        self._mailroom = mailroom
        self._consents = msgspec.json.Decoder(Consents)
        self._suppress = msgspec.json.Decoder(Suppress)
        self.handlers: dict[int, Callable[[Caller, bytes, int], Answer]] = {
            Op.CONSENTS_PUT: self.put_consents,
            Op.SUPPRESS: self.suppress,
            Op.ACKNOWLEDGE: self.acknowledge,
            Op.MESSAGE_GET: self.get_message,
            Op.DEAD_LETTERS: self.dead_letters,
            Op.REDRIVE: self.redrive,
            Op.DISCARD: self.discard,
        }

    def put_consents(self, caller: Caller, body: bytes, _: int) -> Answer:
        request: Consents = decode(self._consents, body)
        key = self._owning.owned(caller, request.user_id, request.anonymous_id)
        if key is None:
            return self._owning.moved()
        now_s = int(self._state.now())
        ledger = unpack(self._stored(key))
        for purpose, granted in request.consents.items():
            if granted is None:
                ledger.consents.pop(purpose, None)
            else:
                ledger.consents[purpose] = Consent(granted, now_s)
        if len(ledger.consents) > PURPOSES_MAX:
            seen, wanted = str(len(ledger.consents)), f"at most {PURPOSES_MAX} purposes of a person"
            raise RequestError(422, "there are too many purposes", "consents", seen, wanted)
        self._state.tenant(caller.tenant)
        self._state.book(caller.tenant, key, pack(ledger, now_s))
        consents = {name: one.granted for name, one in ledger.consents.items()}
        return 200, _encode({"consents": consents})

    def suppress(self, caller: Caller, body: bytes, _: int) -> Answer:
        request: Suppress = decode(self._suppress, body)
        key = self._owning.owned(caller, request.user_id, request.anonymous_id)
        if key is None:
            return self._owning.moved()
        now_s = int(self._state.now())
        until_s = 0 if request.until is None else int(to_seconds(request.until, "until"))
        if request.until is not None and until_s <= now_s:
            raise RequestError(422, "that is over", "until", repr(request.until), "a time to come")
        if until_s >= UNTIL_S_END:
            wanted = "a time before the year 10000, or none for good"
            raise RequestError(422, "that never ends", "until", repr(request.until), wanted)
        ledger = unpack(self._stored(key))
        for channel in request.channels or ("",):
            if request.suppressed:
                ledger.suppressed[channel] = until_s
            else:
                ledger.suppressed.pop(channel, None)
        if not request.suppressed and not request.channels:
            ledger.suppressed.clear()
        if len(ledger.suppressed) > CHANNELS_MAX + 1:
            wanted = f"at most {CHANNELS_MAX} channels of a person"
            seen = str(len(ledger.suppressed))
            raise RequestError(422, "there are too many channels", "channels", seen, wanted)
        self._state.tenant(caller.tenant)
        self._state.book(caller.tenant, key, pack(ledger, now_s))
        shown = {
            name or "all": stamp(at_s) if at_s else None for name, at_s in ledger.suppressed.items()
        }
        return 200, _encode({"suppressed": shown})

    def acknowledge(self, caller: Caller, body: bytes, _: int) -> Answer:
        """The page has these messages; of unknown ones, and of others' people, nothing is said."""
        request: Acknowledge = decode(decode_acknowledge, body)
        key = self._owning.owned(caller, request.user_id, request.anonymous_id)
        if key is None:
            return self._owning.moved()
        count = 0
        for message_id in dict.fromkeys(request.messages):
            message = self._state.outbox.get(message_id)
            if message is not None and message.key == key and not message.webhook:
                self._mailroom.settle([Step(message_id, "delivered")])
                count += 1
        self._mailroom.inbox.push(key, self._state.now())
        return 200, b'{"acknowledged":%d}' % count

    def get_message(self, caller: Caller, body: bytes, _: int) -> Answer:
        message = self._message(caller, body)
        return self._owning.moved() if message is None else (200, _encode(shown(message)))

    def dead_letters(self, caller: Caller, body: bytes, _: int) -> Answer:
        letters = self._state.outbox.dead_letters(caller.tenant, LETTERS_MAX)
        return 200, _encode([shown(message) for message in letters])

    def redrive(self, caller: Caller, body: bytes, _: int) -> Answer:
        """Try a dead letter again, with the same id."""
        message = self._message(caller, body)
        if message is None:
            return self._owning.moved()
        self._check_dead(message)
        now_s = self._state.now()
        self._mailroom.settle([Step(message.message_id, "redriven", now_s, now_s + REDRIVEN_FOR_S)])
        self._mailroom.wake()
        return 200, _encode({"id": message.message_id, "state": PENDING})

    def discard(self, caller: Caller, body: bytes, _: int) -> Answer:
        message = self._message(caller, body)
        if message is None:
            return self._owning.moved()
        self._mailroom.settle([Step(message.message_id, "discarded")])
        return 200, _encode({"id": message.message_id, "deleted": True})

    def _stored(self, key: bytes) -> bytes:
        row = self._state.store.find(key)
        return self._state.store.ledger(row) if row >= 0 else b""

    def _message(self, caller: Caller, body: bytes) -> Message | None:
        """The caller's message; None if its place is another shard's. Raises RequestError (404)."""
        message_id = body[:64].decode("ascii", "replace")
        try:
            place = int(message_id[:16], 16)
        except ValueError:
            place = self._state.key_range.start
        if place not in self._state.key_range:
            return None
        message = self._state.outbox.get(message_id)
        if message is None or message.tenant != caller.tenant:
            raise RequestError(404, "there is no such message", "id", repr(message_id))
        return message

    def _check_dead(self, message: Message) -> None:
        if message.state != DEAD:
            raise RequestError(409, "the message is not dead", "id", message.state, DEAD)


def shown(message: Message) -> Shown:
    """A message as its tenant may see it."""
    return Shown(
        message.message_id,
        message.state,
        message.channel,
        message.webhook,
        message.attempts,
        stamp(message.due_s),
        stamp(message.expires_s),
        msgspec.Raw(message.body),
        message.error,
    )
