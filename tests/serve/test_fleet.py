"""Serve builds the application from what the RayService of deploy/ says."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_serve_builds_and_runs_what_the_ray_service_names(tmp_path: Path):
    command = [sys.executable, "-m", "tests.serve.fleet_app", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"ready"')]
    assert lines, done.stderr[-3000:]
    answers = json.loads(lines[0])
    assert answers["ready"] == 200, answers
    assert answers["decide"] == 200
    assert answers["again"]["duplicate"] is True
    assert answers["plan"] == 200
    assert answers["without_key"] == 401
    assert answers["application"] == "RUNNING"
