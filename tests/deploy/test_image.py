"""deploy/Dockerfile: what it copies exists, what it installs is locked, and it runs as nobody."""

import re
import tomllib
from fnmatch import fnmatch

import pytest

from cluster.config import Config
from serve.launch import NICENESS, serve_environment
from tests.deploy.dockerfile import DOCKERFILE, ROOT, instructions, pairs

STEPS = instructions()
FINAL = max(step.stage for step in STEPS)
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)(.*)", re.MULTILINE)


def locked(name: str) -> dict[str, set[str]]:
    """Versions by package of a lock file. Fails if a pin has no hash."""
    text = (ROOT / name).read_text()
    found: dict[str, set[str]] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        if (match := PIN.match(block)) is not None:
            assert "--hash=sha256:" in block, match[0]
            found.setdefault(match[1], set()).add(match[2])
    return found


def copied() -> list[str]:
    return [
        source
        for step in STEPS
        if step.name == "COPY" and not step.text.startswith("--from")
        for source in step.words[:-1]
    ]


def test_all_that_is_copied_exists_and_is_not_ignored():
    allowed = [
        line.removeprefix("!")
        for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in allowed), f"{source} is ignored"
    assert {"cluster", "actors", "serve"} <= set(copied())


def test_what_comes_from_the_registry_is_named_by_version_and_hash():
    installs = [step.words for step in STEPS if step.name == "RUN" and "install" in step.words]
    assert len(installs) == 2
    for words in installs:
        assert "--require-hashes" in words or {"--no-deps", "--no-index"} <= set(words), words


def test_the_image_has_the_versions_that_were_tested_and_no_tools():
    image, tested = locked("deploy/requirements.lock"), locked("requirements.lock")
    assert {name: tested.get(name) for name in image} == image
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[^A-Za-z0-9_-]", one)[0] for one in project["dependencies"]}
    assert wanted <= image.keys()
    assert not image.keys() & {"pytest", "mypy", "ruff", "hypothesis", "kubernetes-validate"}


def test_nobody_but_an_unprivileged_user_runs_it_and_builders_stay_behind():
    assert FINAL >= 1
    last = [step for step in STEPS if step.stage == FINAL]
    (user,) = [step.text for step in last if step.name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number, so that runAsNonRoot can be checked"
    assert not [step for step in last if step.name == "RUN"]
    froms = [step for step in last if step.name == "COPY"]
    assert all(step.text.startswith("--from=build ") for step in froms)


def test_commands_need_no_shell_and_carry_no_secret():
    for step in STEPS:
        if step.name in ("RUN", "CMD"):
            assert step.text.startswith("["), f"{step.text} is given to a shell"
        assert not re.search(r"password|secret|token|api_key", step.text, re.IGNORECASE)


def test_serve_is_set_up_as_by_the_command_line(tmp_path, monkeypatch):
    # Without root nobody gets back to 0 who started at more.
    monkeypatch.setenv(NICENESS, "0")
    ours: dict[str, str] = {}
    for step in STEPS:
        if step.name == "ENV" and step.stage == FINAL:
            ours |= pairs(step.text)
    wanted = serve_environment(Config(), tmp_path)
    # Paths, ports and threads fit one machine's run; HAProxy's own defaults fit a pod.
    of_a_run = re.compile(r"_(PATH|LOC|PORT|BASE|FILE|NBTHREAD)$")
    for name, value in wanted.items():
        if name.startswith("RAY_") and not of_a_run.search(name) and name != "RAY_DEDUP_LOGS":
            assert float_or_text(ours.get(name)) == float_or_text(value), name
    callback = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    assert ours[callback] == wanted[callback]


def float_or_text(value: str | None) -> float | str | None:
    try:
        return float(value or "")
    except ValueError:
        return value


def test_kernels_are_compiled_and_used_for_the_same_cpu():
    environments: list[dict[str, str]] = [{}, {}]
    for step in STEPS:
        if step.name == "ENV":
            environments[step.stage] |= pairs(step.text)
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        assert environments[0][name] == environments[1][name]


def test_an_unknown_instruction_is_seen(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM a\nADD b c\n")
    with pytest.raises(ValueError, match="unknown instruction 'ADD'"):
        instructions(tmp_path / "Dockerfile")
