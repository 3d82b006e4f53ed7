"""Model architectures, described by their Hugging Face configs."""
