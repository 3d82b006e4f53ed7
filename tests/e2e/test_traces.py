"""One trace from the client's traceparent through gateway, prefill, hand-off and decode, over real OTLP."""

from __future__ import annotations

import json
import re
import urllib.request

from baton.cluster import LocalCluster
from tests.support.otlp_collector import OtlpCollector, Seen

TRACE_ID, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
EXPECTED = [
    ("baton-decode", "DecodeService.Reserve", "reserve"),
    ("baton-decode", "decode", "hand-off"),
    ("baton-gateway", "prefill", "generate"),
    ("baton-gateway", "reserve", "generate"),
    ("baton-prefill", "PrefillService.Prefill", "prefill"),
    ("baton-prefill", "chunk", "PrefillService.Prefill"),
    ("baton-prefill", "chunk", "PrefillService.Prefill"),
    ("baton-prefill", "hand-off", "PrefillService.Prefill"),
    ("baton-prefill", "queue", "PrefillService.Prefill"),
]


def complete(cluster: LocalCluster, headers: dict[str, str]) -> None:
    body = {
        "prompt": [1000 + i for i in range(100)],
        "max_tokens": 6,
        "temperature": 0,
        "ignore_eos": True,
        "model": cluster.model_name,
    }
    request = urllib.request.Request(
        f"{cluster.http_url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200


def check(spans: list[Seen], trace_id: str, root_parent: str) -> None:
    """All spans are one trace, each under the right parent and inside its time."""
    by_id = {span.span_id: span for span in spans}
    assert {span.trace_id for span in spans} == {trace_id}
    (root,) = [span for span in spans if span.name == "generate"]
    assert (root.service, root.parent_id) == ("baton-gateway", root_parent)
    parents = [(s.service, s.name, by_id[s.parent_id].name) for s in spans if s is not root]
    assert sorted(parents) == EXPECTED
    for span in spans:
        assert not span.failed
        assert span.begin_ns <= span.end_ns
        assert root.begin_ns - 5e6 <= span.begin_ns
    chunks = sorted((s for s in spans if s.name == "chunk"), key=lambda s: s.begin_ns)
    assert [c.attributes["tokens"] for c in chunks] == [64, 36]
    assert chunks[0].end_ns <= chunks[1].begin_ns + 1e6
    (handoff,) = [span for span in spans if span.name == "hand-off"]
    assert handoff.attributes["transport"] == "shared_memory"
    assert handoff.attributes["blocks"] == 7
    (decode,) = [span for span in spans if span.name == "decode"]
    assert decode.attributes["tokens"] == 5
    assert root.attributes["completion_tokens"] == 6


def test_one_trace_through_all_processes_and_the_same_id_in_their_logs() -> None:
    with OtlpCollector() as collector:
        flags = ["--otlp-endpoint", collector.endpoint]
        flags_of_workers = [*flags, "--no-prefix-cache"]
        chunked = [*flags_of_workers, "--max-chunk-tokens", "64", "--max-step-tokens", "64"]
        with LocalCluster(
            prefill=1, decode=1, gateway_args=flags, prefill_args=chunked, decode_args=flags_of_workers
        ) as cluster:
            complete(cluster, {"traceparent": f"00-{TRACE_ID}-{CALLER}-01"})
            ours = collector.wait_for(lambda spans: len(spans) >= 1 + len(EXPECTED))
            check(ours, TRACE_ID, CALLER)
            # Without a client's context, and with one that is not valid, a trace begins at the gateway.
            complete(cluster, {"traceparent": "00-zz-1-01"})
            spans = collector.wait_for(lambda spans: len(spans) >= 2 * (1 + len(EXPECTED)))
            later = [span for span in spans if span.trace_id != TRACE_ID]
            check(later, later[0].trace_id, "")
            # What the caller does not want recorded is not.
            complete(cluster, {"traceparent": f"00-{'1' * 32}-{CALLER}-00"})
            complete(cluster, {})
            spans = collector.wait_for(lambda spans: len(spans) >= 3 * (1 + len(EXPECTED)))
            assert "1" * 32 not in {span.trace_id for span in spans}
            run_dir = cluster.run_dir
        log = (run_dir / "gateway.log").read_text()
        ended = [json.loads(line) for line in log.splitlines() if '"request ended"' in line]
        assert [line["trace_id"] for line in ended[:3]] == [TRACE_ID, later[0].trace_id, "1" * 32]
        assert all(re.fullmatch("[0-9a-f]{32}", line["request_id"]) for line in ended)
