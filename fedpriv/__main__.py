"""`python -m fedpriv` is the `fedpriv` command."""

from __future__ import annotations

import sys

from fedpriv.cli import main

if __name__ == "__main__":
    sys.exit(main())
