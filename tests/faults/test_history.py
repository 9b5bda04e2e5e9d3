"""The checker accepts what a correct system may show, and finds every planted violation."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.history import Append, Call, Read, check, read_history, write_history


class Run(list[Call]):
    """A history of a real list: calls take time, overlap, fail, and get no answer."""

    def __init__(self, seed: int, steps: int = 300) -> None:
        super().__init__()
        print(f"seed {seed}")
        generator = random.Random(seed)
        self.final: dict[str, list[int]] = {"a": [], "b": []}
        now = [0] * 5
        for number in range(1, steps + 1):
            client = generator.randrange(5)
            # Each call takes effect at one moment; moments come in the order of this loop.
            moment = number * 10
            invoked = max(now[client], moment - generator.randrange(1, 40))
            returned = max(invoked, moment) + generator.randrange(1, 40)
            if invoked > moment:
                continue
            key = generator.choice("ab")
            numbers = self.final[key]
            now[client] = returned + 1
            if generator.random() < 0.3:
                self.append(Read(client, key, invoked, returned, list(numbers)))
                continue
            outcome = generator.choice(("ok", "ok", "ok", "fail", "unknown"))
            if outcome == "ok" or (outcome == "unknown" and generator.random() < 0.5):
                numbers.append(number)
            position = len(numbers) if outcome == "ok" else 0
            self.append(Append(client, key, number, invoked, returned, outcome, position))  # type: ignore[arg-type]

    def rules(self) -> set[str]:
        return {violation.rule for violation in check(self, self.final)}

    def acknowledged(self, key: str = "a") -> list[Append]:
        return [c for c in self if isinstance(c, Append) and c.outcome == "ok" and c.key == key]

    def reads(self, key: str = "a") -> list[Read]:
        return [c for c in self if isinstance(c, Read) and c.key == key and len(c.numbers) > 3]


@pytest.mark.parametrize("seed", range(50))
def test_a_history_of_a_real_list_is_accepted(seed: int) -> None:
    run = Run(seed)
    assert len(run.acknowledged()) > 20
    assert check(run, run.final) == []


def test_a_lost_number_is_found() -> None:
    run = Run(1)
    run.final["a"].remove(run.acknowledged()[-1].number)
    assert "lost" in run.rules()


def test_a_list_that_is_gone_is_lost() -> None:
    run = Run(1)
    del run.final["a"]
    assert "lost" in run.rules()


def test_a_doubled_number_is_found() -> None:
    run = Run(2)
    run.final["a"].append(run.acknowledged()[0].number)
    assert "doubled" in run.rules()


def test_an_unknown_number_may_be_there_once_not_twice() -> None:
    history = [Append(1, "a", 1, 0, 1, "unknown"), Append(1, "a", 2, 2, 3, "ok")]
    assert check(history, {"a": [2]}) == []
    assert check(history, {"a": [1, 2]}) == []
    # Nobody heard of it, so it may also take effect later.
    assert check(history, {"a": [2, 1]}) == []
    assert {v.rule for v in check(history, {"a": [1, 2, 1]})} == {"doubled"}


def test_what_nobody_appended_or_surely_failed_is_a_phantom() -> None:
    run = Run(3)
    run.final["a"].append(10**6)
    assert run.rules() == {"phantom"}
    run = Run(3)
    failed = next(c for c in run if isinstance(c, Append) and c.outcome == "fail")
    run.final[failed.key].append(failed.number)
    assert "phantom" in run.rules()


def test_a_clients_own_order_is_kept() -> None:
    run = Run(4)
    for key, numbers in run.final.items():
        for call in run.acknowledged(key):
            call.position = 0
        mine = [c.number for c in run.acknowledged(key) if c.client == 2]
        first, last = numbers.index(mine[0]), numbers.index(mine[-1])
        numbers[first], numbers[last] = numbers[last], numbers[first]
    assert "order" in run.rules()


def test_order_holds_between_clients_too() -> None:
    history = [Append(1, "a", 1, 0, 1, "ok"), Append(2, "a", 2, 2, 3, "ok")]
    assert check(history, {"a": [1, 2]}) == []
    assert {v.rule for v in check(history, {"a": [2, 1]})} == {"order"}
    overlapping = [Append(1, "a", 1, 0, 5, "ok"), Append(2, "a", 2, 2, 3, "ok")]
    assert check(overlapping, {"a": [2, 1]}) == []


def test_an_answer_that_names_another_place_is_found() -> None:
    run = Run(5)
    run.acknowledged()[3].position += 1
    assert run.rules() == {"position"}


def test_a_read_that_is_no_prefix_is_found() -> None:
    run = Run(6)
    read = run.reads()[-1]
    read.numbers[0], read.numbers[1] = read.numbers[1], read.numbers[0]
    assert "prefix" in run.rules()


def test_a_read_that_lacks_what_was_acknowledged_is_stale() -> None:
    history: list[Call] = [Append(1, "a", 1, 0, 1, "ok"), Read(2, "a", 2, 3, [])]
    assert {v.rule for v in check(history, {"a": [1]})} == {"stale"}
    during: list[Call] = [Append(1, "a", 1, 0, 9, "ok"), Read(2, "a", 2, 3, [])]
    assert check(during, {"a": [1]}) == []


def test_reads_that_go_back_are_stale_even_if_nothing_was_acknowledged() -> None:
    history: list[Call] = [
        Append(1, "a", 1, 0, 100, "ok"),
        Read(2, "a", 2, 3, [1]),
        Read(3, "a", 4, 5, []),
    ]
    assert {v.rule for v in check(history, {"a": [1]})} == {"stale"}


def test_a_read_of_what_was_not_appended_yet_is_found() -> None:
    history: list[Call] = [Read(2, "a", 0, 1, [1]), Append(1, "a", 1, 2, 3, "ok")]
    assert {v.rule for v in check(history, {"a": [1]})} == {"future"}


def test_a_history_survives_its_file(tmp_path: Path) -> None:
    run = Run(7)
    write_history(tmp_path / "history.jsonl", run)
    assert read_history(tmp_path / "history.jsonl") == list(run)


def test_checking_takes_linear_time() -> None:
    def took_s(lists: int) -> float:
        history = [
            Append(0, f"k{i // 40}", i, 2 * i, 2 * i + 1, "ok") for i in range(1, 40 * lists)
        ]
        final: dict[str, list[int]] = {}
        for call in history:
            final.setdefault(call.key, []).append(call.number)
        began = time.process_time()
        assert check(history, final) == []
        return time.process_time() - began

    took_s(100)
    # Ten times the work in far less than the hundred times of a quadratic checker.
    assert took_s(5000) < 40 * took_s(500)
