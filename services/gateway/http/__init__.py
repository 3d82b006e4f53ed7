"""The OpenAI-shaped HTTP API."""
