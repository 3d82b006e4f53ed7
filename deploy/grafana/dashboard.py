"""Writes the dashboard: python deploy/grafana/dashboard.py > deploy/helm/baton/files/dashboard.json

The JSON is committed, since Grafana and the chart read it; a unit test holds the two together.
"""

import json
from dataclasses import dataclass

WIDTH, HEIGHT = 8, 7
GATEWAY = 'component="gateway"'
# Co-located workers do both.
PREFILL, DECODE = 'component=~"prefill|both"', 'component=~"decode|both"'


@dataclass(frozen=True)
class Panel:
    """One graph.

    Attributes:
        queries: (PromQL, legend) each.
        unit: Grafana's name of it.
    """

    title: str
    text: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    stacked: bool = False


def quantiles(metric: str, by: str = "", where: str = GATEWAY) -> tuple[tuple[str, str], ...]:
    """Queries of p50, p90 and p99 of a histogram, of gateways unless `where` says otherwise."""
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    return tuple(
        (
            f"histogram_quantile({share}, sum by ({labels}) "
            f"(rate({metric}_bucket{{{where}}}[$__rate_interval])))",
            f"p{round(share * 100)}{legend}",
        )
        for share in (0.5, 0.9, 0.99)
    )


def rate(metric: str, where: str, by: str = "") -> str:
    """PromQL of the rate of a counter, summed."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{where}}}[$__rate_interval]))"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "What clients see",
        (
            Panel(
                "Time to first token",
                "From receipt to the first token.",
                "s",
                quantiles("baton_time_to_first_token_seconds"),
            ),
            Panel(
                "Inter-token latency",
                "Each gap between the tokens of a stream.",
                "s",
                quantiles("baton_inter_token_latency_seconds"),
            ),
            Panel(
                "Time per output token",
                "(E2E - TTFT) / (N - 1) of each request.",
                "s",
                quantiles("baton_time_per_output_token_seconds"),
            ),
            Panel(
                "Requests",
                "Ended, by outcome.",
                "reqps",
                ((rate("baton_requests_total", GATEWAY, "outcome"), "{{outcome}}"),),
                stacked=True,
            ),
            Panel(
                "Errors",
                "Refused or failed, by reason; docs/errors.md explains them.",
                "reqps",
                ((rate("baton_errors_total", GATEWAY, "reason"), "{{reason}}"),),
                stacked=True,
            ),
            Panel(
                "Tokens",
                "Read and written.",
                "short",
                (
                    (rate("baton_prompt_tokens_total", GATEWAY), "prompt"),
                    (rate("baton_cached_prompt_tokens_total", GATEWAY), "of them cached"),
                    (rate("baton_generation_tokens_total", GATEWAY), "generated"),
                ),
            ),
        ),
    ),
    (
        "Gateway",
        (
            Panel(
                "In flight",
                "Requests that wait for a reservation, and those that hold one.",
                "short",
                (
                    (f"sum(baton_num_requests_waiting{{{GATEWAY}}})", "waiting"),
                    (f"sum(baton_num_requests_running{{{GATEWAY}}})", "running"),
                ),
                stacked=True,
            ),
            Panel(
                "Queue time",
                "From admission to the reservation.",
                "s",
                quantiles("baton_request_queue_time_seconds"),
            ),
            Panel(
                "End to end", "From receipt to the end.", "s", quantiles("baton_e2e_request_latency_seconds")
            ),
            Panel(
                "Workers listed",
                "By role, as the gateway with the fewest sees it.",
                "short",
                ((f"min by (role) (baton_workers{{{GATEWAY}}})", "{{role}}"),),
            ),
            Panel(
                "Recoveries",
                "Times that a lost worker's part was done again.",
                "ops",
                ((rate("baton_retries_total", GATEWAY), "retries"),),
            ),
            Panel("Text", "Rendering and tokenizing of a prompt.", "s", quantiles("baton_text_seconds")),
        ),
    ),
    (
        "Prefill",
        (
            Panel(
                "Pending tokens",
                "Prompt tokens still to be computed, by worker.",
                "short",
                ((f"baton_pending_tokens{{{PREFILL}}}", "{{instance}}"),),
                stacked=True,
            ),
            Panel(
                "Computed tokens",
                "Run through the model, by worker.",
                "short",
                ((rate("baton_computed_tokens_total", PREFILL, "instance"), "{{instance}}"),),
                stacked=True,
            ),
            Panel(
                "Mean queue and compute time",
                "Of one prompt.",
                "s",
                tuple(
                    (f"{rate(f'{metric}_sum', PREFILL)} / {rate(f'{metric}_count', PREFILL)}", legend)
                    for metric, legend in (
                        ("baton_request_queue_time_seconds", "queue"),
                        ("baton_request_prefill_time_seconds", "compute"),
                    )
                ),
            ),
            Panel(
                "Step time",
                "Of one engine step: a chunk or more.",
                "s",
                quantiles("baton_step_seconds", "", PREFILL),
            ),
        ),
    ),
    (
        "Hand-off",
        (
            Panel(
                "Bytes",
                "KV handed over, by transport.",
                "Bps",
                ((rate("baton_handoff_bytes_total", PREFILL, "transport"), "{{transport}}"),),
                stacked=True,
            ),
            Panel(
                "Exposed time",
                "From the end of prefill compute until decode could run.",
                "s",
                quantiles("baton_handoff_exposed_seconds", "transport", PREFILL),
            ),
            Panel(
                "Hand-offs",
                "By outcome; and blocks that the receiver's cache held already.",
                "ops",
                (
                    (rate("baton_handoffs_total", PREFILL, "outcome"), "{{outcome}}"),
                    (rate("baton_handoff_skipped_blocks_total", PREFILL), "blocks skipped"),
                ),
            ),
        ),
    ),
    (
        "Decode",
        (
            Panel(
                "KV in use",
                "Share of the pool that requests, reservations or transfers hold.",
                "percentunit",
                ((f"baton_kv_cache_usage_ratio{{{DECODE}}}", "{{instance}}"),),
            ),
            Panel(
                "Batch",
                "Requests in the batch, in the queue, and those whose KV is on its way.",
                "short",
                (
                    (f"sum(baton_num_requests_running{{{DECODE}}})", "running"),
                    (f"sum(baton_num_requests_waiting{{{DECODE}}})", "waiting"),
                    (f"sum(baton_num_requests_reserved{{{DECODE}}})", "reserved"),
                ),
                stacked=True,
            ),
            Panel(
                "Generated tokens",
                "By worker.",
                "short",
                ((rate("baton_generation_tokens_total", DECODE, "instance"), "{{instance}}"),),
                stacked=True,
            ),
            Panel(
                "Tokens a step",
                "Mean batch of a step, by worker.",
                "short",
                (
                    (
                        f"{rate('baton_generation_tokens_total', DECODE, 'instance')} / "
                        f"{rate('baton_engine_steps_total', DECODE, 'instance')}",
                        "{{instance}}",
                    ),
                ),
            ),
            Panel(
                "Step time",
                "Of one engine step: a token of every request in the batch.",
                "s",
                quantiles("baton_step_seconds", "", DECODE),
            ),
            Panel(
                "Preemptions",
                "Requests stopped for lack of blocks.",
                "ops",
                ((rate("baton_num_preemptions_total", DECODE, "instance"), "{{instance}}"),),
            ),
            Panel(
                "Prefix cache",
                "Share of looked-up tokens that were found, by kind of worker.",
                "percentunit",
                (
                    (
                        f"{rate('baton_prefix_cache_hits_total', '', 'component')} / "
                        f"{rate('baton_prefix_cache_queries_total', '', 'component')}",
                        "{{component}}",
                    ),
                ),
            ),
        ),
    ),
)


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, object]:
    """One time series in Grafana's model."""
    custom = {
        "fillOpacity": 20 if panel.stacked else 0,
        "stacking": {"mode": "normal" if panel.stacked else "none"},
    }
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


def dashboard() -> dict[str, object]:
    """The whole dashboard in Grafana's model."""
    panels: list[dict[str, object]] = []
    y = 0
    for title, row in ROWS:
        grid = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": grid,
                "panels": [],
            }
        )
        y += 1
        for index, panel in enumerate(row):
            place = (WIDTH * (index % 3), y + HEIGHT * (index // 3))
            panels.append(panel_json(panel, len(panels) + 1, *place))
        y += HEIGHT * -(-len(row) // 3)
    return {
        "uid": "baton",
        "title": "Baton",
        "tags": ["baton"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
            ]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
