"""``python -m crosskd`` is ``crosskd``."""

import sys

from crosskd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
