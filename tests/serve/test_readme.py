"""The README says what is true: settings, modules, commands, and its examples run."""

import ast
import re
import subprocess
import sys

import click
import msgspec
import pytest
from click.testing import CliRunner

from actors.decisions import DecideAnswer, ProductSpec
from serve.cli import commands
from serve.client import SyncClient
from serve.launch import Cluster
from serve.openapi import OPERATIONS
from tests.readme_tables import README, ROOT, with_tables

TEXT = README.read_text()


def test_tables_of_settings_and_modules_are_those_of_the_code() -> None:
    assert with_tables(TEXT) == TEXT, "run make fmt"


def test_every_command_and_option_of_the_readme_exists() -> None:
    section = TEXT.split("## Command line")[1].split("## ")[0]
    for line in re.findall(r"^    onehop (.+?)(?:#.*)?$", section, re.M):
        words = [line.split()[0]]
        group = commands.commands[words[0]]
        if isinstance(group, click.Group):
            words.append(line.split()[1])
        help_text = CliRunner().invoke(commands, [*words, "--help"]).output
        for option in re.findall(r"--[\w-]+", line):
            assert option in help_text, f"onehop {' '.join(words)} has no {option}"
        assert "Usage" in help_text, line
    assert {line.split()[0] for line in re.findall(r"^    onehop (.+)$", section, re.M)} == set(
        commands.commands
    )


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_links_to_files_resolve(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()


@pytest.fixture
def shop(cluster: Cluster) -> str:
    """The address of a onehop that has the demo's phones and laptops."""
    items = [
        {"id": f"{kind}-{n:03d}"} for kind in ("phone", "phone-case", "laptop") for n in range(9)
    ]
    with SyncClient(cluster.address) as client:
        assert {result["status"] for result in client.put_items(items)} == {200}
    return cluster.address


def blocks(language: str, address: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)
    assert found
    return [block.replace("http://127.0.0.1:8000", address) for block in found]


@pytest.mark.cluster
def test_curl_examples_work_as_printed(shop: str) -> None:
    surfaces: set[str] = set()
    for block in blocks("bash", shop):
        script = f"set -e\n{block.replace('curl -s', 'curl -sf')}"
        ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        if "/v1/decide" in block:
            answer = msgspec.json.decode(ran.stdout, type=DecideAnswer)
            surfaces |= {one.surface for one in answer.decisions}
            first = answer.decisions[0]
            if first.surface == "communication":
                assert first.send
                continue
            if first.surface == "offer":
                assert first.quote_id
                assert first.price in (8.0, 7.2, 6.4)
                assert answer.decisions[1].flags["checkout"].variant in ("short", "long")
                continue
            assert len(answer.decisions[0].ranking) == 3
            (printed,) = blocks("json", shop)
            assert msgspec.json.decode(printed).keys() == msgspec.json.decode(ran.stdout).keys()
    assert surfaces == {"content", "product", "offer", "ui", "communication"}


@pytest.mark.cluster
def test_sdk_example_works_as_printed(shop: str) -> None:
    (block,) = blocks("python", shop)
    ran = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ast.literal_eval(ran.stdout)) == 3


def test_every_operation_and_every_option_of_a_decision_is_named() -> None:
    api = TEXT.split("## API\n")[1].split("## SDK")[0]
    calls = re.findall(r"`([^`]+)`", "\n".join(re.findall(r"^\| `.*", api, re.M)))
    assert {operation.path for operation in OPERATIONS} <= {call.split()[-1] for call in calls}
    fields = {field.encode_name for field in msgspec.structs.fields(ProductSpec)}
    assert fields <= set(calls)
