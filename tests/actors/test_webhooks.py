"""The sender against a real receiver: same id and bytes every time, breakers, dead letters."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from actors.documents import Documents
from actors.outbox import DEAD, Message, Outbox, Step
from actors.webhook_rules import Webhook, check_webhook, is_public
from actors.webhooks import Breaker, Sender, backoff_s
from cluster.errors import RequestError
from tests.actors.receiver import SECRET, Receiver


class FakeOwner:
    """An outbox and its webhooks; what the shard does with records is tested with the shard."""

    def __init__(self, webhooks: dict[str, Webhook]) -> None:
        self.outbox = Outbox(1 << 20)
        self.webhooks = webhooks
        self.steps: list[Step] = []
        self.durables = 0

    def now(self) -> float:
        return time.time()

    def webhook(self, tenant: str, webhook_id: str) -> Webhook | None:
        return self.webhooks.get(webhook_id)

    def take_message(self) -> Message | None:
        return self.outbox.take_due(time.time())

    def put_off(self, message_id: str, at_s: float) -> None:
        self.outbox.wake(message_id, at_s)

    def settle(self, steps: list[Step]) -> None:
        self.steps += steps
        for step in steps:
            self.outbox.step(step, time.time())

    async def durable(self) -> None:
        self.durables += 1

    def add(self, *ids: str, webhook: str = "esp") -> None:
        now_s = time.time()
        for one in ids:
            body = b'{"id":"%b"}' % one.encode()
            self.outbox.add(
                Message(one, "shop", b"k" * 16, "email", webhook, now_s, now_s + 60, body)
            )

    def steps_of(self, message_id: str) -> list[str]:
        return [step.what for step in self.steps if step.message_id == message_id]


def sending(
    act: Callable[[FakeOwner, Receiver, Sender], Coroutine[Any, Any, None]],
    allow_private: bool = True,
    **settings: Any,
) -> None:
    """Run `act` beside a sender whose webhook "esp" is a real receiver."""

    async def run() -> None:
        async with Receiver() as receiver:
            webhook = Webhook(receiver.url, SECRET, retry_s=0.05, retry_max_s=0.2, **settings)
            owner = FakeOwner({"esp": webhook})
            sender = Sender(owner, allow_private, random.Random(7))
            task = asyncio.create_task(sender.run())
            try:
                await act(owner, receiver, sender)
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    asyncio.run(run())


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_message_is_delivered_once_it_is_durable_and_settled() -> None:
    async def act(owner: FakeOwner, receiver: Receiver, sender: Sender) -> None:
        owner.add("m1", "m2", "m3")
        sender.wake()
        await until(lambda: len(owner.steps) == 3)
        assert sorted(message_id for message_id, _ in receiver.got) == ["m1", "m2", "m3"]
        assert owner.durables > 0
        assert len(owner.outbox) == 0

    sending(act)


def test_a_failed_attempt_comes_again_with_the_same_id_and_bytes() -> None:
    async def act(owner: FakeOwner, receiver: Receiver, sender: Sender) -> None:
        receiver.status = 503
        owner.add("m1")
        sender.wake()
        await receiver.count(2)
        receiver.status = 204
        await until(lambda: "delivered" in owner.steps_of("m1"))
        assert {message_id for message_id, _ in receiver.got} == {"m1"}
        assert len(set(receiver.bodies)) == 1
        assert owner.steps_of("m1")[:2] == ["retried", "retried"]

    sending(act)


def test_after_the_last_attempt_it_is_a_dead_letter_with_the_reason() -> None:
    async def act(owner: FakeOwner, receiver: Receiver, sender: Sender) -> None:
        receiver.status = 500
        owner.add("m1")
        sender.wake()
        await until(lambda: owner.outbox.dead == 1)
        assert owner.steps_of("m1") == ["retried", "retried", "failed"]
        (letter,) = owner.outbox.dead_letters("shop", 10)
        assert letter.state == DEAD
        assert letter.error == "the receiver answered 500"
        # Redriven, it begins anew and arrives.
        receiver.status = 200
        now_s = time.time()
        owner.settle([Step("m1", "redriven", now_s, now_s + 60)])
        sender.wake()
        await until(lambda: len(owner.outbox) == 0)

    sending(act, max_attempts=3, open_after=100)


def test_gone_is_not_asked_again_and_a_redirect_is_not_followed() -> None:
    async def act(owner: FakeOwner, receiver: Receiver, sender: Sender) -> None:
        receiver.status = 410
        moved = receiver.url.replace("/hook", "/moved")
        owner.webhooks["moved"] = Webhook(moved, SECRET, max_attempts=1)
        owner.add("m1")
        owner.add("m2", webhook="moved")
        owner.add("m3", webhook="deleted")
        sender.wake()
        await until(lambda: owner.outbox.dead == 3)
        errors = {m.message_id: m.error for m in owner.outbox.dead_letters("shop", 10)}
        assert errors == {
            "m1": "the receiver answered 410",
            "m2": "the receiver answered 307",
            "m3": "there is no such webhook",
        }
        assert len(receiver.got) == 1

    sending(act)


def test_an_open_breaker_stops_attempts_and_one_probe_closes_it() -> None:
    async def act(owner: FakeOwner, receiver: Receiver, sender: Sender) -> None:
        receiver.status = 500
        owner.add(*(f"m{i}" for i in range(20)))
        sender.wake()
        await until(lambda: sender.open_breakers == 1)
        tried = len(receiver.got)
        # As many as were under way when it opened, and no more while it is.
        assert tried <= 3 + 4
        await asyncio.sleep(0.3)
        assert len(receiver.got) <= tried + 4
        receiver.status = 200
        await until(lambda: len(owner.outbox) == 0, 20)
        assert sender.open_breakers == 0

    sending(act, open_after=3, open_s=1.0, concurrency=4, max_attempts=50)


def test_a_slow_receiver_does_not_hold_up_another() -> None:
    async def act(owner: FakeOwner, receiver: Receiver, sender: Sender) -> None:
        async with Receiver() as quick:
            receiver.delay_s = 30.0
            owner.webhooks["quick"] = Webhook(quick.url, SECRET)
            owner.add(*(f"slow{i}" for i in range(300)))
            sender.wake()
            await until(lambda: receiver.under_way == 8)
            owner.add(*(f"quick{i}" for i in range(50)), webhook="quick")
            sender.wake()
            await quick.count(50)
            assert receiver.under_way_max == 8

    sending(act)


def test_private_addresses_are_refused_unless_allowed() -> None:
    async def act(owner: FakeOwner, receiver: Receiver, sender: Sender) -> None:
        # Once as an address, once as a name that leads to one.
        owner.webhooks["named"] = Webhook(
            receiver.url.replace("127.0.0.1", "localhost"), SECRET, max_attempts=1
        )
        owner.add("m1")
        owner.add("m2", webhook="named")
        sender.wake()
        await until(lambda: owner.outbox.dead == 2)
        errors = {m.message_id: m.error for m in owner.outbox.dead_letters("shop", 10)}
        assert errors["m1"] == "127.0.0.1 is not a public address"
        assert "no public address" in errors["m2"]
        assert receiver.got == []

    sending(act, allow_private=False, max_attempts=1)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "::1",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "fd00::1",
        "2002:7f00:1::",
    ],
)
def test_no_form_of_a_private_address_is_public(address: str) -> None:
    assert not is_public(address)


def test_public_addresses_are_public() -> None:
    assert is_public("93.184.216.34")
    assert is_public("2606:4700::1111")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example",
        "http://",
        "https://user:pw@a.example",
        "file:///etc/passwd",
        "http://a:0x/",
    ],
)
def test_an_unusable_url_is_refused_by_field(url: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_webhook(Webhook(url, SECRET), "esp", Documents([]))
    assert refused.value.field == "url"


def test_a_weak_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(RequestError) as refused:
        check_webhook(Webhook("https://a.example", "hunter2"), "esp", Documents([]))
    assert refused.value.field == "secret"
    assert "hunter2" not in str(refused.value)


def test_pauses_double_are_jittered_and_bounded() -> None:
    webhook = Webhook("https://a.example", SECRET, retry_s=1.0, retry_max_s=60.0)
    rng = random.Random(1)
    for attempts in range(1, 51):
        wanted_s = min(2.0 ** (attempts - 1), 60.0)
        pauses = [backoff_s(webhook, attempts, 0.0, rng) for _ in range(20)]
        assert all(wanted_s / 2 <= pause <= wanted_s for pause in pauses)
        assert len(set(pauses)) > 1
    assert backoff_s(webhook, 1, 30.0, rng) == 30.0


def test_a_breaker_does_what_its_table_says() -> None:
    webhook, breaker = Webhook("https://a.example", SECRET, open_after=2, open_s=10.0), Breaker()
    breaker.failed(webhook, 0.0)
    assert breaker.may_try(0.0)
    breaker.failed(webhook, 0.0)
    assert not breaker.may_try(9.9)
    assert breaker.may_try(10.0)
    breaker.begin()
    assert not breaker.may_try(10.0)
    breaker.failed(webhook, 11.0)
    assert not breaker.may_try(20.9)
    assert breaker.may_try(21.0)
    breaker.begin()
    breaker.succeeded()
    assert breaker.may_try(21.0)
