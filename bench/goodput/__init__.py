"""Goodput of clusters over a ladder of rates; `python -m bench.goodput --help`."""
