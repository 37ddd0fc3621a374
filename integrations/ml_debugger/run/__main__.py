"""`python -m ml_debugger.run`."""

import sys

from ml_debugger.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
