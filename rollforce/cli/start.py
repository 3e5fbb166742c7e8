"""Where the command begins: what can interrupt it is there before anything heavy is imported."""

from __future__ import annotations

import sys

from rollforce.cli.interrupt import INTERRUPT, INTERRUPTED


def main() -> None:
    """Run the command: the entry point of the console script."""
    INTERRUPT.watch()
    try:
        from rollforce.cli.main import main as run

        run()
    except (KeyboardInterrupt, SystemExit, ImportError):  # an import that was interrupted fails in many ways
        if not INTERRUPT.asked:
            raise
        sys.exit(INTERRUPTED)
