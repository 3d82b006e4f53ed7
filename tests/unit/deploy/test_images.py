"""The images hold what their services import, and the gateway's nothing that computes."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FIRST_PARTY = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
)


def source(module: str) -> Path | None:
    """File of a module of this repository; None: generated, or a name inside a module."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports(file: Path) -> set[str]:
    """Modules that a file imports: also inside functions, but for the client's."""
    tree = ast.parse(file.read_text())
    found: set[str] = set()
    for node in tree.body if file.is_relative_to(ROOT / "baton") else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def reachable(start: list[Path]) -> set[str]:
    """Modules that are imported from some files on, first-party ones followed."""
    pending, files, modules = list(start), set(), set()
    while pending:
        file = pending.pop()
        if file in files:
            continue
        files.add(file)
        for module in imports(file):
            modules.add(module)
            parts = module.split(".")
            parents = [".".join(parts[: end + 1]) for end in range(len(parts))]
            if parts[0] in FIRST_PARTY:
                pending += [path for name in parents if (path := source(name))]
    return modules


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_gateways_list_is_what_it_imports():
    start = [ROOT / "services/gateway/main.py", ROOT / "baton/cli/main.py", ROOT / "docker/health.py"]
    modules = reachable(start)
    top = {module.partition(".")[0] for module in modules} - FIRST_PARTY - set(sys.stdlib_module_names)
    distributions = packages_distributions()
    namespaces = {
        "google.protobuf": "protobuf",
        "google.rpc": "googleapis-common-protos",
        "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-grpc",
        "opentelemetry.sdk": "opentelemetry-sdk",
    }
    shared = {name.partition(".")[0] for name in namespaces}
    needed = {normal(name) for module in top - shared for name in distributions[module]}
    needed |= {name for prefix, name in namespaces.items() if any(m.startswith(prefix) for m in modules)}
    lines = (ROOT / "docker/gateway.txt").read_text().splitlines()
    listed = {normal(line) for line in lines if line and not line.startswith("#")}
    # protobuf: the generated stubs need it; httptools: uvicorn's parser.
    assert listed - {"protobuf", "httptools"} == needed - {"protobuf"}
    assert not {"torch", "numba", "pyzmq", "cupy"} & listed
    pinned = {normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert listed <= pinned


@pytest.mark.parametrize(
    ("stage", "starts"),
    [
        ("gateway-build", ["services/gateway/main.py", "docker/health.py"]),
        (
            "worker-build",
            ["services/prefill/main.py", "services/decode/main.py", "engine/backends/cpu/__main__.py"],
        ),
    ],
)
def test_an_image_holds_the_sources_it_imports(stage, starts):
    text = (ROOT / "docker/Dockerfile").read_text()
    steps = text.partition(f"AS {stage}\n")[2].partition("\nFROM ")[0]
    copied = re.findall(r"^COPY (\S+) \S+$", steps, re.MULTILINE)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    found = 0
    for module in reachable([ROOT / start for start in starts]):
        file = source(module) if module.partition(".")[0] in FIRST_PARTY else None
        if file is not None:
            path = file.relative_to(ROOT).as_posix()
            assert any(path == each or path.startswith(f"{each}/") for each in copied), module
            assert path.partition("/")[0] in allowed, module
            found += 1
    assert found > 20
