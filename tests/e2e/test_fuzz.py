"""Short runs of the fuzzers; `make fuzz` runs each for ten minutes."""

from __future__ import annotations

import pytest

from tests.fuzz.http import fuzz_http
from tests.fuzz.rpc import fuzz_rpc
from tests.fuzz.watch import Fuzz, run


@pytest.mark.parametrize(("fuzz", "at_least"), [(fuzz_http, 30), (fuzz_rpc, 100)])
def test_nothing_that_is_sent_breaks_the_cluster(fuzz: Fuzz, at_least: int) -> None:
    # Half a minute is too short to tell warming up from growth.
    findings = run(fuzz, 12.0, watch_memory=False)
    assert not findings.faults, "\n\n".join(findings.faults)
    assert sum(findings.answers.values()) >= at_least
