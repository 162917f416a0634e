"""``python -m gpumask``: the command line."""

import sys

from gpumask.cli import main

if __name__ == "__main__":
    sys.exit(main())
