"""What every service shares: server, errors, metrics, logs."""
