"""python -m tests.fuzz http|grpc [SECONDS]: 1 if anything failed, hung, leaked or grew."""

from __future__ import annotations

import sys

from tests.fuzz.http import fuzz_http
from tests.fuzz.rpc import fuzz_rpc
from tests.fuzz.watch import run


def main(argv: list[str]) -> int:
    """Run one fuzzer and show what it found."""
    fuzz = {"http": fuzz_http, "grpc": fuzz_rpc}[argv[0]]
    findings = run(fuzz, float(argv[1]) if len(argv) > 1 else 600.0)
    print(f"{sum(findings.answers.values())} requests")
    for what, count in sorted(findings.answers.items()):
        print(f"{count:8} {what}")
    for fault in findings.faults:
        print(f"FAULT {fault}")
    print("no fault" if not findings.faults else f"{len(findings.faults)} faults")
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
