"""Self-contained pages: HTML with inline SVG, no script and nothing loaded from elsewhere."""
