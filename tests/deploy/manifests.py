"""The manifests as Kubernetes would get them: rendered, and read as data."""

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dockerfile import ROOT

OVERLAYS = ("one-node", "fleet")
Manifest = dict[str, Any]
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_all(text: str) -> list[Manifest]:
    return [one for one in yaml.load_all(text, _LOADER) if one]


def renderer() -> list[str] | None:
    """The command that renders a kustomization, of what this machine has."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return None


@functools.cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """All objects of an overlay."""
    command = renderer()
    assert command, "neither kubectl nor kustomize is here"
    folder: Path = ROOT / "deploy" / "overlays" / overlay
    done = subprocess.run([*command, folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(load_all(done.stdout))


def of_kind(overlay: str, kind: str) -> list[Manifest]:
    return [one for one in rendered(overlay) if one["kind"] == kind]


def pods(overlay: str) -> Iterator[tuple[str, Manifest]]:
    """(name, pod template) of Ray's head and worker groups, and of stateful sets."""
    for service in of_kind(overlay, "RayService"):
        cluster = service["spec"]["rayClusterConfig"]
        yield "head", cluster["headGroupSpec"]["template"]
        for group in cluster.get("workerGroupSpecs", ()):
            yield group["groupName"], group["template"]
    for stateful in of_kind(overlay, "StatefulSet"):
        yield stateful["metadata"]["name"], stateful["spec"]["template"]
