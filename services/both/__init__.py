"""The co-located service: prefill and decode on one engine."""
