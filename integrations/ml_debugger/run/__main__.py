"""`python -m ml_debugger.run`."""

import sys

from ml_debugger.run import main

sys.exit(main(sys.argv[1:]))
