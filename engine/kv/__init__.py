"""KV blocks: layout, pool, prefix cache."""
