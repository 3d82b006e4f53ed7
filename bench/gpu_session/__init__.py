"""Check and measure everything on a machine with GPUs; `python -m bench.gpu_session --help`."""
