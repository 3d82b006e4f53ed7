"""The results in words: a table each load, and goodput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.goodput.curve import Goodput, goodput
from bench.goodput.point import Point
from bench.goodput.results import Results
from loadtest.measures import Targets

# Share of requests that met the targets by requests/s: vLLM 0.26, co-located, chunk budget 2,048, one H200,
# the Llama-3.1-8B shape, Poisson arrivals, in process without a server; measured apart on 2026-11-22.
VLLM: dict[str, dict[str, list[tuple[float, float]]]] = {
    "conversation": {
        "1 s / 20 ms": [(10, 0.996), (14, 0.997), (18, 0.968)],
        "0.5 s / 15 ms": [(10, 0.996), (14, 0.979), (18, 0.873)],
        "0.5 s / 10 ms": [(10, 0.946), (14, 0.786), (18, 0.211)],
    },
    "long": {
        "1 s / 20 ms": [(2, 1.0), (3.5, 1.0), (5, 1.0), (6.5, 0.474)],
        "0.5 s / 15 ms": [(2, 1.0), (3.5, 1.0), (5, 0.75), (6.5, 0.308)],
        "0.5 s / 10 ms": [(2, 1.0), (3.5, 0.774), (5, 0.35), (6.5, 0.096)],
    },
}


def target_name(targets: Targets) -> str:
    """Return targets as people write them."""
    return f"{targets.ttft_s:g} s / {1000 * targets.tpot_s:g} ms"


def goodputs(results: Results, targets: Sequence[str], share: float) -> dict[tuple[str, str, str], Goodput]:
    """Return (load, cluster, targets) -> goodput of every part that has points."""
    found = {}
    for load in results.loads:
        for topology in results.topologies:
            points = results.of(topology, load)
            for name in targets:
                best = goodput([(point.rate, point.share(name)) for point in points], share)
                if best is not None:
                    found[load, topology, name] = best
    return found


def table_rows(results: Results, load: str, targets: Sequence[str]) -> list[list[str]]:
    """Return a row each point of a load; HEAD names the columns."""
    rows = []
    for topology in results.topologies:
        for point in results.of(topology, load):
            gateway = max(
                (used for name, used in point.cores.items() if name.startswith("gateway")), default=0.0
            )
            rows.append(
                [
                    topology,
                    f"{point.rate:g}",
                    str(point.requests),
                    *(_share(point.share(name), point.bounds(name)) for name in targets),
                    point.pair("ttft", 0),
                    *(point.pair(name) for name in ("tpot", "worst_gap", "first_gap", "exposed")),
                    f"{point.output_rate:.0f}",
                    f"{point.refused} / {point.given_up}",
                    str(point.failed),
                    f"{point.agreement.equal} of {point.agreement.asked}",
                    str(point.blocks_left),
                    f"{100 * gateway:.0f} %",
                    _commit(results, point),
                ]
            )
    return rows


def head(targets: Sequence[str]) -> list[str]:
    """Return the titles of the columns of `table_rows`."""
    return [
        *("cluster", "req/s per GPU", "requests"),
        *(f"met {name}" for name in targets),
        *(
            "TTFT p50 / p99, ms",
            "TPOT",
            "worst gap",
            "first gap",
            "exposed hand-off",
            "tokens/s",
            "refused / given up",
            "failed",
        ),
        *("answers equal", "blocks left", "gateway, of a core", "commit"),
    ]


def markdown(
    results: Results, targets: Mapping[str, Targets], share: float, *, beside_vllm: bool = False
) -> str:
    """Return all of it as Markdown; with a row of the reference where model and GPU are the same."""
    names = list(targets)
    found = goodputs(results, names, share)
    parts = []
    for load in results.loads:
        parts += [f"\n{load}:\n", _table(head(names), table_rows(results, load, names))]
    rows = []
    for load in results.loads:
        rows += [
            [load, topology, *(str(found.get((load, topology, name), "–")) for name in names)]
            for topology in results.topologies
            if results.of(topology, load)
        ]
        if beside_vllm and load in VLLM:
            known = [goodput(VLLM[load].get(name, ()), share) for name in names]
            rows.append([load, "vLLM 0.26, co-located", *(str(best or "–") for best in known)])
    parts += [
        f"\nGoodput, requests/s per GPU at which {100 * share:g} % meet TTFT / TPOT, "
        "linear between measured rates:\n",
        _table(["load", "cluster", *names], rows),
    ]
    notes = [
        f"{point.topology} {point.load} at {point.rate:g}: {text}"
        for point in results.points.values()
        for text in point.warnings
    ]
    return "\n".join([*parts, *(f"warning: {note}" for note in notes)])


def _commit(results: Results, point: Point) -> str:
    environment = results.runs[point.run].get("environment")
    return str(environment.get("commit", "–")) if isinstance(environment, dict) else "–"


def _share(share: float, bounds: tuple[float, float]) -> str:
    return f"{100 * share:.1f} % ({100 * bounds[0]:.0f}–{100 * bounds[1]:.0f})"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
