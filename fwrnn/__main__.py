"""``python -m fwrnn``."""

import sys

from fwrnn.cli import main

sys.exit(main())
