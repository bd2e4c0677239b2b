"""The tree of commands, and what their exit codes mean: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import sys

import click

import millrace
from millrace.cli.demo.command import demo
from millrace.cli.doctor import doctor
from millrace.cli.log import log


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(getattr(millrace, "__version__", "unknown"), prog_name="millrace")
def cli() -> None:
    """Millrace: a durable log for asyncio programs.

    Every command takes --json. Exit codes: 0 done, 1 the thing asked for failed, 2 wrong usage.
    """


cli.add_command(demo)
cli.add_command(doctor)
cli.add_command(log)


def run() -> None:
    """Run the command named on the command line and exit with its code."""
    try:
        # Outside click's standalone mode an `Exit` comes back as the return value.
        code = cli.main(prog_name="millrace", standalone_mode=False)
    except click.ClickException as wrong:
        wrong.show()
        sys.exit(wrong.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("millrace: interrupted\n")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
