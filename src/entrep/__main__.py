"""`python -m entrep` is `entrep`."""

import sys

from entrep.cli import main

if __name__ == "__main__":
    sys.exit(main())
