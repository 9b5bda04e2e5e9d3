"""The README says what is true: settings, modules, commands, and its examples run."""

import re

import pytest
from click.testing import CliRunner

from serve.cli import commands
from tests.readme_tables import README, ROOT, with_tables

TEXT = README.read_text()


def test_tables_of_settings_and_modules_are_those_of_the_code() -> None:
    assert with_tables(TEXT) == TEXT, "run make fmt"


def test_every_command_and_option_of_the_readme_exists() -> None:
    section = TEXT.split("## Command line")[1].split("## ")[0]
    for line in re.findall(r"^    onehop (.+?)(?:#.*)?$", section, re.M):
        name = line.split()[0]
        help_text = CliRunner().invoke(commands, [name, "--help"]).output
        for option in re.findall(r"--[\w-]+", line):
            assert option in help_text, f"onehop {name} has no {option}"
    assert {line.split()[0] for line in re.findall(r"^    onehop (.+)$", section, re.M)} == set(
        commands.commands
    )


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_links_to_files_resolve(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()
