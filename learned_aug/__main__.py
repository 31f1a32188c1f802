"""``python -m learned_aug`` is the ``learned-aug`` command."""

import sys

from learned_aug.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
