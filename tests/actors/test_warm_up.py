"""Nothing is compiled, nor loaded from the cache, by the first request that needs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import actors

# In a process of its own: here other tests have compiled what they like.
SCRIPT = """
import importlib, sys
from numba.core.dispatcher import Dispatcher
from actors.warm_up import warm_up
from cluster.config import Config
warm_up(Config())
for name in sys.argv[1:]:
    kernels = [k for k in vars(importlib.import_module(name)).values() if isinstance(k, Dispatcher)]
    own = [k for k in kernels if k.py_func.__module__ == name]
    if own and not any(kernel.signatures for kernel in own):
        print(name)
"""
INLINED = {
    "actors.engine.features",
    "actors.treatment.belief",
    "actors.treatment.slots",
    "actors.treatment.traces",
}
"""Called by kernels of other modules only, which hold them, in the cache too."""
OF_IMPORTS = {"actors.bulk_hash", "actors.partition"}
"""Run in the tasks that read Parquet, not in shards."""


def test_every_module_of_kernels_is_warm() -> None:
    root = Path(actors.__file__).parent
    sources = [path for path in root.rglob("*.py") if re.search("@(njit|kernel)", path.read_text())]
    names = {".".join(("actors", *p.relative_to(root).with_suffix("").parts)) for p in sources}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *sorted(names)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) <= INLINED | OF_IMPORTS
