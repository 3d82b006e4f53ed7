"""The processes around the gateway that bench/gateway.py measures."""
