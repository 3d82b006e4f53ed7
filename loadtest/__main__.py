"""`python -m loadtest`."""

import sys

from loadtest.main import main

sys.exit(main())
