"""A replay keeps its rate, keeps each person's order, and counts what fails."""

import asyncio
import random
import time

import numpy as np
import pytest

from serve.replay import Histogram, Message, Tally, replay


def messages(count: int, people: int) -> list[Message]:
    return [{"userId": f"u{i % people}", "number": i} for i in range(count)]


def run(sent: list[Message], send_s: float = 0.0, rate: float = 0.0) -> tuple[Tally, list[Message]]:
    arrived: list[Message] = []
    tally = Tally()

    async def send(message: Message) -> bool:
        if send_s:
            await asyncio.sleep(send_s * random.random())
        if message.get("fail"):
            raise ConnectionError("no answer")
        arrived.append(message)
        return bool(message.get("again"))

    asyncio.run(replay(sent, send, rate, tally, (ConnectionError,)))
    return tally, arrived


def test_one_persons_messages_arrive_in_order_while_people_overlap() -> None:
    tally, arrived = run(messages(600, people=30), send_s=0.004)
    assert tally.sent == 600
    for person in range(30):
        numbers = [m["number"] for m in arrived if m["userId"] == f"u{person}"]
        assert numbers == sorted(numbers)
    # 600 sends of 2 ms on average would take 1.2 s one after another.
    assert tally.stopped_s - tally.started_s < 0.6


def test_the_rate_is_kept() -> None:
    tally, _ = run(messages(200, people=50), rate=400)
    assert tally.per_second == pytest.approx(400, rel=0.15)


def test_latency_counts_from_when_a_message_was_due() -> None:
    # One person, so one after another: 20 sends of up to 20 ms fall behind a rate of 1,000/s.
    tally, _ = run(messages(20, people=1), send_s=0.02, rate=1000)
    assert tally.latencies.percentile(1.0) > 60_000


def test_failures_and_duplicates_are_counted_and_end_nothing() -> None:
    sent = messages(10, people=2)
    sent[3]["fail"] = True
    sent[4]["again"] = True
    tally, arrived = run(sent)
    assert (tally.sent, tally.errors, tally.duplicates) == (10, 1, 1)
    assert len(arrived) == 9
    assert tally.first_error == "no answer"


def test_an_unexpected_error_ends_the_replay() -> None:
    async def send(message: Message) -> bool:
        raise KeyError("a bug")

    begun = time.perf_counter()
    with pytest.raises(ExceptionGroup):
        asyncio.run(replay(messages(10**6, 5), send, 0, Tally(), (ConnectionError,)))
    assert time.perf_counter() - begun < 5


def test_percentiles_are_within_two_percent_of_numpys() -> None:
    rng = np.random.default_rng(11)
    values = rng.lognormal(6, 1.5, 20_000)
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for share in (0.5, 0.9, 0.99):
        assert histogram.percentile(share) == pytest.approx(np.quantile(values, share), rel=0.03)
    assert Histogram().percentile(0.5) == 0.0
