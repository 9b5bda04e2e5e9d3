"""The commands against a stand-in for onehop: what they send, print and exit with."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.layout import Layout
from actors.warm_start_actor import ImportStatus
from serve.cli import main, stoppable
from tests.serve.fake_fleet import FakeFleet
from tests.serve.test_status import STATS, owner

Run = Callable[..., tuple[int, str, str]]

EVENTS = "user_id\titem_id\tevent\ttimestamp\n" + "".join(
    f"{i % 7}\titem-{i % 5}\tpv\t{1511544070 + i}\n" for i in range(40)
)
DONE = msgspec.to_builtins(
    ImportStatus("i1", "done", 1_000, 1_000, accepted=1_000, seconds=0.5, rows_per_s=2_000.0)
)


class Standin:
    """Answers by (method, path) and remembers what was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        self.asked: list[tuple[str, str, Any, str]] = []
        self._lock = threading.Lock()

    def answer(self, method: str, path: str) -> tuple[int, Any]:
        with self._lock:
            answers = self.answers.get(
                (method, path), [(404, {"title": "not here", "status": 404})]
            )
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def bodies(self, path: str) -> list[Any]:
        return [body for _, asked, body, _ in self.asked if asked == path]


@pytest.fixture
def onehop() -> Iterator[tuple[Standin, str]]:
    standin = Standin()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            standin.asked.append(
                (
                    self.command,
                    self.path,
                    json.loads(body) if body else None,
                    self.headers.get("x-api-key", ""),
                )
            )
            status, answer = standin.answer(self.command, self.path)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield standin, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command line; returns exit code, standard output and standard error."""
    for name in ("ONEHOP_URL", "ONEHOP_API_KEY", "ONEHOP_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def run_command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["onehop", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run_command


def test_status_prints_the_table(onehop: tuple[Standin, str], run: Run) -> None:
    standin, url = onehop
    answer = {"epoch": 3, "owners": [owner(0, STATS), owner(1, STATS)]}
    standin.answers["GET", "/v1/shards"] = [(200, answer)]
    code, out, _ = run("status", "--url", url)
    assert code == 0
    assert "2,468 profiles" in out


def test_nobody_listening_is_one_line_and_exit_code_1(run: Run) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        code, _, err = run("status", "--url", url)
    assert code == 1
    assert err.startswith(f"onehop: {url} can't be reached")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("status", "answer", "wanted"),
    [
        (401, {"title": "no key", "status": 401, "detail": "the key is unknown"}, "key is unknown"),
        (200, b"<html>", "no onehop"),
        (404, b"<html>", "404"),
    ],
)
def test_an_unexpected_answer_is_explained(
    onehop: tuple[Standin, str], run: Run, status: int, answer: Any, wanted: str
) -> None:
    standin, url = onehop
    standin.answers["GET", "/v1/shards"] = [(status, answer)]
    code, _, err = run("status", "--url", url)
    assert code == 1
    assert wanted in err
    assert "Traceback" not in err


def test_the_key_comes_from_the_flag_then_the_environment_then_keys_env(
    onehop: tuple[Standin, str], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standin, url = onehop
    standin.answers["GET", "/v1/shards"] = [(200, {"epoch": 1, "owners": []})]
    run("status", "--url", url)
    (tmp_path / ".onehop").mkdir()
    (tmp_path / ".onehop" / "keys.env").write_text(
        "ONEHOP_API_KEY=sk_file\nONEHOP_BROWSER_KEY=pk_x\n"
    )
    run("status", "--url", url)
    monkeypatch.setenv("ONEHOP_API_KEY", "sk_environment")
    run("status", "--url", url)
    run("status", "--url", url, "--api-key", "sk_flag")
    assert [key for *_, key in standin.asked] == ["", "sk_file", "sk_environment", "sk_flag"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["status", "--url", "localhost:8000"], "must start with http"),
        (["status", "--nonsense"], "No such option"),
        (["up", "--port", "70000"], "port"),
        (["up", "--shards", "0"], "shards"),
        (["up", "--config", "/no/such/file.toml"], "No such file"),
        (["replay", "/no/such/file.tsv"], "does not exist"),
        (["replay", __file__, "--rate", "-1"], "--rate"),
        (["fly"], "No such command"),
    ],
)
def test_a_wrong_question_is_exit_code_2_and_says_what_is_wrong(
    run: Run, words: list[str], wanted: str
) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert wanted in err
    assert "Traceback" not in err


def test_a_misspelt_setting_in_the_environment_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEHOP_SHARD", "4")
    code, _, err = run("up")
    assert code == 2
    assert "unknown setting 'shard'" in err


def test_warm_start_sends_whole_paths_and_reports(
    onehop: tuple[Standin, str], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standin, url = onehop
    standin.answers["POST", "/v1/imports"] = [
        (202, DONE | {"state": "running", "rowsDone": 0, "rowsTotal": 0})
    ]
    standin.answers["GET", "/v1/imports/i1"] = [
        (200, DONE | {"state": "running", "rowsDone": 400}),
        (
            200,
            DONE
            | {
                "dryRun": True,
                "rejected": 3,
                "rejectedByReason": {"bad_time": 3},
                "rejectsFile": "/data/r.jsonl",
            },
        ),
    ]
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("warm-start", "e.parquet", "--items", "i.parquet", "--dry-run", "--url", url)
    assert code == 0
    assert standin.bodies("/v1/imports") == [
        {
            "events": str(tmp_path / "e.parquet"),
            "items": str(tmp_path / "i.parquet"),
            "dryRun": True,
        }
    ]
    assert "checked 1,000 rows in 0.5 s (2,000 rows/s)" in out
    assert "3 bad_time; samples in /data/r.jsonl" in out


def test_a_failed_import_is_exit_code_1(onehop: tuple[Standin, str], run: Run) -> None:
    standin, url = onehop
    standin.answers["POST", "/v1/imports"] = [
        (202, DONE | {"state": "failed", "error": "the disk is full"})
    ]
    code, _, err = run("warm-start", "e.parquet", "--url", url)
    assert code == 1
    assert "the disk is full" in err
    problem = {"title": "there is no such file", "status": 422, "detail": "events: no such file"}
    standin.answers["POST", "/v1/imports"] = [(422, problem)]
    code, _, err = run("warm-start", "e.parquet", "--url", url)
    assert code == 1
    assert "no such file" in err


def test_a_split_is_waited_for_and_its_outcome_told(onehop: tuple[Standin, str], run: Run) -> None:
    standin, url = onehop
    begun = json.loads(FakeFleet().reshape({"kind": "split", "shards": ["0"]}))
    done = begun | {"step": "done", "seconds": 2.5, "frozenSeconds": 0.041}
    standin.answers["POST", "/v1/shards/0:split"] = [(202, begun)]
    standin.answers["GET", "/v1/reshapes/r0"] = [(200, begun | {"step": "swap"}), (200, done)]
    code, out, err = run("shards", "split", "0", "--at", "8", "--url", url)
    assert standin.bodies("/v1/shards/0:split") == [{"at": ["8"], "nodeIds": []}]
    assert (code, err) == (0, "split r0: copy\nsplit r0: swap\n")
    assert "shard 0 -> 2 on b2b2b2b2, 3 on b2b2b2b2: done in 2.5 s, requests held for 41" in out
    aborted = begun | {"step": "aborted", "reason": "the target died"}
    standin.answers["GET", "/v1/reshapes/r0"] = [(200, aborted)]
    standin.answers["DELETE", "/v1/reshapes/r0"] = [(202, begun | {"step": "abort"})]
    code, _, err = run("shards", "split", "0", "--url", url)
    assert (code, err.splitlines()[-1]) == (
        1,
        "onehop: reshape r0 was aborted: the target died",
    )
    # To undo it is what was asked for here.
    assert run("shards", "abort", "r0", "--url", url)[0] == 0


def test_moves_and_merges_name_nodes_only_if_asked_to(
    onehop: tuple[Standin, str], run: Run
) -> None:
    standin, url = onehop
    done = json.loads(FakeFleet().reshape({"kind": "move", "shards": ["0"]})) | {"step": "done"}
    for path in ("/v1/shards/0:move", "/v1/shards:merge"):
        standin.answers["POST", path] = [(202, done)]
    assert run("shards", "move", "0", "--node", "10.0.0.1", "--url", url)[0] == 0
    assert run("shards", "merge", "0", "1", "--url", url)[0] == 0
    assert standin.bodies("/v1/shards/0:move") == [{"nodeId": "10.0.0.1"}]
    assert standin.bodies("/v1/shards:merge") == [{"shards": ["0", "1"], "nodeId": None}]


def test_a_drain_is_waited_for_until_nothing_is_left_or_time_is_up(
    onehop: tuple[Standin, str], run: Run
) -> None:
    standin, url = onehop
    fleet = FakeFleet()
    node = fleet.nodes[0] | {"draining": True}
    busy = {"nodes": [node | {"shardsLeft": 1, "copiesLeft": 2}]}
    standin.answers["POST", "/v1/nodes/10.0.0.0:drain"] = [(202, {"reshapes": []})]
    standin.answers["GET", "/v1/nodes"] = [(200, busy), (200, {"nodes": [node]})]
    code, out, err = run("shards", "drain", "10.0.0.0", "--url", url)
    assert (code, err) == (0, "1 shards and 2 copies are left\n")
    assert out.endswith("is empty: it may go\n")
    standin.answers["GET", "/v1/nodes"] = [(200, busy)]
    code, _, err = run("shards", "drain", "10.0.0.0", "--timeout", "0.1", "--url", url)
    assert code == 1
    assert "after 0 s 1 shards and 2 copies are left on node 10.0.0.0" in err
    # The autoscaler was quicker than the next look.
    standin.answers["GET", "/v1/nodes"] = [(200, busy), (200, {"nodes": []})]
    code, out, _ = run("shards", "drain", "10.0.0.0", "--url", url)
    assert (code, out) == (0, "node 10.0.0.0 is empty, and has gone\n")
    standin.answers["GET", "/v1/nodes"] = [(200, busy)]
    standin.answers["GET", "/v1/reshapes"] = [(200, {"reshapes": []})]
    code, out, _ = run("shards", "list", "--url", url)
    assert code == 0
    assert "draining: 1 shards and 2 copies are left" in out


def test_replay_adds_items_first_and_sends_every_event(
    onehop: tuple[Standin, str], run: Run, tmp_path: Path
) -> None:
    standin, url = onehop
    file = tmp_path / "events.tsv"
    file.write_text(EVENTS + "too few columns\n")
    standin.answers["POST", "/v1/items:batch"] = [(200, {"results": []})]
    standin.answers["POST", "/v1/track"] = [
        (200, {"duplicate": False, "profileVersion": 1, "durability": "memory"})
    ]
    code, out, _ = run("replay", str(file), "--create-items", "--rate", "2000", "--url", url)
    assert code == 0
    assert standin.asked[0][1] == "/v1/items:batch"
    (items,) = standin.bodies("/v1/items:batch")
    assert [item["id"] for item in items["items"]] == [f"item-{i}" for i in range(5)]
    tracked = standin.bodies("/v1/track")
    assert len(tracked) == len({body["messageId"] for body in tracked}) == 40
    assert {body["event"] for body in tracked} == {"pv"}
    assert "40 sent" in out
    assert "0 errors" in out
    assert "line 42: it must have 4 columns, got 1" in out


def test_replay_with_decide_asks_in_the_call_that_carries_the_event(
    onehop: tuple[Standin, str], run: Run, tmp_path: Path
) -> None:
    standin, url = onehop
    file = tmp_path / "events.tsv"
    file.write_text(EVENTS)
    answer = {
        "duplicate": False,
        "profileVersion": 1,
        "durability": "memory",
        "degraded": False,
        "tookMs": {"queue": 0.0, "update": 0.0, "score": 0.0},
        "decisions": [],
    }
    standin.answers["POST", "/v1/decide"] = [(200, answer)]
    code, out, _ = run("replay", str(file), "--decide", "--limit", "10", "--url", url)
    assert code == 0
    assert "10 sent" in out
    bodies = standin.bodies("/v1/decide")
    assert all(len(body["events"]) == len(body["decisions"]) == 1 for body in bodies)


def test_a_replay_of_which_nothing_arrives_is_exit_code_1(
    onehop: tuple[Standin, str], run: Run, tmp_path: Path
) -> None:
    standin, url = onehop
    file = tmp_path / "events.tsv"
    file.write_text(EVENTS)
    problem = {"title": "a value does not fit", "status": 422}
    standin.answers["POST", "/v1/track"] = [(422, problem)]
    code, out, err = run("replay", str(file), "--limit", "3", "--url", url)
    assert code == 1
    assert "3 errors" in out
    assert "a value does not fit" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_and_later_ones_are_ignored(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stoppable() as stop:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), number))
        timer.start()
        assert stop.wait(10)
        os.kill(os.getpid(), number)
        timer.join()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_wait_interrupts_what_runs(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(number)


def test_up_refuses_another_host_without_keys_and_a_taken_port(run: Run, tmp_path: Path) -> None:
    code, _, err = run("up", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    assert code == 2
    assert "host 0.0.0.0 needs keys" in err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, err = run("up", "--port", port, "--data-dir", str(tmp_path))
    assert code == 2
    assert f"port {port}" in err


def test_up_refuses_rings_of_another_size_in_one_line_before_it_starts_anything(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    layout = Layout(shards=2, ring_events_max=20, epoch=5)
    (tmp_path / "shards" / "layout.json").write_bytes(msgspec.json.encode(layout))
    before = sorted(tmp_path.rglob("*"))
    code, _, told = run("up", "--port", "0", "--data-dir", str(tmp_path))
    assert code == 2
    assert told.splitlines()[-1].startswith("onehop: ring_events_max must stay 20 for the data in")
    assert "got 50" in told
    assert "Traceback" not in told
    assert sorted(tmp_path.rglob("*")) == before
