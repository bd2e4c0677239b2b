"""
The `millrace` command.

Everything below this file may import click and rich; this file may not, so that their absence
is one clear sentence and not a traceback.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the entry point of `millrace` and of `python -m millrace`."""
    try:
        from millrace.cli.app import run
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] not in {"click", "rich"}:
            raise
        sys.stderr.write(
            f"millrace: the command line needs {missing.name}, which is not installed.\n"
            "Install it with: pip install 'millrace[cli]'\n"
        )
        raise SystemExit(1) from None
    run()
