"""Train a student with the command line of the published code: docs/published.md."""

import sys

from crosskd.published.finetuning import main

if __name__ == "__main__":
    sys.exit(main())
