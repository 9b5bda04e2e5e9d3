"""Dashboard and alerts ask only for what is exported, and each alert is in the run book."""

import json
import re
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.disk_stats import DiskStats
from actors.shard import Shard
from cluster.config import Config
from cluster.keys import HASH_SPACE, KeyRange
from serve.metrics import exposition
from tests.deploy.dockerfile import ROOT
from tests.deploy.manifests import load_all

MONITORING = ROOT / "deploy" / "monitoring"
OF_KUBERNETES = {"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
WORDS = re.compile(r"[a-zA-Z_][a-zA-Z0-9_:]*")
LANGUAGE = frozenset(
    [
        "sum",
        "max",
        "min",
        "avg",
        "count",
        "rate",
        "increase",
        "by",
        "for",
        "histogram_quantile",
        "absent",
        "topk",
        "max_over_time",
    ]
)


def exported() -> set[str]:
    """Names of all series of a gateway with one shard."""
    shard = Shard("0", KeyRange(0, HASH_SPACE), Config(durability="memory"))
    log = {"sync": DiskStats().report()["sync"]} if hasattr(DiskStats(), "report") else {}
    stats = msgspec.Raw(msgspec.json.encode({**shard.stats(), "log": log}))
    text = exposition({("/v1/track", 200): 1}, {"0": stats}, "g").decode()
    return {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }


def rules() -> list[dict[str, Any]]:
    (document,) = load_all((MONITORING / "rules.yaml").read_text())
    return [rule for group in document["spec"]["groups"] for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def series_of(expression: str) -> set[str]:
    """Names of the series in a PromQL expression."""
    without = re.sub(r'"[^"]*"', "", expression)
    without = re.sub(r"\[[^\]]*\]", "", without)
    without = re.sub(r"\bby\s*\([^)]*\)", "", without)
    without = re.sub(r"\{[^}]*\}", "", without)
    return set(WORDS.findall(without)) - LANGUAGE


def test_every_series_that_is_asked_for_exists():
    known = exported() | OF_KUBERNETES | {rule["record"] for rule in rules() if "record" in rule}
    asked = {
        name
        for expression in (*dashboard_expressions(), *(rule["expr"] for rule in rules()))
        for name in series_of(expression)
    }
    assert asked - known == set()
    assert "onehop_stage_seconds_bucket" in asked


@pytest.mark.parametrize("expression", [*dashboard_expressions(), *(r["expr"] for r in rules())])
def test_expressions_are_closed(expression: str):
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)


def test_each_alert_says_what_it_is_and_stands_in_the_run_book():
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").strip().lower()).replace(" ", "-")
        for line in (ROOT / "deploy" / "README.md").read_text().splitlines()
        if line.startswith("#")
    }
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 10
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"]["summary"]
        file, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert file == "deploy/README.md"
        assert anchor == alert["alert"].lower()
        assert anchor in headings, alert["alert"]


def test_the_dashboard_asks_only_the_source_that_one_chooses():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${source}"
