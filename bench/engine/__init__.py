"""`baton bench engine`: five workloads, offline, beside the floor of their bytes and operations."""
