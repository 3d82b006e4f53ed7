"""The life of a request: pick, reserve, prefill, stream, and repair what is lost."""
