"""Reads a Dockerfile as far as deploy/Dockerfile goes: instructions by stage, in order."""

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
KNOWN = frozenset(
    ["ARG", "CMD", "COPY", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "USER", "WORKDIR"]
)


class Instruction(NamedTuple):
    """One instruction: "RUN", its text, and the number of its stage (-1 before the first)."""

    name: str
    text: str
    stage: int

    @property
    def words(self) -> list[str]:
        """Of the exec form, its arguments; else what blanks part."""
        if self.text.startswith("["):
            parsed: list[str] = json.loads(self.text)
            return parsed
        return self.text.split()


def instructions(path: Path = DOCKERFILE) -> list[Instruction]:
    """All of them. Raises ValueError on one that is not KNOWN."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    found = []
    stage = -1
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        if name not in KNOWN:
            raise ValueError(f"unknown instruction {name!r}")
        stage += name == "FROM"
        found.append(Instruction(name, rest.strip(), stage))
    return found


def pairs(text: str) -> dict[str, str]:
    """NAME=value pairs of ENV, ARG and LABEL."""
    return {name: value.strip('"') for name, value in re.findall(r'([\w.]+)=("[^"]*"|\S*)', text)}


def substituted(text: str, values: dict[str, str]) -> str:
    """`text` with ${NAME} and $NAME replaced by `values`."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], match[0]), text)
