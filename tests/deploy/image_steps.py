"""Does what deploy/Dockerfile does, without a container: its build stage below a folder of its own.

    python -m tests.deploy.image_steps [FOLDER]

Then checks what the image promises: kernels are there and are used from a read-only source (nothing
is compiled at the start), and says how large it all is. Needs the network, a few minutes and 2 GB.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.deploy.dockerfile import ROOT, instructions, pairs, substituted

PLACES = ("/opt/onehop", "/src")


def moved(text: str, root: Path) -> str:
    for place in PLACES:
        text = text.replace(place, f"{root}{place}")
    return text


def build(root: Path) -> dict[str, str]:
    """Run the build stage below `root`; returns the environment of the final stage."""
    values: dict[str, str] = {}
    environment = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    # A registry's mirror may be set for pip by file or environment; the image brings its own.
    environment |= {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_"))}
    folder = root
    for step in instructions():
        text = moved(substituted(step.text, {**values, **environment}), root)
        if step.name == "ARG":
            values |= pairs(step.text)
        elif step.name == "ENV":
            environment |= pairs(text)
        elif step.name == "WORKDIR" and step.stage == 0:
            folder = Path(text)
        elif step.name == "COPY" and step.stage == 0:
            *sources, target = text.split()
            for source in sources:
                copy(ROOT / source, Path(target), target.endswith("/"))
        elif step.name == "RUN":
            arguments = [moved(word, root) for word in step.words]
            started = time.perf_counter()
            subprocess.run(arguments, check=True, env=environment, cwd=folder)
            print(
                f"{time.perf_counter() - started:7.1f} s  {' '.join(step.words)[:90]}", flush=True
            )
    return environment


def copy(source: Path, target: Path, into: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        folder = target if into else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, folder)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="onehop-image-"))
    root.mkdir(parents=True, exist_ok=True)
    environment = build(root)
    # As the pods do: the kernels are copied to a folder that can be written to.
    kernels = root / "kernels"
    shutil.copytree(root / "opt/onehop/kernels", kernels)
    before = {path: path.stat().st_mtime_ns for path in kernels.rglob("*.nb*")}
    environment["NUMBA_CACHE_DIR"] = str(kernels)
    started = time.perf_counter()
    subprocess.run(["python", "-m", "actors.warm_up"], check=True, env=environment, cwd=root)
    took = time.perf_counter() - started
    after = {path: path.stat().st_mtime_ns for path in kernels.rglob("*.nb*")}
    assert before, "the image has no kernels"
    assert after == before, f"compiled at the start: {after.keys() - before.keys()}"
    subprocess.run(["onehop", "--version"], check=True, env=environment, cwd=root)
    size = sum(p.stat().st_size for p in (root / "opt/onehop").rglob("*") if p.is_file())
    print(f"{took:7.1f} s  warm start of all {len(before)} kernel files, none compiled")
    print(f"{size / 1e6:7.0f} MB  /opt/onehop")


if __name__ == "__main__":
    main()
