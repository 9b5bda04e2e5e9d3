"""deploy/: every object fits Kubernetes' and KubeRay's schemas, and they fit one another."""

import gzip
import importlib
import json
import re
import shlex
import tomllib
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from ray.serve.schema import ServeDeploySchema

from cluster.config import load
from serve.cli import shards_commands
from tests.deploy.dockerfile import ROOT
from tests.deploy.manifests import OVERLAYS, Manifest, load_all, of_kind, pods, rendered, renderer
from tests.deploy.test_image import locked

KUBERNETES = "1.33"
CRDS = ROOT.parent / "shared" / "kubernetes"
MADE_BY_HAND = {"onehop-access", "onehop-ray-token", "onehop-redis", "onehop-metrics"}
"""Secrets that README.md says how to make."""
NOT_BUILT_IN = {"RayService", "ServiceMonitor", "PrometheusRule"}

pytestmark = pytest.mark.skipif(
    renderer() is None, reason="kubectl and kustomize are missing: manifests can't be rendered"
)


def strict(schema: Any) -> Any:
    """A CRD's schema that also refuses fields it does not know, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    out = {name: strict(value) for name, value in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    return out


def crd_schema(name: str) -> Any:
    (crd,) = load_all(gzip.decompress((CRDS / name).read_bytes()).decode())
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    # What every object has is not in a CRD's own schema.
    schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
    return strict(schema)


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"{CRDS} is missing, with KubeRay's CRDs in it")
def test_ray_services_fit_kuberays_schema():
    validator = jsonschema.Draft202012Validator(crd_schema("ray.io_rayservices.crd.yaml.gz"))
    for overlay in OVERLAYS:
        (service,) = of_kind(overlay, "RayService")
        errors = [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(service)]
        assert errors == []
        broken = json.loads(json.dumps(service))
        broken["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["volums"] = []
        assert not validator.is_valid(broken), "an unknown field has to be seen"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_else_fits_kubernetes_own_schemas(overlay: str):
    built_in = [one for one in rendered(overlay) if one["kind"] not in NOT_BUILT_IN]
    assert len(built_in) >= 7
    for one in built_in:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_lies_in_one_namespace_and_no_name_twice(overlay: str):
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered(overlay)]
    assert len(names) == len(set(names))
    assert {one["metadata"]["namespace"] for one in rendered(overlay)} == {"onehop"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_locked_down(overlay: str):
    for name, pod in pods(overlay):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            tag = container["image"].rpartition(":")[2]
            assert re.match(r"\d", tag), f"{name}: {container['image']} names no version"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_pods_leave_slowly_and_say_how_they_are(overlay: str):
    for name, pod in pods(overlay):
        if name == "onehop-redis":
            continue
        spec = pod["spec"]
        assert spec["terminationGracePeriodSeconds"] >= 60, name
        # A Service "onehop" puts ONEHOP_PORT=tcp://... into pods, and settings refuse that.
        assert spec["enableServiceLinks"] is False, name
        (container,) = spec["containers"]
        assert "preStop" in container["lifecycle"], name
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            # The image has neither wget nor curl, on which KubeRay's own probes stand.
            assert "httpGet" in container[probe], name


def test_a_shard_s_pod_empties_itself_before_it_goes():
    """What its hook runs is parsed by the command itself."""
    (spec,) = [pod["spec"] for _, pod in pods("fleet") if _role(pod) == "shards"]
    (container,) = spec["containers"]
    shell, flag, script = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, flag) == ("sh", "-c")
    name, group, command, *words = shlex.split(script)
    assert (name, group) == ("onehop", "shards")
    parsed = shards_commands.commands[command].make_context(command, list(words))
    assert parsed.params["node"] == "$POD_IP"
    assert parsed.params["timeout"] + 30 < spec["terminationGracePeriodSeconds"]
    environment = {one["name"]: one for one in container["env"]}
    assert environment["POD_IP"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    assert environment["ONEHOP_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] in MADE_BY_HAND
    services = {one["metadata"]["name"] for one in of_kind("fleet", "Service")}
    assert environment["ONEHOP_URL"]["value"].removeprefix("http://") in services


def _role(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"].get("onehop.dev/role", ""))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_pods_name_is_there(overlay: str):
    maps = {one["metadata"]["name"] for one in of_kind(overlay, "ConfigMap")}
    claims = {one["metadata"]["name"] for one in of_kind(overlay, "PersistentVolumeClaim")}
    accounts = {one["metadata"]["name"] for one in of_kind(overlay, "ServiceAccount")}
    for name, pod in pods(overlay):
        spec = pod["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        containers = (*spec.get("initContainers", ()), *spec["containers"])
        mounted = {m["name"] for container in containers for m in container["volumeMounts"]}
        templates = {"data"} if name == "onehop-redis" else set()
        assert mounted == volumes.keys() | templates, name
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            if "secret" in volume:
                assert volume["secret"]["secretName"] in MADE_BY_HAND
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        assert spec.get("serviceAccountName", "onehop") in accounts
    (service,) = of_kind(overlay, "RayService")
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {
        "mode": "token",
        "secretName": "onehop-ray-token",
    }


def test_secrets_made_by_hand_are_in_the_run_book():
    readme = (ROOT / "deploy" / "README.md").read_text()
    for name in MADE_BY_HAND:
        assert f"kubectl -n onehop create secret generic {name}" in readme


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_selector_finds_pods(overlay: str):
    labels = [pod["metadata"]["labels"] for _, pod in pods(overlay)]

    def found(selector: Manifest) -> bool:
        return any(selector.items() <= one.items() for one in labels)

    for service in of_kind(overlay, "Service"):
        assert found(service["spec"]["selector"]), service["metadata"]["name"]
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        assert found(budget["spec"]["selector"]["matchLabels"])
    for policy in of_kind(overlay, "NetworkPolicy"):
        assert found(policy["spec"]["podSelector"]["matchLabels"])
    for name, pod in pods(overlay):
        for spread in pod["spec"].get("topologySpreadConstraints", ()):
            own = spread["labelSelector"]["matchLabels"]
            assert own.items() <= pod["metadata"]["labels"].items(), name


def test_owners_and_backups_can_not_share_a_machine_and_each_role_has_a_budget():
    templates = dict(pods("fleet"))
    shards = templates["shards"]["spec"]["affinity"]["podAntiAffinity"]
    (rule,) = shards["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"]["matchLabels"] == {"onehop.dev/role": "shards"}
    budgets = {
        budget["spec"]["selector"]["matchLabels"]["onehop.dev/role"]: budget["spec"]
        for budget in of_kind("fleet", "PodDisruptionBudget")
    }
    assert {role: spec["maxUnavailable"] for role, spec in budgets.items()} == {
        "shards": 1,
        "gateways": 1,
        "head": 1,
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_from_outside_only_the_gateways_port_is_open(overlay: str):
    own = {"onehop.dev/app": "onehop"}
    open_ports: dict[int, list[Manifest]] = {}
    guarded = []
    for policy in of_kind(overlay, "NetworkPolicy"):
        guarded.append(policy["spec"]["podSelector"]["matchLabels"])
        for rule in policy["spec"]["ingress"]:
            sources = rule.get("from", [{}])
            if all(one.get("podSelector", {}).get("matchLabels") == own for one in sources):
                continue
            for port in rule["ports"]:
                open_ports.setdefault(port["port"], []).extend(sources)
    assert open_ports.pop(8000) == [{}]
    # The rest is for KubeRay's operator alone: the head's dashboard and the agents' health.
    assert open_ports.keys() == {8265, 52365}
    for source in (one for sources in open_ports.values() for one in sources):
        assert source["podSelector"]["matchLabels"] == {
            "app.kubernetes.io/name": "kuberay-operator"
        }
    for _, pod in pods(overlay):
        labels = pod["metadata"]["labels"]
        assert any(selector.items() <= labels.items() for selector in guarded)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_are_ours_and_fit_the_pods(overlay: str, tmp_path):
    (settings,) = [m for m in of_kind(overlay, "ConfigMap") if m["metadata"]["name"] == "onehop"]
    file = tmp_path / "onehop.toml"
    file.write_text(settings["data"]["onehop.toml"])
    config = load(file)
    assert (config.host, config.port, config.shard_host) == ("0.0.0.0", 8000, "node")
    assert not config.loopback
    _, pod = next(iter(pods(overlay)))
    mounts = {m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
    for path in (config.data_path, config.keys_path.parent, config.secret_path.parent):
        assert f"{path}" in mounts
    (environment,) = [
        value["value"]
        for value in pod["spec"]["containers"][0]["env"]
        if value["name"] == "ONEHOP_CONFIG"
    ]
    assert environment.rpartition("/")[0] in mounts


def test_a_fleet_has_room_for_its_shards_and_gateways():
    (settings,) = [m for m in of_kind("fleet", "ConfigMap") if m["metadata"]["name"] == "onehop"]
    config = tomllib.loads(settings["data"]["onehop.toml"])
    assert config["node_roles"] is True
    assert config["epoch_store"] == "lease"
    (service,) = of_kind("fleet", "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"].startswith("redis://onehop-redis:")
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    for role, wanted in (("shards", config["shards"]), ("gateways", config["gateways"])):
        group = groups[role]
        # KubeRay passes it to a shell: JSON in quotes.
        resources = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert resources[role] * group["minReplicas"] >= wanted
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["minReplicas"] >= 2
        template = group["template"]["spec"]
        assert template["restartPolicy"] == "Never", "or the autoscaler takes it for another node"
    cpus = int(
        groups["shards"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    )
    assert config["shards"] * config["shard_cpus"] <= cpus * groups["shards"]["minReplicas"]
    memory = groups["shards"]["template"]["spec"]["containers"][0]["resources"]["requests"][
        "memory"
    ]
    on_one = -(-config["shards"] // groups["shards"]["minReplicas"])
    held = (on_one + 1) * config["profile_bytes_max"]  # one more for the snapshot's process
    assert held <= 0.7 * int(memory.removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_application_is_one_that_serve_can_build(overlay: str):
    (service,) = of_kind(overlay, "RayService")
    (document,) = load_all(service["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(document)
    (application,) = schema.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert schema.http_options.port == 8000
    assert {service["spec"]["rayClusterConfig"]["rayVersion"]} == locked("requirements.lock")["ray"]


def test_the_lease_may_be_read_and_written_and_nothing_else():
    (role,) = of_kind("fleet", "Role")
    verbs = {verb: rule.get("resourceNames") for rule in role["rules"] for verb in rule["verbs"]}
    assert verbs == {"get": ["onehop-epochs"], "update": ["onehop-epochs"], "create": None}
    assert all(rule["resources"] == ["leases"] for rule in role["rules"])
    (binding,) = of_kind("fleet", "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "onehop", "namespace": "onehop"}
    ]
