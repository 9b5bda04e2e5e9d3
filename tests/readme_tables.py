"""The README's tables of settings and modules, made from the code. `make fmt` writes them.

The code says each thing once: a setting's docstring, a module's first sentence.
"""

import ast
import re
from pathlib import Path

import msgspec

from cluster import config

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGES = ("cluster", "actors", "serve")


def settings_table() -> str:
    """Every setting: name, default, and the docstring that follows it."""
    tree = ast.parse(Path(config.__file__).read_text())
    struct = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config")
    defaults = msgspec.to_builtins(config.Config())
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for field, after in zip(struct.body, struct.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            name = field.target.id
            assert isinstance(after, ast.Expr), f"{name} has no docstring"
            assert isinstance(after.value, ast.Constant), f"{name} has no docstring"
            shown = msgspec.json.encode(defaults[name]).decode()
            lines.append(f"| `{name}` | `{shown}` | {_one_line(str(after.value.value))} |")
    return "\n".join(lines)


def modules_table() -> str:
    """Every module and its first sentence."""
    lines = ["| module | what it is |", "|---|---|"]
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "__init__.py":
                continue
            doc = ast.get_docstring(ast.parse(path.read_text())) or ""
            sentence = _one_line(re.split(r"(?<=\.)\s|\n\n", doc, maxsplit=1)[0])
            lines.append(f"| `{path.relative_to(ROOT)}` | {sentence} |")
    return "\n".join(lines)


def with_tables(readme: str) -> str:
    """The text with both tables renewed between their marks."""
    for name, table in (("settings", settings_table()), ("modules", modules_table())):
        begin, end = f"<!-- {name}, written by make fmt -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = readme.partition(begin)
        _, _, after = rest.partition(end)
        assert rest, f"README.md has no mark {begin!r}"
        assert after, f"README.md has no mark {end!r}"
        readme = f"{before}{begin}{table}{end}{after}"
    return readme


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
