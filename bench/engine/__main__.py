import sys

from bench.engine.main import main

sys.exit(main(sys.argv[1:], prog="python -m bench.engine"))
