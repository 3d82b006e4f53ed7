"""Every metric that dashboard, alerts, rules and autoscalers name is exported, by the service they name."""

import importlib.util
import json
import re
import time
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine.stats import EngineStats
from services.gateway.admission import Admission
from services.gateway.config import LimitsConfig
from services.gateway.metrics import GatewayMetrics
from services.gateway.registry import Registry
from services.worker.metrics import WorkerMetrics

DEPLOY = Path(__file__).parents[3] / "deploy"
FILES = DEPLOY / "helm/baton/files"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
SELECTOR = re.compile(r"\b(baton_\w+)\s*(?:\{([^}]*)\})?")
COMPONENT = re.compile(r'component=~?"([^"]+)"')


def series(text: str) -> set[str]:
    """Names of the series that an exposition can have, labelled ones without a sample too."""
    return {
        family.name + suffix
        for family in text_string_to_metric_families(text)
        for suffix in SUFFIXES.get(family.type, ())
    }


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    gateway = GatewayMetrics(Registry("m", 1.0, time.monotonic), Admission(LimitsConfig()))
    worker = WorkerMetrics()
    worker.add_engine(lambda: EngineStats(*([1] * 13)))
    of_worker = series(generate_latest(worker.registry).decode())
    return {
        "gateway": series(gateway.render().decode()),
        "prefill": of_worker,
        "decode": of_worker,
        "both": of_worker,
    }


def adapter_rules() -> list[dict[str, object]]:
    rules = yaml.safe_load((FILES / "adapter-rules.yaml").read_text())
    return [rule for kind in ("custom", "external") for rule in rules[kind]]


def expressions() -> list[str]:
    """All PromQL of the repository."""
    found = [
        target["expr"]
        for panel in json.loads((FILES / "dashboard.json").read_text())["panels"]
        for target in panel.get("targets", ())
    ]
    for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]:
        found += [rule["expr"] for rule in group["rules"]]
    found += [str(rule[key]) for rule in adapter_rules() for key in ("seriesQuery", "metricsQuery")]
    values = yaml.safe_load((DEPLOY / "helm/baton/values.yaml").read_text())
    for role in ("prefill", "decode", "both"):
        found += [trigger["query"] for trigger in values[role]["autoscaling"]["triggers"]]
    return found


def test_queries_name_exported_series(exported):
    checked = 0
    for expression in expressions():
        for name, labels in SELECTOR.findall(expression):
            component = COMPONENT.search(labels)
            components = component[1].split("|") if component else list(exported)
            owners = [each for each in components if name in exported[each]]
            assert owners == components if component else owners, f"{name} of {components}: {expression}"
            checked += 1
    assert checked > 80


def test_rules_tests_feed_exported_series(exported):
    for case in yaml.safe_load((DEPLOY / "prometheus/alerts_test.yaml").read_text())["tests"]:
        for given in case["input_series"]:
            name, labels = re.match(r"(\w+)\{(.*)\}", given["series"]).groups()
            component = COMPONENT.search(labels)[1]
            assert name == "up" or name in exported[component]


def test_autoscalers_ask_for_metrics_that_the_adapter_serves():
    served = {rule["name"]["as"] for rule in adapter_rules()}
    values = yaml.safe_load((DEPLOY / "helm/baton/values.yaml").read_text())
    asked = {
        metric[kind]["metric"]["name"]
        for role in ("prefill", "decode", "both")
        for metric in values[role]["autoscaling"]["metrics"]
        for kind in ("pods", "external")
        if kind in metric
    }
    assert asked
    assert asked <= served


def test_the_dashboard_is_what_its_source_writes():
    spec = importlib.util.spec_from_file_location("dashboard", DEPLOY / "grafana/dashboard.py")
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    written = source.dashboard()
    assert written == json.loads((FILES / "dashboard.json").read_text())
    ids = [panel["id"] for panel in written["panels"]]
    assert len(ids) == len(set(ids)) > 20
    cells = [
        (panel["gridPos"]["x"], panel["gridPos"]["y"])
        for panel in written["panels"]
        if panel["type"] == "timeseries"
    ]
    assert len(cells) == len(set(cells))
