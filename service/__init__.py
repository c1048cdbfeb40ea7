"""Shinkei: accounts, and the worlds that their owners write, over HTTP and PostgreSQL."""

import sys

__version__ = "0.1.0"

# structlog imports rich where it is there, which is 45 ms more at each start, and would write the
# locals of every frame into logged tracebacks, passwords among them. Here tables alone need it:
# see commands.output.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
