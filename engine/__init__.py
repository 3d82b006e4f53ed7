"""The engine: requests, scheduling, KV blocks, models and backends of one worker."""
