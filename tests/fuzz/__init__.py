"""What nobody would send, for a long time, against a real cluster: `python -m tests.fuzz http|grpc`."""
