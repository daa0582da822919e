"""`python -m metaleg_node`."""

import sys

from metaleg_node.cli import main

if __name__ == "__main__":
    sys.exit(main())
