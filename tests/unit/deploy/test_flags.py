"""What images, compose files and the chart pass to the services is what the services take."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest
import yaml

from services.common.config import parse_config
from services.decode.config import DecodeConfig
from services.gateway.config import GatewayConfig
from services.prefill.config import PrefillConfig

ROOT = Path(__file__).parents[3]
CONFIGS = {"gateway": GatewayConfig, "prefill": PrefillConfig, "decode": DecodeConfig, "both": DecodeConfig}
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


class ComposeLoader(yaml.SafeLoader):
    """Knows compose's tag !override."""


ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def fields(config: type) -> dict[str, object]:
    """Every field by name, those of nested configurations too, with its default."""
    hints = typing.get_type_hints(config)
    found = {}
    for field in dataclasses.fields(config):
        nested = hints[field.name]
        found.update(fields(nested) if dataclasses.is_dataclass(nested) else {field.name: field.default})
    return found


def image_environment(target: str) -> dict[str, str]:
    """BATON_ variables that the Dockerfile sets in a target and in those that it is made from."""
    text = (ROOT / "docker/Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, str] = {}
    stage, bases = "", {}
    for line in text.splitlines():
        if start := re.match(r"FROM (\S+) AS (\S+)", line):
            stage = start[2]
            bases[stage] = start[1]
        elif line.startswith("ENV "):
            found.update({f"{stage} {name}": value for name, value in re.findall(r"(BATON_\w+)=(\S+)", line)})
    chain = [target]
    while chain[-1] in bases:
        chain.append(bases[chain[-1]])
    return {key.split()[1]: value for key, value in found.items() if key.split()[0] in chain}


def compose_services(name: str) -> dict[str, dict[str, object]]:
    text = VARIABLE.sub(r"\2", (ROOT / "docker" / name).read_text())
    return yaml.load(text, Loader=ComposeLoader)["services"]


@pytest.mark.parametrize(
    ("file", "service", "target"),
    [
        ("compose.yaml", "gateway", "gateway"),
        ("compose.yaml", "prefill", "worker-cpu"),
        ("compose.yaml", "decode", "worker-cpu"),
        ("compose.yaml", "both", "worker-cpu"),
        ("compose.gpu.yaml", "prefill", "worker-cuda"),
        ("compose.gpu.yaml", "decode", "worker-cuda"),
        ("compose.gpu.yaml", "both", "worker-cuda"),
    ],
)
def test_compose_starts_each_service_with_flags_it_takes(file, service, target, tmp_path):
    command = list(compose_services(file)[service]["command"])
    if service != "gateway":
        assert command.pop(0) == service
    else:
        command.append(f"--model={tmp_path}")
    environment = image_environment(target)
    for given in dict.fromkeys(("compose.yaml", file)):
        environment |= compose_services(given)[service].get("environment", {})
    environment = {name: value for name, value in environment.items() if name.startswith("BATON_")}
    assert any(name.startswith(f"BATON_{service.upper()}_") for name in environment)
    known = fields(CONFIGS[service])
    for name in environment:
        section, _, field = name.removeprefix("BATON_").lower().partition("_")
        assert section in ("cache", service) or section in CONFIGS
        assert section != service or field in known
    config = parse_config(CONFIGS[service], service, command, environ=environment)
    if service != "gateway":
        assert config.server.host == "0.0.0.0"
        assert config.worker.gateway == ("gateway:50051",)
        assert config.engine.backend == ("cuda" if target == "worker-cuda" else "cpu")


def test_ports_of_images_chart_and_scrapes_agree():
    decode = image_environment("worker-cpu")
    gateway = fields(GatewayConfig)
    image = image_environment("gateway")
    ports = {
        "http": str(gateway["http_port"]),
        "grpc": str(gateway["grpc_port"]),
        "registry": image["BATON_GATEWAY_REGISTRY_PORT"],
        "metrics": image["BATON_GATEWAY_METRICS_PORT"],
    }
    chart = (ROOT / "deploy/helm/baton/templates/gateway.yaml").read_text()
    assert dict(re.findall(r"name: (\w+), containerPort: (\d+)", chart)) == ports
    helpers = (ROOT / "deploy/helm/baton/templates/_helpers.tpl").read_text()
    assert f"gateway-peers:{ports['registry']}" in helpers
    workers = (ROOT / "deploy/helm/baton/templates/workers.yaml").read_text()
    assert dict(re.findall(r"name: (\w+), containerPort: (\d+)", workers)) == {
        "grpc": decode["BATON_DECODE_PORT"],
        "kv": decode["BATON_DECODE_KV_PORT"],
        "metrics": decode["BATON_DECODE_METRICS_PORT"],
    }
    assert decode["BATON_PREFILL_PORT"] == decode["BATON_DECODE_PORT"]
    scrapes = yaml.safe_load((ROOT / "deploy/prometheus/compose.yaml").read_text())["scrape_configs"]
    assert {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in scrapes} == {
        "baton-gateway": int(ports["metrics"]),
        "baton-prefill": int(decode["BATON_PREFILL_METRICS_PORT"]),
        "baton-decode": int(decode["BATON_DECODE_METRICS_PORT"]),
        "baton-both": int(decode["BATON_BOTH_METRICS_PORT"]),
    }


@pytest.mark.parametrize("target", ["worker-cpu", "worker-cuda"])
def test_images_start_a_co_located_worker_that_others_can_reach(target):
    environment = image_environment(target)
    flags = ["--model=/models/m", "--model-name=m", "--insecure"]
    config = parse_config(DecodeConfig, "both", flags, environ=environment)
    assert config.server.host == "0.0.0.0"
    assert str(config.server.port) == environment["BATON_DECODE_PORT"]
    assert str(config.worker.kv_port) == environment["BATON_DECODE_KV_PORT"]
    assert config.engine.backend == ("cuda" if target == "worker-cuda" else "cpu")


def test_the_chart_passes_flags_that_exist():
    templates = ROOT / "deploy/helm/baton/templates"
    both = set(fields(PrefillConfig)) & set(fields(DecodeConfig))
    used = {
        "gateway": set(re.findall(r'"--([a-z-]+)[={]', (templates / "gateway.yaml").read_text())),
        "workers": set(re.findall(r'"--([a-z-]+)[={]', (templates / "workers.yaml").read_text())),
        "both": set(re.findall(r'"--([a-z-]+)[="]', (templates / "_helpers.tpl").read_text())),
    }
    assert all(used.values())
    for where, flags in used.items():
        known = set(fields(GatewayConfig)) if where == "gateway" else both
        known = known & set(fields(GatewayConfig)) if where == "both" else known
        assert {flag.replace("-", "_") for flag in flags} <= known


@pytest.mark.parametrize(
    "file", ["baton/values.yaml", "values/cpu.yaml", "values/one-gpu.yaml", "values/many-gpus.yaml"]
)
def test_values_name_flags_that_exist(file):
    values = yaml.safe_load((ROOT / "deploy/helm" / file).read_text())
    for service, config in CONFIGS.items():
        given = values.get(service, {}).get("flags", {})
        assert {name.replace("-", "_") for name in given} <= set(fields(config)), service


def test_a_pod_has_time_to_drain():
    helpers = (ROOT / "deploy/helm/baton/templates/_helpers.tpl").read_text()
    assert "terminationGracePeriodSeconds: {{ add .pool.preStopSeconds .pool.drainSeconds 10 }}" in helpers
    for file in ("gateway.yaml", "workers.yaml"):
        text = (ROOT / "deploy/helm/baton/templates" / file).read_text()
        assert "--drain-timeout-s={{ $pool.drainSeconds }}" in text
    grace = compose_grace_s()
    assert all(grace > fields(config)["drain_timeout_s"] for config in CONFIGS.values())


def compose_grace_s() -> float:
    text = (ROOT / "docker/compose.yaml").read_text()
    return float(re.search(r"stop_grace_period: (\d+)s", text)[1])
