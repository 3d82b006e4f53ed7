"""The HTTP API by its own OpenAPI document: schemathesis makes what fits it, and what does not."""

from __future__ import annotations

import contextlib
import itertools
import time

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from baton.cluster import LocalCluster
from tests.fuzz.watch import HANG_S, Findings

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 20
# Answers nobody limits fill the context; that is no news after the first few.
QUICK = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4}


def fuzz_http(cluster: LocalCluster, findings: Findings, until: float) -> None:
    """Go round the operations, each with valid and invalid requests."""
    schema = schemathesis.openapi.from_url(f"{cluster.http_url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    with requests.Session() as session:
        for operation, mode in itertools.cycle(itertools.product(operations, GenerationMode)):
            if time.monotonic() > until or len(findings.faults) >= 20:
                return
            # An operation without a body has nothing invalid.
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):
                _examples(operation, mode, cluster.http_url, session, findings, until)


def _examples(
    operation: APIOperation,
    mode: GenerationMode,
    url: str,
    session: requests.Session,
    findings: Findings,
    until: float,
) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Case) -> None:
        if time.monotonic() > until:
            return
        if isinstance(case.body, dict):
            for name, value in QUICK.items():
                if name in case.body and isinstance(case.body[name], int) and case.body[name] > value:
                    case.body[name] = value
            # Drawn alone, hardly one valid request in a hundred streams.
            if mode is GenerationMode.POSITIVE and "stream" in case.body:
                case.body["stream"] = True
        try:
            response = case.call(base_url=url, session=session, timeout=HANG_S)
        except requests.Timeout:
            findings.fault(f"no answer within {HANG_S:g} s: {case.as_curl_command()}")
            return
        findings.answers[f"{operation.label} {mode.value} {response.status_code}"] += 1
        try:
            case.validate_response(response, checks=CHECKS)
        except (FailureGroup, AssertionError) as failure:
            shown = getattr(failure, "exceptions", [failure])[0]
            answer = f"{response.status_code} {response.text[:500]}"
            findings.fault(f"{shown}\n{case.as_curl_command()}\n-> {answer}")

    one()
