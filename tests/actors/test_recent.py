"""The window of message ids against its bounds, and against a replay under wider ones."""

from __future__ import annotations

from actors.recent import ENTRY_BYTES, Answered, DedupeWindow

MAX = 1 << 16


def entry(time_s: int, size: int) -> Answered:
    return Answered(time_s, 0, b"x" * size)


def test_one_large_answer_pushes_out_as_many_small_ones_as_it_takes() -> None:
    window = DedupeWindow(1000, MAX)
    for number in range(1000):
        window.add("t", f"small{number}", entry(1, 10))
    for number in range(5):
        window.add("t", f"large{number}", entry(1, MAX // 2))
        window.check()
        assert window.get("t", f"large{number}") is not None
    window.add("t", "too large", entry(1, MAX))
    assert (len(window), window.bytes_used) == (0, 0)


def test_what_is_older_than_the_window_leaves_two_at_a_time() -> None:
    window = DedupeWindow(100, MAX)
    for number in range(10):
        window.add("t", f"old{number}", entry(0, 0))
    for number in range(5):
        window.add("t", f"new{number}", entry(200, 0))
    assert [message_id for _, message_id, _ in window.entries()] == [f"new{n}" for n in range(5)]
    assert window.bytes_used == 5 * ENTRY_BYTES
    window.check()


def test_an_id_that_comes_again_in_a_replay_with_more_room_is_kept_once() -> None:
    times = [(number % 7, number) for number in range(100)]
    window = DedupeWindow(1000, MAX)
    for message_id, time_s in times:
        window.add("t", f"{message_id}", entry(time_s, MAX // 4))
    assert len(window) <= 7
    window.check()
    for number in range(20):
        window.add("t", f"after{number}", entry(2000 + number, 100))
    assert len(window) == 20
    window.check()
