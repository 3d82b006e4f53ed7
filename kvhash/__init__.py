"""Names of KV blocks. Standard library only: the engine caches under them, the gateway routes by them."""
