"""State: profiles, engine, shards. Plain classes and kernels; only *_actor.py imports ray.

Importing this package decides where numba keeps compiled kernels: in a folder named by a digest of
the sources that kernels are made of. Numba itself only notices when a kernel's own file changes,
not when one that it calls does, and stale machine code over a new memory layout corrupts memory.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

CONSTANTS = ("events.py", "messages.py")
"""Files without kernels whose constants are compiled into some."""


def _keep_kernels_by_digest() -> None:
    digest = sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source = path.read_bytes()
        if path.name in CONSTANTS or b"njit" in source or b"kernel" in source:
            digest.update(source)
    name = digest.hexdigest()[:16]
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or Path.home() / ".cache" / "onehop" / "kernels")
    # Processes that this one starts inherit the folder, digest and all.
    if base.name != name:
        os.environ["NUMBA_CACHE_DIR"] = str(base / name)


_keep_kernels_by_digest()
