"""``python -m trio_parallel_steps.cli``"""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
