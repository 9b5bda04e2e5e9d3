"""A gateway starts as soon as Serve lets it: what it never needs is not imported."""

from __future__ import annotations

import subprocess
import sys


def test_a_gateway_imports_neither_kernels_nor_a_client() -> None:
    """Of the 1.2 s of CPU that importing a gateway's own modules took, 1.0 were for these."""
    code = "import sys, serve.app; print(*sorted({'numba', 'aiohttp'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
