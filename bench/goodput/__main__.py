"""python -m bench.goodput"""

import sys

from bench.goodput.main import main

sys.exit(main(sys.argv[1:]))
