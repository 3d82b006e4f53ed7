from __future__ import annotations

import pytest

from kvtransfer.payloads import encode_taken_at, taken_after_s


@pytest.mark.parametrize(
    ("payload", "expected_s"),
    [
        (encode_taken_at(1_250_000_000), 0.25),
        (b"", 0.5),  # another host, or an earlier version
        (encode_taken_at(999_999_999), 0.5),  # another clock: before COMMIT was sent
        (encode_taken_at(1_500_000_001), 0.5),  # after its ACK was here
        (b"garbage of any size", 0.5),
    ],
)
def test_when_commit_was_taken_is_believed_if_it_can_be(payload: bytes, expected_s: float) -> None:
    assert taken_after_s(payload, 1_000_000_000, 1_500_000_000) == expected_s
