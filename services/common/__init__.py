"""What every service shares: server bootstrap, errors, configuration, logs, metrics."""
