"""Compiled kernels of other sources are never used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import actors


def cache_dir(package: Path, base: str) -> str:
    """Where a fresh process that imports the package at `package` keeps kernels."""
    code = "import os, actors; print(os.environ['NUMBA_CACHE_DIR'])"
    environment = os.environ | {"NUMBA_CACHE_DIR": base, "PYTHONPATH": str(package.parent)}
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_another_source_of_a_kernel_is_another_folder(tmp_path: Path) -> None:
    package = tmp_path / "actors"
    shutil.copytree(Path(actors.__file__).parent, package)
    before = cache_dir(package, "/base")
    assert before.startswith("/base/")
    assert cache_dir(package, before) == before
    with (package / "store_kernels.py").open("a") as file:
        file.write("# changed\n")
    assert cache_dir(package, "/base") != before
