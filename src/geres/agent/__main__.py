"""`python -m geres.agent`."""

from __future__ import annotations

import sys

from geres.agent.main import main

if __name__ == "__main__":
    sys.exit(main())
