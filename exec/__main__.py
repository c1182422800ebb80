"""python -m exec"""

import sys

from exec.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
